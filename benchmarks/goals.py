"""What is measured, against what, and how good it is to be. The one table of goals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["ratio", "difference", "value"]
Unit = Literal["s", "MB"]
# So many times its goal is a gross break, which ends the command with status 1. Less may be a busy machine.
GROSS = 3.0


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    Attributes:
        name: What `--only` calls it.
        what: What of ours is measured.
        against: The raw limit, measured in turn with it.
        limit: What `kind` must not exceed.
        kind: What counts: ours divided by the raw limit, ours less the raw limit, or ours alone.
        unit: Of what is measured: seconds or megabytes (1000² bytes).
    """

    name: str
    what: str
    against: str
    limit: float
    kind: Kind = "ratio"
    unit: Unit = "s"


GOALS = (
    Goal("import", "import what is needed to run an action", "`import pydantic`, and one model", 1.3),
    Goal(
        "local-call",
        "`LocalExecutor.execute`, empty action",
        "validate, call, put environment and directory back by hand",
        3,
    ),
    Goal("local-call-time", "the same, in time (SDK: 42 µs)", "as above", 25e-6, "value"),
    Goal("event", "one event (`ctx.log`) recorded", "appending a tuple to a list", 2e-6, "value"),
    Goal("run-plugin", "`run_plugin(path, …)`, local, repeated, files unchanged", "`LocalExecutor.execute`", 3),
    Goal("command", "`synapse plugin run … --mode local`, whole process", "`import pydantic, typer, yaml`", 1.5),
    Goal("help", "`synapse --help`", "`import typer`", 1.5),
    Goal("pytest-unused", "pytest, one test that does not use us", "the same without our plugin", 0.015, "difference"),
    Goal("pytest-1000", "1,000 local action tests", "1,000 plain tests that call the function", 1.5),
    Goal("pytest-memory", "peak memory of pytest, local mode", "bare pytest and pydantic", 15, "difference", "MB"),
    Goal(
        "cluster-ready",
        "cluster ready, from pytest's start, task mode",
        "a process that does `ray.init(include_dashboard=False)`",
        1.1,
    ),
    Goal("task-call", "warm task call, dict in, dict out", "Ray actor, round trip of the same dict", 1.2),
    Goal("task-events", "1,000 events in a task call, watched live", "the same call, unwatched", 1.3),
    Goal("task-50mb", "50 MB numpy result, task", "`ray.get` of the same array from an actor", 1.2),
    Goal(
        "task-50mb-memory",
        "memory for it on Python's heaps, here and in the worker",
        "as above",
        5,
        "difference",
        "MB",
    ),
    Goal("task-first", "first task call on a running cluster", "creating a raw actor and calling it", 1.5),
    Goal("task-coverage", "warm task call, with coverage", "the same without", 0.003, "difference"),
    Goal("job", "job, submit → result", 'Jobs API running `python -c "import pydantic"`', 1.2),
    Goal("jobs-8", "8 jobs submitted together", "the same, raw", 1.2),
    Goal(
        "pytest-warm",
        "second pytest run on a warm cluster, one task test",
        '`python -c "import ray; ray.init(address)"` + bare pytest',
        1.2,
    ),
    Goal("pytest-n2", "`pytest -n 2`, 40 task tests of 0.5 s", "10 s + one connect", 1.2),
)
BY_NAME = {goal.name: goal for goal in GOALS}

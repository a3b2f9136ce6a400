"""The table of goals: what is measured, what it is compared with, and the limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["ratio", "difference", "value"]
Unit = Literal["s", "MB"]
# A result above this multiple of its goal fails the command with status 1. Less may be due to a busy machine.
GROSS = 3.0


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    Attributes:
        name: The name for `--only`.
        what: What is measured.
        against: The raw limit, measured alternately with it.
        limit: The maximum for the value that `kind` selects.
        kind: The value that counts: ours divided by the raw limit, ours minus the raw limit, or ours.
        unit: The unit of the measurement: seconds or megabytes (1000² bytes).
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
        "validate, call, restore environment and directory by hand",
        3,
    ),
    Goal("local-call-time", "the same, absolute time (SDK: 42 µs)", "as above", 25e-6, "value"),
    Goal("event", "one event (`ctx.log`) recorded", "appending a tuple to a list", 2e-6, "value"),
    Goal("run-plugin", "`run_plugin(path, …)`, local, repeated, files unchanged", "`LocalExecutor.execute`", 3),
    Goal("command", "`synapse plugin run … --mode local`, whole process", "`import pydantic, typer, yaml`", 1.5),
    Goal("help", "`synapse --help`", "`import typer`", 1.5),
    Goal(
        "pytest-unused",
        "pytest, one test that does not use the plugin",
        "the same without the plugin",
        0.015,
        "difference",
    ),
    Goal("pytest-1000", "1,000 local action tests", "1,000 plain tests that call the function", 1.5),
    Goal("pytest-memory", "peak memory of pytest, local mode", "bare pytest and pydantic", 15, "difference", "MB"),
    Goal(
        "cluster-ready",
        "cluster ready after pytest's start, task mode",
        "a process that calls `ray.init(include_dashboard=False)`",
        1.1,
    ),
    Goal("task-call", "warm task call, dict in, dict out", "Ray actor, round trip of the same dict", 1.2),
    Goal("task-events", "1,000 events in a task call, watched live", "the same call, unwatched", 1.3),
    Goal("task-50mb", "50 MB numpy result, task", "`ray.get` of the same array from an actor", 1.2),
    Goal(
        "task-50mb-memory",
        "growth of the Python heaps for it, in caller and worker",
        "as above",
        5,
        "difference",
        "MB",
    ),
    Goal("task-first", "first task call on a running cluster", "creating a raw actor and calling it", 1.5),
    Goal("task-coverage", "warm task call, with coverage", "the same without", 0.003, "difference"),
    Goal("task-patch", "warm task call, one function replaced by the test", "the same without", 1.3),
    Goal("job", "job, submit → result", 'Jobs API running `python -c "import pydantic"`', 1.2),
    Goal("jobs-8", "8 jobs submitted together", "the same, raw", 1.2),
    Goal(
        "pytest-warm",
        "second pytest run on a warm cluster, one task test",
        '`python -c "import ray; ray.init(address)"` + bare pytest',
        1.2,
    ),
    Goal("pytest-n2", "`pytest -n 2`, 40 task tests of 0.5 s", "10 s + one connect", 1.2),
    Goal("server-ready", "`synapse serve` ready", "a FastAPI application of one route, with uvicorn", 1.5),
    Goal(
        "remote-submit",
        "submit a job to `synapse serve`, until its id",
        "a FastAPI route that inserts one row in SQLite",
        2,
    ),
    Goal(
        "remote-call",
        "remote call, submit → result",
        'that route, and `python -c "import pydantic"`',
        1.5,
    ),
    Goal("remote-events", "1,000 events in a remote call, watched live", "the same call, unwatched", 1.3),
)
BY_NAME = {goal.name: goal for goal in GOALS}

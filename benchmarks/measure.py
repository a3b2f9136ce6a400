"""Measuring two things in turn, so that a busy machine slows both, and what came of it."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.goals import GROSS, Goal

Measurement = Callable[[], float]
# What speaks of whoever started us, not of what is measured. The first makes every start of Python slower.
_NOT_INHERITED = ("PYTHONDONTWRITEBYTECODE", "PYTEST_", "RAY_", "SYNAPSE_", "COV_CORE_", "COVERAGE_")
_INTERRUPT_SECONDS = 30.0


class BenchmarkFailed(Exception):
    """What was to be measured did not work."""


@dataclass(frozen=True)
class Pairs:
    """Measurements of ours and of the raw limit, the same number of each, made in turn.

    Attributes:
        ours: Seconds, or megabytes.
        raw: The same.
        figures: What else came out, by name.
    """

    ours: Sequence[float]
    raw: Sequence[float]
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A goal and what was measured for it."""

    goal: Goal
    pairs: Pairs

    @property
    def measures(self) -> list[float]:
        """What counts, for each pair: see `Goal.kind`."""
        pairs = list(zip(self.pairs.ours, self.pairs.raw, strict=True))
        if self.goal.kind == "ratio":
            return [ours / raw for ours, raw in pairs]
        if self.goal.kind == "difference":
            return [ours - raw for ours, raw in pairs]
        return list(self.pairs.ours)

    @property
    def median(self) -> float:
        """The median of what counts."""
        return statistics.median(self.measures)

    @property
    def spread(self) -> tuple[float, float]:
        """Between which two values the middle half of it lies."""
        if len(self.measures) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.measures, n=4, method="inclusive")
        return low, high

    @property
    def part_of_goal(self) -> float:
        """The median as a part of what it may be: up to 1 is good."""
        return self.median / self.goal.limit

    @property
    def is_met(self) -> bool:
        """Whether the goal is met."""
        return self.part_of_goal <= 1

    @property
    def is_gross(self) -> bool:
        """Whether even the better quarter of the rounds misses it by so much that it cannot be a busy machine.

        A mere time is never that: it may be due to a slow one.
        """
        return self.goal.kind != "value" and self.spread[0] / self.goal.limit > GROSS


def in_turn(ours: Measurement, raw: Measurement, rounds: int, *, warm_up: int = 1) -> Pairs:
    """Make both measurements, now one first and now the other.

    Args:
        ours: Measures ours once.
        raw: Measures the raw limit once.
        rounds: How often.
        warm_up: How many rounds before that do not count: they find cold caches.
    """
    both = (ours, raw)
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + warm_up):
        for which in (0, 1) if number % 2 else (1, 0):
            measured = both[which]()
            if number >= warm_up:
                taken[which].append(measured)
    return Pairs(*taken)


def per_call(function: Callable[[], object], calls: int = 1) -> Measurement:
    """Return what measures the seconds that one call takes, over so many calls."""

    def measure() -> float:
        started = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - started) / calls

    return measure


def growth_exponent(points: Sequence[tuple[float, float]]) -> float:
    """Return the power of the size by which the cost grows, over the upper half of the sizes.

    Below that, what is paid once hides it. 1 is linear; 0 does not grow.

    Args:
        points: Sizes and costs, by size.
    """
    logs = [(math.log(size), math.log(cost)) for size, cost in points[-max(len(points) // 2, 2) :]]
    return statistics.linear_regression(*zip(*logs, strict=True)).slope


def steepest_step(points: Sequence[tuple[float, float]]) -> float:
    """Return the greatest power between two sizes that follow each other: a cliff is far above 1."""
    pairs = itertools.pairwise(points)
    return max(math.log(more[1] / less[1]) / math.log(more[0] / less[0]) for less, more in pairs)


def child_environment(**more: str) -> dict[str, str]:
    """Return the environment of a process that is measured: nothing of ours, no plugin of pytest but those named."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
    # As in an environment that is activated: jobs of synapse-sdk run `python`.
    path = os.pathsep.join([os.path.dirname(sys.executable), kept.get("PATH", os.defpath)])
    return kept | {"PATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | more


def run(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> str:
    """Run a process to its end and return what it printed.

    Ctrl-C is handed on to it alone, once, and then waited for: it may have a cluster to end.

    Raises:
        BenchmarkFailed: Its status is not 0; has its output.
    """
    with subprocess.Popen(
        command,
        env=env,
        cwd=cwd,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_INTERRUPT_SECONDS)
            process.kill()
            raise
    if process.returncode:
        raise BenchmarkFailed(f"{' '.join(command)}\nended with status {process.returncode}:\n{output}")
    return output


def process_seconds(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> Measurement:
    """Return what measures how long a process takes, from its start to its end."""
    return per_call(lambda: run(command, env, cwd))

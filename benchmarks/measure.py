"""Measure two things alternately, so that a busy machine slows both, and evaluate the results."""

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
# Settings of the user's shell that would affect measured processes. The first makes every start of Python slower.
_NOT_INHERITED = ("PYTHONDONTWRITEBYTECODE", "PYTEST_", "RAY_", "SYNAPSE_", "COV_CORE_", "COVERAGE_")
_INTERRUPT_SECONDS = 30.0


class BenchmarkFailed(Exception):
    """The measured code failed."""


@dataclass(frozen=True)
class Pairs:
    """Alternating measurements of our code and of the raw limit, the same number of each.

    Attributes:
        ours: Seconds, or megabytes.
        raw: The same.
        figures: Additional figures, by name.
    """

    ours: Sequence[float]
    raw: Sequence[float]
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A goal and its measurements."""

    goal: Goal
    pairs: Pairs

    @property
    def measures(self) -> list[float]:
        """The value that counts, for each pair: see `Goal.kind`."""
        pairs = list(zip(self.pairs.ours, self.pairs.raw, strict=True))
        if self.goal.kind == "ratio":
            return [ours / raw for ours, raw in pairs]
        if self.goal.kind == "difference":
            return [ours - raw for ours, raw in pairs]
        return list(self.pairs.ours)

    @property
    def median(self) -> float:
        """The median of the values that count."""
        return statistics.median(self.measures)

    @property
    def spread(self) -> tuple[float, float]:
        """The interquartile range: its lower and upper end."""
        if len(self.measures) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.measures, n=4, method="inclusive")
        return low, high

    @property
    def part_of_goal(self) -> float:
        """The median divided by the goal's limit: up to 1 meets the goal."""
        return self.median / self.goal.limit

    @property
    def is_met(self) -> bool:
        """Whether the goal is met."""
        return self.part_of_goal <= 1

    @property
    def is_gross(self) -> bool:
        """Whether even the best quarter of the rounds misses the goal by more than a busy machine explains.

        Never true for absolute times, which may be due to a slow machine.
        """
        return self.goal.kind != "value" and self.spread[0] / self.goal.limit > GROSS


def in_turn(ours: Measurement, raw: Measurement, rounds: int, *, warm_up: int = 1) -> Pairs:
    """Make both measurements in each round, alternating which one is first.

    Args:
        ours: Measures our code once.
        raw: Measures the raw limit once.
        rounds: The number of rounds.
        warm_up: The number of rounds before that do not count, since their caches are cold.
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
    """Return a measurement of the seconds per call, averaged over a number of calls."""

    def measure() -> float:
        started = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - started) / calls

    return measure


def growth_exponent(points: Sequence[tuple[float, float]]) -> float:
    """Return the exponent with which the cost grows with the size, fitted to the larger half of the sizes.

    At smaller sizes, one-time costs hide the growth. 1 is linear, 0 is constant.

    Args:
        points: Sizes and costs, sorted by size.
    """
    logs = [(math.log(size), math.log(cost)) for size, cost in points[-max(len(points) // 2, 2) :]]
    return statistics.linear_regression(*zip(*logs, strict=True)).slope


def steepest_step(points: Sequence[tuple[float, float]]) -> float:
    """Return the largest exponent between two adjacent sizes: a cliff is far above 1."""
    pairs = itertools.pairwise(points)
    return max(math.log(more[1] / less[1]) / math.log(more[0] / less[0]) for less, more in pairs)


def child_environment(**more: str) -> dict[str, str]:
    """Return the environment of a measured process: without our variables, and without autoloaded pytest plugins."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
    # As in an activated virtual environment: jobs of synapse-sdk run `python`.
    path = os.pathsep.join([os.path.dirname(sys.executable), kept.get("PATH", os.defpath)])
    return kept | {"PATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | more


def run(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> str:
    """Run a process, wait for it and return its output.

    Ctrl-C is forwarded to it once, and then waited for, since it may have a cluster to shut down.

    Raises:
        BenchmarkFailed: Its exit status is not 0; the message contains its output.
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
        raise BenchmarkFailed(f"{' '.join(command)}\nexited with status {process.returncode}:\n{output}")
    return output


def process_seconds(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> Measurement:
    """Return a measurement of the time from a process's start to its exit."""
    return per_call(lambda: run(command, env, cwd))

"""The summary, at the end of a session, of the actions that its tests ran."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from synapse_runtime.modes import MODES

if TYPE_CHECKING:
    import pytest

    from pytest_synapse.run_reporting import TestRuns

_ORIGINS = {
    "ephemeral": "started for this run",
    "warm": "warm, see `synapse cluster status`",
    "this process's": "already connected in this process",
}


@dataclass
class Tally:
    """The totals of one mode.

    Attributes:
        run_count: The number of runs.
        error_count: The number of runs that ended with an error.
        action_seconds: The total time in actions.
        call_seconds: The total time in calls, from the call to its return.
    """

    run_count: int = 0
    error_count: int = 0
    action_seconds: float = 0.0
    call_seconds: float = 0.0


@dataclass
class Summary:
    """The sum of what the reports of a session contain.

    Attributes:
        modes: The runs of each mode.
        slowest: Seconds, mode, action name and test id of each of the slowest runs.
        backends: Kind, address and origin of each cluster or server.
        lines: Lines covered in workers, by file.
        refused: How many tests were skipped as remote mode cannot run them.
    """

    modes: dict[str, Tally] = field(default_factory=dict)
    slowest: list[tuple[float, str, str, str]] = field(default_factory=list)
    backends: list[tuple[str, str, str]] = field(default_factory=list)
    lines: dict[str, set[int]] = field(default_factory=dict)
    refused: int = 0

    def add(self, test: str, runs: TestRuns) -> None:
        """Add the runs of one report."""
        tally = self.modes.setdefault(runs["mode"], Tally())
        tally.run_count += runs["run_count"]
        tally.error_count += runs["error_count"]
        tally.action_seconds += runs["action_seconds"]
        tally.call_seconds += runs["call_seconds"]
        self.slowest += [(seconds, runs["mode"], action, test) for seconds, action in runs["slowest"]]
        self.backends += [backend for backend in runs["backends"] if backend not in self.backends]
        for file, lines in runs["lines"].items():
            self.lines.setdefault(file, set()).update(lines)

    def line(self) -> str:
        """Return the summary as one line."""
        modes = []
        for mode, tally in self._ordered():
            errors = f" ({tally.error_count} raised)" if tally.error_count else ""
            modes.append(f"{mode} {_times(tally.run_count, 'run')}{errors}, {duration(tally.action_seconds)}")
        if self.refused:
            modes.append(f"{_times(self.refused, 'test')} skipped in remote mode")
        return f"synapse: {'; '.join(modes)}"

    def block(self, slowest: int | None) -> Iterator[str]:
        """Yield the lines of the block, with this many of the slowest runs: 0 for all, None for none."""
        yield f"{'mode':<7}{'runs':>7}{'raised':>8}{'action time':>14}{'call time':>14}"
        for mode, tally in self._ordered():
            times = f"{duration(tally.action_seconds):>14}{duration(tally.call_seconds):>14}"
            yield f"{mode:<7}{tally.run_count:>7}{tally.error_count:>8}{times}"
        for kind, address, origin in self.backends:
            yield f"{kind}: {address} ({_ORIGINS.get(origin, origin)})"
        if self.refused:
            yield f"remote: {_times(self.refused, 'test')} skipped, as a backend cannot run them: -rs shows why"
        if self.lines:
            lines = _times(sum(map(len, self.lines.values())), "line")
            yield f"coverage: {lines} of {_times(len(self.lines), 'file')} collected from workers"
        if slowest is not None and self.slowest:
            yield ""
            shown = sorted(self.slowest, key=lambda run: -run[0])[: slowest or None]
            yield f"slowest {_times(len(shown), 'run')}:"
            width = max(len(action) for _, _, action, _ in shown)
            for seconds, mode, action, test in shown:
                yield f"{duration(seconds):>9} {mode:<7}{action:<{width}}  {test}"

    def _ordered(self) -> list[tuple[str, Tally]]:
        return [(mode, self.modes[mode]) for mode in MODES if mode in self.modes]


def summarize(
    reporter: pytest.TerminalReporter, runs: Iterable[tuple[str, TestRuns]], slowest: int | None, *, refused: int = 0
) -> None:
    """Write the summary: a block, or one line with -q or if only local mode ran and no details are requested.

    Args:
        reporter: Writes the summary.
        runs: The runs of each report, with the test's id.
        slowest: How many of the slowest runs to show: 0 for all, None for none.
        refused: How many tests were skipped as remote mode cannot run them.
    """
    summary = Summary(refused=refused)
    for test, part in runs:
        summary.add(test, part)
    verbosity = reporter.config.get_verbosity()
    brief = set(summary.modes) == {"local"} and slowest is None and verbosity == 0
    if verbosity < 0 or brief:
        reporter.write_sep("=", summary.line())
        return
    reporter.write_sep("=", "synapse actions")
    for line in summary.block(slowest):
        reporter.write_line(line)


def duration(seconds: float) -> str:
    """Format a duration in milliseconds or seconds."""
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def _times(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

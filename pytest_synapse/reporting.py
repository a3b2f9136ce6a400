"""What a session tells at its end of the actions that its tests have run."""

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
    "this process's": "this process was connected to it",
}


@dataclass
class Tally:
    """The runs of one mode, counted; `raised` ended in an error, `waited` is seconds from the call to the run."""

    count: int = 0
    raised: int = 0
    seconds: float = 0.0
    waited: float = 0.0


@dataclass
class Summary:
    """What reports have told, added up.

    Attributes:
        modes: The runs of each mode.
        slowest: Of the slowest runs, seconds, mode, the action's name and the test's id.
        backends: Kind, address and origin of each cluster or server.
        lines: Lines that workers' coverage has brought, by file.
    """

    modes: dict[str, Tally] = field(default_factory=dict)
    slowest: list[tuple[float, str, str, str]] = field(default_factory=list)
    backends: list[tuple[str, str, str]] = field(default_factory=list)
    lines: dict[str, set[int]] = field(default_factory=dict)

    def add(self, test: str, told: TestRuns) -> None:
        """Add what a report tells."""
        tally = self.modes.setdefault(told["mode"], Tally())
        tally.count += told["count"]
        tally.raised += told["raised"]
        tally.seconds += told["seconds"]
        tally.waited += told["waited"]
        self.slowest += [(seconds, told["mode"], action, test) for seconds, action in told["slowest"]]
        self.backends += [backend for backend in told["backends"] if backend not in self.backends]
        for file, lines in told["lines"].items():
            self.lines.setdefault(file, set()).update(lines)

    def line(self) -> str:
        """Return everything in one line."""
        modes = []
        for mode, tally in self._ordered():
            raised = f" ({tally.raised} raised)" if tally.raised else ""
            modes.append(f"{mode} {_times(tally.count, 'run')}{raised}, {duration(tally.seconds)}")
        return f"synapse: {'; '.join(modes)}"

    def block(self, slowest: int | None) -> Iterator[str]:
        """Yield the lines of the block, with so many of the slowest runs: 0 for all, None for none."""
        yield f"{'mode':<6}{'runs':>8}{'raised':>8}{'in actions':>14}{'in calls':>14}"
        for mode, tally in self._ordered():
            times = f"{duration(tally.seconds):>14}{duration(tally.waited):>14}"
            yield f"{mode:<6}{tally.count:>8}{tally.raised:>8}{times}"
        for kind, address, origin in self.backends:
            yield f"{kind}: {address} ({_ORIGINS.get(origin, origin)})"
        if self.lines:
            lines = _times(sum(map(len, self.lines.values())), "line")
            yield f"coverage: {lines} of {_times(len(self.lines), 'file')} came from workers"
        if slowest is not None and self.slowest:
            yield ""
            shown = sorted(self.slowest, key=lambda run: -run[0])[: slowest or None]
            yield f"slowest {_times(len(shown), 'run')}:"
            width = max(len(action) for _, _, action, _ in shown)
            for seconds, mode, action, test in shown:
                yield f"{duration(seconds):>9} {mode:<6}{action:<{width}}  {test}"

    def _ordered(self) -> list[tuple[str, Tally]]:
        return [(mode, self.modes[mode]) for mode in MODES if mode in self.modes]


def summarize(reporter: pytest.TerminalReporter, told: Iterable[tuple[str, TestRuns]], slowest: int | None) -> None:
    """Write the summary: a block, or one line with -q, and where only local mode ran and no more is asked for.

    Args:
        reporter: Where to.
        told: What reports tell, each with its test's id.
        slowest: How many of the slowest runs to show: 0 for all, None for none.
    """
    summary = Summary()
    for test, part in told:
        summary.add(test, part)
    verbosity = reporter.config.get_verbosity()
    modest = set(summary.modes) == {"local"} and slowest is None and verbosity == 0
    if verbosity < 0 or modest:
        reporter.write_sep("=", summary.line())
        return
    reporter.write_sep("=", "synapse actions")
    for line in summary.block(slowest):
        reporter.write_line(line)


def duration(seconds: float) -> str:
    """Return a time in the unit that it reads best in."""
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def _times(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

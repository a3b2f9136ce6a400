"""Loggers: where events go while an action runs. The console shows live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from synapse_runtime.events import Event, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


_REDRAW_SECONDS = 0.1


class Logger(Protocol):
    """A sink for events. Called in the order in which the action said them."""

    def event(self, event: Event) -> None:
        """Take one event."""

    def finish(self) -> None:
        """The action has ended: let go of the screen. More events may follow, of a next action."""


class NullLogger:
    """A sink that drops everything, for callers that read `ActionRun.events` instead."""

    def event(self, event: Event) -> None:
        """Drop the event."""

    def finish(self) -> None:
        """Nothing to end."""


class ConsoleLogger:
    """Show events to a person: live progress bars on a terminal, one plain line each elsewhere.

    Args:
        stream: Where to write. None: the `sys.stdout` of the moment, so that capturing works.

    Example:
        >>> console = ConsoleLogger()
        >>> console.event(Event("metrics", data={"loss": 0.25}, step="training", time=0.0))
        ... # doctest: +ELLIPSIS
        [...] training: loss=0.25
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._percent: dict[str, int] = {}
        self._unfinished = ""
        self._drawn = 0.0

    def event(self, event: Event) -> None:
        """Show one event."""
        stream = self._stream or sys.stdout
        if event.kind == "progress" and stream.isatty():
            self._draw_bar(event, stream)
            return
        if event.kind == "progress" and not self._worth_a_line(event):
            return
        line = format_event(event)
        if self._bars is not None:
            self._print_above(line)
        else:
            stream.write(line + "\n")
            stream.flush()

    def output(self, stream: str, text: str) -> None:
        """Show what a worker printed.

        Args:
            stream: `stdout` or `stderr`.
            text: Any text, with or without an end of line.
        """
        if self._bars is not None:
            # The bars stand below the text: an unfinished line would be drawn over, so its end is waited for.
            lines, newline, self._unfinished = (self._unfinished + text).rpartition("\n")
            if newline:
                self._print_above(lines)
        else:
            target = self._stream or (sys.stdout if stream == "stdout" else sys.stderr)
            target.write(text)
            target.flush()

    def finish(self) -> None:
        """End the bars, if any; they stay on the screen as they stand."""
        if self._bars is not None:
            if self._unfinished:
                self._print_above(self._unfinished)
            self._bars.refresh()
            self._bars.stop()
        self._bars = None
        self._unfinished = ""
        self._tasks.clear()
        self._percent.clear()

    def _print_above(self, text: str) -> None:
        """Print text as it is above the bars."""
        assert self._bars is not None
        self._bars.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _draw_bar(self, event: Event, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        if self._bars is None:
            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(file=stream),
                # Drawn when there is news only, and no stream is replaced: a debugger's prompt stays undisturbed.
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bars.start()
        name = event.step or "progress"
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=event.data["total"])
        current, total = event.data["current"], event.data["total"]
        self._bars.update(self._tasks[name], completed=current, total=total)
        now = time.monotonic()
        if current >= total or now - self._drawn >= _REDRAW_SECONDS:
            self._bars.refresh()
            self._drawn = now

    def _worth_a_line(self, event: Event) -> bool:
        """Keep a log readable: at most one line for each percent of a step."""
        percent = int(Progress(event.data["current"], event.data["total"]).percent)
        name = event.step or ""
        if self._percent.get(name) == percent:
            return False
        self._percent[name] = percent
        return True


def format_event(event: Event) -> str:
    """Return the event as one line of text, with its time of day.

    Example:
        >>> format_event(Event("progress", data={"current": 1, "total": 4}, step="train", time=0.0))[11:]
        'train: 1/4 (25%)'
    """
    clock = time.strftime("%H:%M:%S", time.localtime(event.time))
    level = "" if event.level == "info" else f"{event.level.upper()} "
    return f"[{clock}] {level}{_text(event)}"


def _text(event: Event) -> str:
    if event.kind == "progress":
        current, total = event.data["current"], event.data["total"]
        return f"{event.step or 'progress'}: {current}/{total} ({Progress(current, total).percent:.0f}%)"
    if event.kind == "metrics":
        return f"{event.step}: {_pairs(event.data)}"
    if event.kind == "message":
        return event.name
    text = f"{event.name} {_pairs(event.data)}".rstrip()
    return f"{text} [{event.file}]" if event.file else text


def _pairs(data: Any) -> str:
    return " ".join(f"{key}={_short(value)}" for key, value in data.items())


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)

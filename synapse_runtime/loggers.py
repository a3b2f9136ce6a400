"""Loggers: sinks for the events of an action. The console logger shows progress bars on a terminal, else lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from synapse_runtime.events import Event, Progress, progress_event
from synapse_runtime.messages import LogLevel

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["BaseLogger", "ConsoleLogger", "Logger", "NullLogger", "ProgressData"]


_REDRAW_SECONDS = 0.1
_LEVELS = frozenset(level.value for level in LogLevel)


class Logger(Protocol):
    """A sink for events. Called in the order in which the action emits them."""

    def event(self, event: Event) -> None:
        """Handle an event."""

    def finish(self) -> None:
        """Called when the action has ended: release the terminal. Events of another action may follow."""


@dataclass
class ProgressData:
    """Progress of a step.

    Attributes:
        percent: From 0 to 100.
        time_remaining: Estimated remaining seconds; None at 0 percent.
        elapsed_time: Seconds since it started.
        status: `running` or `failed`.
    """

    percent: float
    time_remaining: float | None = None
    elapsed_time: float | None = None
    status: str = "running"


class BaseLogger:
    """Base class of loggers that have the logging methods of a context. Override its hooks, or only `event`.

    Example:
        >>> class Recorder(BaseLogger):
        ...     def _log_impl(self, event, data, file, step, level=None):
        ...         print(level.value, event, data)
        >>> Recorder().warning("disk is full")
        warning message {'content': 'disk is full'}
    """

    def __init__(self) -> None:
        self._step: str | None = None
        self._started_at: dict[str | None, float] = {}
        self._progress: dict[str | None, ProgressData] = {}
        self._metrics: dict[str, dict[str, Any]] = {}

    def event(self, event: Event) -> None:
        """Handle an event."""
        if event.kind == "progress":
            self._progress[event.step] = self._measure(event)
            self._on_progress(self._progress[event.step], event.step)
        elif event.kind == "metrics":
            known = self._metrics.setdefault(str(event.step), {})
            known.update(event.data)
            self._on_metrics(str(event.step), known)
        else:
            is_message = event.kind == "message"
            name, data = ("message", {"content": event.name, **event.data}) if is_message else (event.name, event.data)
            level = LogLevel(event.level) if event.level in _LEVELS else LogLevel.INFO
            self._log_impl(name, dict(data), event.file, event.step, level)

    def finish(self) -> None:
        """Called when the action has ended."""
        self._on_finish()

    def log(
        self,
        level: LogLevel | str,
        event: str,
        data: Mapping[str, Any],
        file: str | None = None,
        step: str | None = None,
    ) -> None:
        """Log an event with a level, a name, data, a file, and the step that it belongs to."""
        self.event(Event("log", event, dict(data), LogLevel(level).value, step or self._step, file))

    def debug(self, message: str) -> None:
        """Log a message with level `debug`."""
        self._emit_message(message, "debug")

    def info(self, message: str) -> None:
        """Log a message with level `info`."""
        self._emit_message(message, "info")

    def warning(self, message: str) -> None:
        """Log a message with level `warning`."""
        self._emit_message(message, "warning")

    def error(self, message: str) -> None:
        """Log a message with level `error`."""
        self._emit_message(message, "error")

    def critical(self, message: str) -> None:
        """Log a message with level `critical`."""
        self._emit_message(message, "critical")

    def set_progress(self, current: float, total: float, step: str | None = None) -> None:
        """Report the progress of a step, by default that of `set_step`."""
        self.event(progress_event(current, total, step or self._step))

    def set_progress_failed(self, step: str | None = None) -> None:
        """Report that a step has failed; without a step, the run as a whole, even after `set_step`, as in the SDK."""
        known = self._progress.get(step)
        elapsed = None if known is None else known.elapsed_time
        self._progress[step] = ProgressData(0.0, elapsed_time=elapsed, status="failed")
        self._on_progress(self._progress[step], step)

    def set_metrics(self, value: Mapping[str, Any], step: str | None = None) -> None:
        """Report metrics of a step, by default that of `set_step`."""
        step = step or self._step
        if not step:
            raise ValueError("set_metrics needs the name of a step, or set_step before it")
        self.event(Event("metrics", "", dict(value), step=step))

    def set_step(self, step: str | None, order: int | None = None) -> None:
        """Set the default step of the following events; `order` is ignored here, and used by other loggers."""
        self._step = step

    def get_step(self) -> str | None:
        """Return the step of `set_step`."""
        return self._step

    def get_progress(self, step: str | None = None) -> ProgressData | None:
        """Return the progress of a step; None if it has not reported any."""
        return self._progress.get(step)

    def get_metrics(self, step: str | None = None) -> dict[str, Any]:
        """Return the latest metrics of a step; without a step, those of all steps by name."""
        return dict(self._metrics.get(step, {})) if step else {name: dict(of) for name, of in self._metrics.items()}

    def _log_impl(
        self, event: str, data: dict[str, Any], file: str | None, step: str | None, level: LogLevel | None = None
    ) -> None:
        """Called with each event and message; a message has the name `message` and its text in `data["content"]`."""

    def _on_progress(self, progress: ProgressData, step: str | None) -> None:
        """Called with the progress of a step."""

    def _on_metrics(self, step: str, metrics: dict[str, Any]) -> None:
        """Called with the latest metrics of a step."""

    def _on_finish(self) -> None:
        """Called when the action has ended."""

    def _emit_message(self, message: str, level: str) -> None:
        self.event(Event("message", str(message), level=level, step=self._step))

    def _measure(self, event: Event) -> ProgressData:
        current, total = event.data["current"], event.data["total"]
        now = time.monotonic()
        if current == 0:
            self._started_at[event.step] = now
        elapsed = now - self._started_at.setdefault(event.step, now)
        remaining = round(elapsed / current * (total - current), 2) if current else None
        return ProgressData(round(Progress(current, total).percent, 2), remaining, round(elapsed, 2))


class NullLogger(BaseLogger):
    """A sink that discards all events, for callers that read `ActionRun.events` instead."""

    def event(self, event: Event) -> None:
        """Discard the event."""


class ConsoleLogger(BaseLogger):
    """Show events to the user: progress bars on a terminal, elsewhere one plain line for each event.

    Args:
        stream: The stream to write to. None for the current `sys.stdout` at each event, so that capturing works.
        debug: Whether to show events of level `debug`.

    Example:
        >>> console = ConsoleLogger()
        >>> console.event(Event("metrics", data={"loss": 0.25}, step="training", time=0.0))
        ... # doctest: +ELLIPSIS
        [...] training: loss=0.25
    """

    def __init__(self, stream: TextIO | None = None, *, debug: bool = True) -> None:
        super().__init__()
        self._stream = stream
        self._debug = debug
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._percent: dict[str, int] = {}
        self._unfinished = ""
        self._drawn = 0.0

    def event(self, event: Event) -> None:
        """Show one event."""
        if event.level == "debug" and not self._debug:
            return
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
            # The bars are drawn below the text and would overwrite an unfinished line, so it is buffered.
            lines, newline, self._unfinished = (self._unfinished + text).rpartition("\n")
            if newline:
                self._print_above(lines)
        else:
            target = self._stream or (sys.stdout if stream == "stdout" else sys.stderr)
            target.write(text)
            target.flush()

    def finish(self) -> None:
        """Stop the progress bars, if any; they stay on the screen in their last state."""
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
        """Print text without markup above the bars."""
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
                # Redrawn only at events, and no stream is replaced, so that a debugger's prompt is not disturbed.
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
        """Return whether to print progress as a line: at most once for each percent of a step."""
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

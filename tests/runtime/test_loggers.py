"""The console: bars on a terminal, lines elsewhere; and the capture of a worker's output."""

from __future__ import annotations

import io

from synapse_runtime.events import Event
from synapse_runtime.loggers import ConsoleLogger


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress(current: int, total: int) -> Event:
    return Event("progress", data={"current": current, "total": total}, step="epochs")


def test_elsewhere_each_event_is_a_line():
    stream = io.StringIO()
    console = ConsoleLogger(stream)
    console.event(Event("log", "epoch_complete", {"epoch": 1, "loss": 0.123456789}, file="w.npz"))
    console.event(Event("message", "careful", level="warning"))
    console.event(progress(1, 4))
    lines = [line[11:] for line in stream.getvalue().splitlines()]
    assert lines == ["epoch_complete epoch=1 loss=0.123457 [w.npz]", "WARNING careful", "epochs: 1/4 (25%)"]


def test_a_hundred_thousand_steps_are_a_hundred_lines():
    stream = io.StringIO()
    console = ConsoleLogger(stream)
    for step in range(1, 100_001):
        console.event(progress(step, 100_000))
    assert len(stream.getvalue().splitlines()) == 101


def test_on_a_terminal_progress_is_a_bar_and_ends_complete():
    stream = Terminal()
    console = ConsoleLogger(stream)
    for step in range(1, 4):
        console.event(progress(step, 3))
    console.output("stdout", "printed\n")
    console.finish()
    assert "━" in stream.getvalue()
    assert "3/3" in stream.getvalue()
    assert "printed\n" in stream.getvalue()

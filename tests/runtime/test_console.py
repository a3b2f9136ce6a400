"""Tests for the console: lines, bars, and output between them."""

from __future__ import annotations

import io
import os
import pty
import re
import sys
import threading
import time

import pytest

from synapse_runtime.events import Event
from synapse_runtime.loggers import ConsoleLogger, NullLogger, format_event
from tests.patience import patience

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        return ESCAPES.sub("", self.getvalue())


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def progress(current: float, total: float, step: str | None = "train") -> Event:
    return Event("progress", data={"current": current, "total": total}, step=step)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Event("log", "epoch", {"n": 1, "loss": 0.123456789}), "epoch n=1 loss=0.123457"),
        (Event("log", "saved", file="w.npz"), "saved [w.npz]"),
        (Event("log", "odd", level="warning"), "WARNING odd"),
        (Event("message", "[bold]not markup[/bold]", level="error"), "ERROR [bold]not markup[/bold]"),
        (Event("metrics", data={"a": 1, "b": "x"}, step="check"), "check: a=1 b=x"),
        (progress(1, 3), "train: 1/3 (33%)"),
        (progress(2, 3, None), "progress: 2/3 (67%)"),
    ],
)
def test_each_event_is_one_line_with_its_time(event, line):
    stream = io.StringIO()
    ConsoleLogger(stream).event(event)
    clock = time.strftime("%H:%M:%S", time.localtime(event.time))
    assert stream.getvalue() == f"[{clock}] {line}\n"
    assert format_event(event) == f"[{clock}] {line}"


def test_lines_go_to_the_current_sys_stdout(capsys):
    console = ConsoleLogger()
    console.event(Event("message", "hello"))
    console.output("stderr", "to stderr")
    console.output("stdout", "to stdout")
    captured = capsys.readouterr()
    assert captured.out.endswith("hello\nto stdout")
    assert captured.err == "to stderr"


def test_no_bar_and_no_escape_sequences_without_a_terminal():
    stream = io.StringIO()
    console = ConsoleLogger(stream)
    for current in range(1, 5):
        console.event(progress(current, 4))
    console.finish()
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 4


def test_each_step_and_each_run_has_its_own_lines():
    stream = io.StringIO()
    console = ConsoleLogger(stream)
    for event in (progress(1, 2, "a"), progress(1, 2, "b"), progress(1, 2, "a")):
        console.event(event)
    console.finish()
    console.event(progress(1, 2, "a"))
    assert [line[11:] for line in stream.getvalue().splitlines()] == ["a: 1/2 (50%)", "b: 1/2 (50%)", "a: 1/2 (50%)"]


def test_each_step_has_a_bar_that_stays_in_its_last_state(terminal):
    console = ConsoleLogger(terminal)
    for current in range(1, 4):
        console.event(progress(current, 4, "load"))
        console.event(progress(current, 3, "train"))
    console.finish()
    last = terminal.text.rsplit("load", 1)[1]
    assert "3/4" in last
    assert "3/3" in last
    assert terminal.getvalue().endswith("\x1b[?25h"), "the cursor is shown again"


def test_other_events_are_printed_above_the_bars(terminal):
    console = ConsoleLogger(terminal)
    console.event(progress(1, 4))
    console.event(Event("message", "half way :smile: [red]plain[/red] " + "x" * 300))
    console.event(progress(4, 4))
    console.finish()
    assert "half way :smile: [red]plain[/red] " + "x" * 300 + "\n" in terminal.text


def test_output_is_printed_unchanged_above_the_bars(terminal):
    console = ConsoleLogger(terminal)
    console.event(progress(1, 4))
    console.output("stdout", "loss :fire: [bold]1[/bold]\n")
    assert "loss :fire: [bold]1[/bold]\n" in terminal.text


def test_unfinished_line_is_buffered_so_that_no_bar_overwrites_it(terminal):
    console = ConsoleLogger(terminal)
    console.event(progress(1, 4))
    console.output("stdout", "one\ntwo, ")
    console.output("stderr", "still two")
    assert "one\n" in terminal.text
    console.event(progress(4, 4))
    console.output("stdout", ".\nthree")
    assert "two, still two.\n" in terminal.text
    assert "three" not in terminal.text
    console.finish()
    assert "three\n" in terminal.text


def test_lines_are_printed_again_after_finish_until_the_next_progress(terminal):
    console = ConsoleLogger(terminal)
    console.event(progress(1, 4))
    console.finish()
    console.finish()
    before = terminal.getvalue()
    console.output("stdout", "plain")
    console.event(Event("message", "next"))
    assert re.fullmatch(r"plain\[..:..:..\] next\n", terminal.getvalue().removeprefix(before))
    console.event(progress(1, 9))
    console.finish()
    assert "1/9" in terminal.text


def test_bar_is_redrawn_at_most_ten_times_a_second(terminal):
    console = ConsoleLogger(terminal)
    for current in range(20_000):
        console.event(progress(current, 20_000))
    console.finish()
    assert terminal.text.count("train") < 200


def test_real_terminal_shows_a_bar_and_standard_streams_are_not_replaced(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    parent, child = pty.openpty()
    received = bytearray()

    def read() -> None:
        while True:
            try:
                data = os.read(parent, 4096)
            except OSError:  # Linux's end of file for a terminal
                return
            if not data:
                return
            received.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    streams = sys.stdout, sys.stderr
    with open(child, "w", encoding="utf-8") as stream:
        console = ConsoleLogger(stream)
        console.event(progress(1, 2))
        assert (sys.stdout, sys.stderr) == streams
        console.event(progress(2, 2))
        console.finish()
    reader.join(patience(10))
    os.close(parent)
    text = ESCAPES.sub("", received.decode())
    assert "train ━" in text
    assert "2/2" in text


def test_null_logger_prints_nothing(capsys):
    logger = NullLogger()
    logger.event(Event("message", "hello"))
    logger.finish()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")

"""Tests for loggers: the console's bars and lines, and custom loggers."""

from __future__ import annotations

import io

import pytest

from synapse_runtime.context import PluginEnvironment, RuntimeContext
from synapse_runtime.decorators import action
from synapse_runtime.events import Event
from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.loggers import BaseLogger, ConsoleLogger
from synapse_runtime.messages import LogLevel


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress(current: int, total: int) -> Event:
    return Event("progress", data={"current": current, "total": total}, step="epochs")


def test_each_event_is_a_line_without_a_terminal():
    stream = io.StringIO()
    console = ConsoleLogger(stream)
    console.event(Event("log", "epoch_complete", {"epoch": 1, "loss": 0.123456789}, file="w.npz"))
    console.event(Event("message", "careful", level="warning"))
    console.event(progress(1, 4))
    lines = [line[11:] for line in stream.getvalue().splitlines()]
    assert lines == ["epoch_complete epoch=1 loss=0.123457 [w.npz]", "WARNING careful", "epochs: 1/4 (25%)"]


def test_progress_of_many_steps_prints_a_line_per_percent():
    stream = io.StringIO()
    console = ConsoleLogger(stream)
    for step in range(1, 100_001):
        console.event(progress(step, 100_000))
    assert len(stream.getvalue().splitlines()) == 101


def test_progress_on_a_terminal_is_a_bar_that_ends_complete():
    stream = Terminal()
    console = ConsoleLogger(stream)
    for step in range(1, 4):
        console.event(progress(step, 3))
    console.output("stdout", "printed\n")
    console.finish()
    assert "━" in stream.getvalue()
    assert "3/3" in stream.getvalue()
    assert "printed\n" in stream.getvalue()


class Recorder(BaseLogger):
    """A logger as in tests of plugins."""

    def __init__(self):
        super().__init__()
        self.received = []

    def _log_impl(self, event, data, file, step, level=None):
        self.received.append((event, data, file, step, level))

    def _on_progress(self, progress, step):
        self.received.append((progress.percent, progress.status, step))

    def _on_metrics(self, step, metrics):
        self.received.append((step, dict(metrics)))

    def _on_finish(self):
        self.received.append("finished")


def test_custom_logger_receives_all_events():
    logger = Recorder()
    logger.log(LogLevel.WARNING, "saved", {"n": 1}, "a.txt", "s")
    logger.info("hello")
    logger.set_progress(1, 4, "load")
    logger.set_progress_failed("load")
    logger.set_metrics({"loss": 2}, "train")
    logger.set_metrics({"accuracy": 1}, "train")
    logger.finish()
    assert logger.received == [
        ("saved", {"n": 1}, "a.txt", "s", LogLevel.WARNING),
        ("message", {"content": "hello"}, None, None, LogLevel.INFO),
        (25.0, "running", "load"),
        (0.0, "failed", "load"),
        ("train", {"loss": 2}),
        ("train", {"loss": 2, "accuracy": 1}),
        "finished",
    ]
    assert logger.get_progress("load").status == "failed"
    assert logger.get_progress() is None
    assert logger.get_metrics() == {"train": logger.get_metrics("train")} == {"train": {"loss": 2, "accuracy": 1}}


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical"])
def test_each_level_has_a_method(level):
    logger = Recorder()
    getattr(logger, level)("m")
    assert logger.received == [("message", {"content": "m"}, None, None, LogLevel(level))]


def test_events_after_set_step_belong_to_it():
    logger = Recorder()
    logger.set_step("load", 1)
    logger.info("m")
    logger.set_progress(1, 2)
    logger.set_metrics({"n": 1})
    assert logger.get_step() == "load"
    assert [item[3] if len(item) == 5 else item[-1] for item in logger.received] == ["load", "load", {"n": 1}]
    logger.set_step(None)
    with pytest.raises(ValueError, match="set_metrics needs the name of a step"):
        logger.set_metrics({"n": 1})


@pytest.mark.parametrize(("current", "total"), [(1, 0), (-1, 2), (3, 2)])
def test_logger_rejects_progress_out_of_range(current, total):
    with pytest.raises(ValueError, match="total must be positive, and current between 0 and total"):
        Recorder().set_progress(current, total)


def test_context_emits_to_its_logger():
    logger = Recorder()
    ctx = RuntimeContext(logger, PluginEnvironment({}))
    assert ctx.logger is logger
    ctx.log_message("{n} files", LogLevel.SUCCESS, n=2)
    ctx.log("read", {"n": 2})
    ctx.set_metrics({"n": 2}, "read")
    ctx.logger.error("oh")
    assert [item[0] for item in logger.received] == ["message", "read", "read", "message"]
    assert logger.received[0] == ("message", {"content": "2 files"}, None, None, LogLevel.SUCCESS)


def test_executor_emits_to_its_logger():
    @action
    def speak(params, context):
        context.logger.warning("w")
        context.log("l", {"a": 1})

    logger = Recorder()
    LocalExecutor(logger=logger).execute(speak)
    assert [item[0] for item in logger.received[:2]] == ["message", "l"]
    assert logger.received[-1] == "finished"

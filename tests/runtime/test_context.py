"""`RuntimeContext`: everything that an action may say, and how each word arrives."""

from __future__ import annotations

import enum
import logging
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from synapse_runtime.context import PluginEnvironment, RuntimeContext
from synapse_runtime.events import Event


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def ctx(events) -> RuntimeContext:
    return RuntimeContext(events.append, {"A": "1"}, "job-1", name="train")


class Level(enum.Enum):
    WARNING = "WARNING"


def test_it_knows_environment_and_job(ctx):
    assert isinstance(ctx.env, PluginEnvironment)
    assert ctx.env.get_int("A") == 1
    assert ctx.job_id == "job-1"


def test_an_environment_is_taken_as_it_is():
    env = PluginEnvironment({"A": 1})
    assert RuntimeContext(print, env).env is env


def test_log_records_name_data_file_level_and_step(ctx, events):
    ctx.log("saved", {"epoch": 3}, Path("model.bin"), level=Level.WARNING, step="train")
    assert events == [Event("log", "saved", {"epoch": 3}, "warning", "train", "model.bin")]


def test_log_needs_no_more_than_a_name(ctx, events):
    ctx.log("started")
    assert events == [Event("log", "started", {}, "info", None, None)]


def test_data_says_what_was_true_then(ctx, events):
    losses = [0.5]
    ctx.log("epoch", {"losses": losses})
    ctx.set_metrics({"losses": losses}, "train")
    losses.append(0.2)
    assert [event.data for event in events] == [{"losses": [0.5]}, {"losses": [0.5]}]


def test_data_that_cannot_be_copied_is_kept_as_text(ctx, events):
    lock = threading.Lock()
    ctx.log("locked", {"lock": lock, "n": 1})
    assert events[0].data == {"lock": repr(lock), "n": 1}
    assert pickle.loads(pickle.dumps(events[0])) == events[0]


def test_names_of_data_are_text(ctx, events):
    ctx.log("counts", {1: "one", None: "none"})
    assert events[0].data == {"1": "one", "None": "none"}


def test_progress_records_how_far_and_of_what(ctx, events):
    ctx.set_progress(1, 10)
    ctx.set_progress(0.5, 1.5, "upload")
    ctx.set_progress(10, 10)
    assert [(event.kind, event.data, event.step) for event in events] == [
        ("progress", {"current": 1, "total": 10}, None),
        ("progress", {"current": 0.5, "total": 1.5}, "upload"),
        ("progress", {"current": 10, "total": 10}, None),
    ]


@pytest.mark.parametrize(
    ("current", "total"), [(0, 0), (1, -1), (-1, 10), (11, 10), (float("nan"), 1), (0, float("nan"))]
)
def test_progress_outside_its_bounds_is_refused(ctx, events, current, total):
    with pytest.raises(ValueError, match=r"set_progress\(.*\): current must be between 0 and total, total above 0"):
        ctx.set_progress(current, total)
    assert events == []


def test_metrics_belong_to_a_step(ctx, events):
    ctx.set_metrics({"loss": 0.25}, "training")
    assert events == [Event("metrics", "", {"loss": 0.25}, step="training")]


@pytest.mark.parametrize("step", ["", None, 3])
def test_metrics_without_the_name_of_a_step_are_refused(ctx, events, step):
    with pytest.raises(ValueError, match="set_metrics needs the name of a step"):
        ctx.set_metrics({"loss": 1}, step)
    assert events == []


def test_metrics_must_be_a_mapping(ctx):
    with pytest.raises(TypeError, match="set_metrics needs a dict of names and values, not list"):
        ctx.set_metrics([1], "training")


def test_a_message_is_text_or_a_template_with_values(ctx, events):
    ctx.log_message("50 {percent}")
    ctx.log_message("{n} images", "WARNING", step="load", n=3)
    assert events == [
        Event("message", "50 {percent}"),
        Event("message", "3 images", level="warning", step="load"),
    ]


def test_the_logger_speaks_in_events_and_to_logging_alike(ctx, events, caplog):
    with caplog.at_level(logging.DEBUG):
        ctx.logger.debug("at %d", 1)
        ctx.logger.error("lost %s", "it")
    assert events == [Event("message", "at 1", level="debug"), Event("message", "lost it", level="error")]
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("synapse.train", "at 1"),
        ("synapse.train", "lost it"),
    ]


def test_the_logger_shows_the_exception_it_was_called_for(ctx, events, caplog):
    try:
        raise KeyError("epochs")
    except KeyError:
        ctx.logger.exception("it broke")
    assert events[0].name.startswith("it broke\nTraceback (most recent call last):\n")
    assert events[0].name.endswith("KeyError: 'epochs'")


def test_events_of_all_kinds_keep_their_order(ctx, events):
    ctx.log("a")
    ctx.logger.info("b")
    ctx.set_progress(1, 2)
    ctx.log_message("c")
    ctx.set_metrics({"x": 1}, "s")
    assert [event.kind for event in events] == ["log", "message", "progress", "message", "metrics"]


def test_the_logger_is_one_per_run_and_leaves_nothing_in_the_registry():
    ctx = RuntimeContext(print, name="not_in_the_registry")
    logger = ctx.logger
    assert ctx.logger is logger
    assert RuntimeContext(print, name="not_in_the_registry").logger is not logger
    assert logger.name == "synapse.not_in_the_registry"
    assert logger.name not in logging.Logger.manager.loggerDict


def test_the_logger_pickles_as_the_plain_one_of_its_name(ctx):
    assert pickle.loads(pickle.dumps(ctx.logger)) is logging.getLogger("synapse.train")


def test_without_a_handler_of_the_users_the_logger_writes_nothing():
    code = "from synapse_runtime.context import RuntimeContext; RuntimeContext(lambda e: None).logger.error('boo')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")

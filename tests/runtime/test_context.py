"""Tests for `RuntimeContext`: the events that each of its methods emits."""

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
from synapse_runtime.loggers import ConsoleLogger
from synapse_runtime.messages import LocalizedMessage, LogLevel, LogMessageCode, register_log_messages


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def ctx(events) -> RuntimeContext:
    return RuntimeContext(events.append, {"A": "1"}, "job-1", name="train")


class Level(enum.Enum):
    WARNING = "WARNING"


def test_context_has_environment_and_job_id(ctx):
    assert isinstance(ctx.env, PluginEnvironment)
    assert ctx.env.get_int("A") == 1
    assert ctx.job_id == "job-1"


def test_given_environment_is_used_unchanged():
    env = PluginEnvironment({"A": 1})
    assert RuntimeContext(print, env).env is env


def test_log_records_name_data_file_level_and_step(ctx, events):
    ctx.log("saved", {"epoch": 3}, Path("model.bin"), level=Level.WARNING, step="train")
    assert events == [Event("log", "saved", {"epoch": 3}, "warning", "train", "model.bin")]


def test_log_accepts_a_positional_level_like_the_sdk(ctx, events):
    ctx.log("saved", {}, None, LogLevel.ERROR)
    assert events == [Event("log", "saved", level="error")]


def test_event_without_a_step_belongs_to_the_current_one(ctx, events):
    ctx.step = "train"
    ctx.log("saved")
    ctx.log("loaded", step="load")
    ctx.log_metric("train", "loss", 0.5)
    assert [event.step for event in events] == ["train", "load", "train"]


def test_log_requires_only_a_name(ctx, events):
    ctx.log("started")
    assert events == [Event("log", "started", {}, "info", None, None)]


def test_event_data_is_a_copy(ctx, events):
    losses = [0.5]
    ctx.log("epoch", {"losses": losses})
    ctx.set_metrics({"losses": losses}, "train")
    losses.append(0.2)
    assert [event.data for event in events] == [{"losses": [0.5]}, {"losses": [0.5]}]


def test_data_that_cannot_be_copied_becomes_text(ctx, events):
    lock = threading.Lock()
    ctx.log("locked", {"lock": lock, "n": 1})
    assert events[0].data == {"lock": repr(lock), "n": 1}
    assert pickle.loads(pickle.dumps(events[0])) == events[0]


def test_keys_of_data_become_text(ctx, events):
    ctx.log("counts", {1: "one", None: "none"})
    assert events[0].data == {"1": "one", "None": "none"}


def test_progress_records_current_total_and_step(ctx, events):
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
def test_progress_out_of_range_raises_value_error(ctx, events, current, total):
    with pytest.raises(ValueError, match=r"set_progress\(.*\): total must be positive, and current between 0"):
        ctx.set_progress(current, total)
    assert events == []


def test_metrics_belong_to_a_step(ctx, events):
    ctx.set_metrics({"loss": 0.25}, "training")
    assert events == [Event("metrics", "", {"loss": 0.25}, step="training")]


@pytest.mark.parametrize("step", ["", None, 3])
def test_metrics_without_a_step_raise_value_error(ctx, events, step):
    with pytest.raises(ValueError, match="set_metrics needs the name of a step"):
        ctx.set_metrics({"loss": 1}, step)
    assert events == []


def test_metrics_must_be_a_mapping(ctx):
    with pytest.raises(TypeError, match="set_metrics needs a dict of names and values, not list"):
        ctx.set_metrics([1], "training")


def test_message_is_text_or_a_template_with_values(ctx, events):
    ctx.log_message("50 {percent}")
    ctx.log_message("{n} images", "WARNING", step="load", n=3)
    assert events == [
        Event("message", "50 {percent}"),
        Event("message", "3 images", level="warning", step="load"),
    ]


def test_logger_emits_events_and_log_records(ctx, events, caplog):
    with caplog.at_level(logging.DEBUG):
        ctx.logger.debug("at %d", 1)
        ctx.logger.error("lost %s", "it")
    assert events == [Event("message", "at 1", level="debug"), Event("message", "lost it", level="error")]
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("synapse.train", "at 1"),
        ("synapse.train", "lost it"),
    ]


def test_logger_shows_the_exception(ctx, events, caplog):
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


def test_logger_belongs_to_the_run_and_is_not_registered():
    ctx = RuntimeContext(print, name="not_in_the_registry")
    logger = ctx.logger
    assert ctx.logger is logger
    assert RuntimeContext(print, name="not_in_the_registry").logger is not logger
    assert logger.name == "synapse.not_in_the_registry"
    assert logger.name not in logging.Logger.manager.loggerDict


def test_logger_is_pickled_as_the_logging_logger_of_its_name(ctx):
    assert pickle.loads(pickle.dumps(ctx.logger)) is logging.getLogger("synapse.train")


def test_logger_without_a_handler_writes_nothing():
    code = "from synapse_runtime.context import RuntimeContext; RuntimeContext(lambda e: None).logger.error('boo')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


class Codes(LogMessageCode):
    READ = ("READ", LogLevel.SUCCESS)


register_log_messages({Codes.READ: {"en": "read {n} files", "ko": "파일 {n}개"}})


@pytest.mark.parametrize(("language", "text"), [("en", "2 images"), ("ko", "이미지 2개"), ("fr", "2 images")])
@pytest.mark.parametrize("kind", [dict, LocalizedMessage])
def test_message_is_in_the_language_of_the_run(events, language, text, kind):
    ctx = RuntimeContext(events.append, language=language)
    ctx.log_message(kind(en="{n} images", ko="이미지 {n}개"), n=2)
    assert events == [Event("message", text)]


def test_language_is_that_of_the_message_the_run_or_the_environment(events):
    message = {"en": "e", "ko": "k", "de": "d"}
    RuntimeContext(events.append, {"SYNAPSE_LANGUAGE": "ko"}).log_message(message)
    RuntimeContext(events.append, {"SYNAPSE_LANGUAGE": "ko"}, language="de").log_message(message)
    RuntimeContext(events.append, language="de").log_message(message, language="en")
    RuntimeContext(events.append).log_message(message)
    assert [event.name for event in events] == ["k", "d", "e", "e"]


def test_message_with_a_code_has_its_level_and_key(events):
    RuntimeContext(events.append, language="ko").log_message(Codes.READ, LogLevel.ERROR, n=3)
    assert events == [Event("message", "파일 3개", {"key": "READ"}, level="success")]


@pytest.mark.parametrize("level", [LogLevel.DANGER, "danger", "DANGER"])
def test_level_is_a_string_or_a_member(ctx, events, level):
    ctx.log_message("m", level)
    ctx.log("l", level=level)
    assert [event.level for event in events] == ["danger", "danger"]


def test_deprecated_name_of_level_still_works(ctx, events):
    with pytest.warns(DeprecationWarning, match="context is deprecated, use level"):
        ctx.log_message("m", context=LogLevel.WARNING)
    assert events == [Event("message", "m", level="warning")]


def test_special_events_have_the_sdks_names(ctx, events):
    ctx.log_metric("train", "loss", 0.5, accuracy=0.9)
    ctx.log_visualization("validation", "epoch_3", 0, "pred.png", caption="c")
    ctx.log_trials(trials={"t1": {"lr": 0.1}}, hyperparameters=["lr"], best_trial="t1")
    ctx.log_trials({"trials": {}})
    ctx.log_dev_event("looked", {"n": 1})
    ctx.log_dev_event("left")
    ctx.end_log()
    trials = {"base": [], "trials": {"t1": {"lr": 0.1}}, "hyperparameters": ["lr"], "metrics": [], "best_trial": "t1"}
    point = {"category": "train", "key": "loss", "value": 0.5, "metrics": {"accuracy": 0.9}}
    picture = {"category": "validation", "group": "epoch_3", "index": 0, "caption": "c"}
    assert events == [
        Event("log", "metric", point),
        Event("log", "visualization", picture, file="pred.png"),
        Event("log", "trials", trials),
        Event("log", "trials", {"trials": {}}),
        Event("log", "dev_event", {"message": "looked", "data": {"n": 1}}, level="debug"),
        Event("log", "dev_event", {"message": "left", "data": None}, level="debug"),
        Event("message", "Plugin run is complete.", {"key": "PLUGIN_RUN_COMPLETE"}),
    ]


def test_logger_has_the_methods_of_the_sdks_loggers(ctx, events):
    ctx.logger.log(LogLevel.WARNING, "saved", {"n": 1}, "a.txt", step="s")
    ctx.logger.log(LogLevel.WARNING, "saved", {"n": 1}, "a.txt", "s")
    ctx.logger.set_progress(1, 4, "load")
    ctx.logger.set_metrics({"loss": 0.5}, "train")
    ctx.logger.log(logging.INFO, "at %d", 3)
    assert events == [
        *[Event("log", "saved", {"n": 1}, "warning", "s", "a.txt")] * 2,
        Event("progress", "", {"current": 1, "total": 4}, step="load"),
        Event("metrics", "", {"loss": 0.5}, step="train"),
        Event("message", "at 3"),
    ]


def test_record_names_the_line_that_logged(ctx, caplog):
    with caplog.at_level("DEBUG"):
        ctx.logger.log(logging.INFO, "here")
        ctx.logger.info("there")
    here = "test_record_names_the_line_that_logged"
    assert [(record.funcName, record.name) for record in caplog.records] == [(here, "synapse.train")] * 2


def test_clients_are_none_without_credentials(ctx):
    assert (ctx.client, ctx.v2_client, ctx.client_v1, ctx.client_v2, ctx.agent_client, ctx.checkpoint) == (None,) * 6


def test_context_can_be_created_in_a_test(capsys):
    ctx = RuntimeContext(logger=ConsoleLogger(), env={"A": "1"}, job_id="j", client="c", checkpoint={"path": "p"})
    ctx.log_message("hello")
    assert capsys.readouterr().out.endswith("hello\n")
    assert (ctx.client, ctx.client_v1, ctx.checkpoint) == ("c", "c", {"path": "p"})

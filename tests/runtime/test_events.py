"""Tests for events, and for the views of them that tests assert on."""

from __future__ import annotations

import dataclasses
import pickle
import time

import pytest

from synapse_runtime.core.execution import ActionRun
from synapse_runtime.events import Event, Progress, StepMetrics, metrics_by_step


def test_event_is_immutable():
    event = Event("log", "saved")
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.name = "lost"


def test_event_can_be_pickled():
    event = Event("log", "saved", {"epoch": 3}, "warning", "train", "model.bin", 12.5)
    copy = pickle.loads(pickle.dumps(event))
    assert copy == event
    assert copy.time == 12.5


def test_equality_of_events_ignores_their_time():
    assert Event("log", "saved", time=1.0) == Event("log", "saved", time=2.0)
    assert Event("log", "saved") != Event("log", "lost")
    assert Event("log", "saved", {"a": 1}) != Event("log", "saved", {"a": 2})
    assert Event("log", "saved", step="a") != Event("log", "saved", step="b")


def test_event_has_its_time():
    before = time.time()
    event = Event("log", "saved")
    assert before <= event.time <= time.time()


def test_events_do_not_share_their_data():
    assert Event("log").data == {}
    assert Event("log").data is not Event("log").data


@pytest.mark.parametrize(("progress", "percent"), [((0, 4), 0.0), ((1, 4), 25.0), ((4, 4), 100.0), ((0, 0), 0.0)])
def test_progress_percent(progress, percent):
    assert Progress(*progress).percent == percent


def test_progress_is_a_pair():
    assert Progress(1, 4) == (1, 4)


def test_step_metrics_are_the_latest_values_with_their_history():
    metrics = StepMetrics([{"loss": 0.5, "lr": 0.1}, {"loss": 0.2}])
    assert metrics == {"loss": 0.2, "lr": 0.1}
    assert metrics.history == [{"loss": 0.5, "lr": 0.1}, {"loss": 0.2}]


def test_metrics_are_grouped_by_step_in_order_of_first_appearance():
    events = [
        Event("metrics", data={"loss": 1}, step="train"),
        Event("log", "noise", {"loss": 7}, step="train"),
        Event("metrics", data={"loss": 2}, step="check"),
        Event("progress", data={"current": 1, "total": 2}, step="train"),
        Event("metrics", data={"loss": 3}, step="train"),
    ]
    metrics = metrics_by_step(events)
    assert list(metrics) == ["train", "check"]
    assert metrics["train"].history == [{"loss": 1}, {"loss": 3}]
    assert metrics["check"] == {"loss": 2}


def test_run_shows_its_events_as_progress_metrics_and_logs():
    log, message = Event("log", "saved"), Event("message", "hello")
    progress = Event("progress", data={"current": 1, "total": 2})
    run = ActionRun("train", events=[log, progress, message, Event("metrics", data={"loss": 1}, step="train")])
    assert run.progress == [Progress(1, 2)]
    assert run.metrics == {"train": {"loss": 1}}
    assert run.logs == [log, message]


def test_local_run_has_no_captured_output():
    run = ActionRun("train")
    assert (run.stdout, run.stderr, run.records, run.warnings) == ("", "", [], [])

"""Row 8: events of an action."""

import traceback
from pathlib import Path

import pytest
from lab import events
from lab.portrait import portrait
from lab.values import Color, Point

from synapse_runtime.errors import ExecutionError
from tests.parity.modes import everywhere, not_as_jobs, on_this_machine

pytestmark = everywhere


def fields_of(events) -> list[tuple]:
    """Return the fields of each event, in order, except its time."""
    return [(e.kind, e.name, dict(e.data), e.level, e.step, e.file) for e in events]


@pytest.fixture(scope="module")
def medley(job_executor):
    """The run of `SpeakMedley` as a job, and the events that a listener has received."""
    received = []
    run = job_executor().run(events.SpeakMedley, on_event=received.append)
    assert run.error is None, "".join(traceback.format_exception(run.error))
    return run, received


def message(text: str, level: str = "info", step: str | None = None) -> tuple:
    return "message", text, {}, level, step, None


EXPECTED = [
    ("log", "bare", {}, "info", None, None),
    ("log", "full", {"a": 1, "b": [None, 2.5]}, "debug", "train", "out/model.bin"),
    ("log", "with path", {}, "warning", None, "out/x.txt"),
    ("log", "with enum", {}, "error", None, None),
    ("log", "from the action", {"c": (1, 2)}, "info", None, "y.txt"),
    ("progress", "", {"current": 0, "total": 10}, "info", None, None),
    ("progress", "", {"current": 5, "total": 10}, "info", "load", None),
    ("progress", "", {"current": 2.5, "total": 2.5}, "info", "train", None),
    ("metrics", "", {"loss": 0.5, "epoch": 1}, "info", "train", None),
    ("metrics", "", {}, "info", "nothing", None),
    message("plain {braces}"),
    message("Kim is 007", "warning"),
    message("in a step", "error", "train"),
    message("debug", "debug"),
    message("info text 3"),
    message("warning [1]", "warning"),
    message("100%", "error"),
    message("critical", "critical"),
    message("between", "level 25"),
    message("failed at x", "error"),
    message("with extra"),
]


@not_as_jobs
def test_08_all_events_of_an_action_arrive_in_order(synapse_executor):
    run = synapse_executor.run(events.Speak)
    assert run.result == "done"
    check_all(run.events)
    assert run.progress == [(0, 10), (5, 10), (2.5, 2.5)]
    assert run.metrics == {"train": {"loss": 0.5, "epoch": 1}, "nothing": {}}
    assert [event.name for event in run.logs[:2]] == ["bare", "full"]
    assert len(run.logs) == 16


def test_08_all_events_of_a_job_arrive_in_order(medley):
    run, _ = medley
    check_all(run.events[: len(EXPECTED)])
    assert run.progress[:3] == [(0, 10), (5, 10), (2.5, 2.5)]
    assert run.metrics["train"] == {"loss": 0.5, "epoch": 1, "number": 249}
    assert [event.name for event in run.logs[:2]] == ["bare", "full"]


def check_all(events):
    # The traceback below the message has its own test.
    without = [(kind, name.partition("\n")[0], *rest) for kind, name, *rest in fields_of(events)]
    assert without == EXPECTED
    assert portrait([data for _, _, data, *_ in without]) == portrait([data for _, _, data, *_ in EXPECTED])
    times = [event.time for event in events]
    assert times == sorted(times)


@not_as_jobs
def test_08_logged_exception_arrives_with_its_traceback(synapse_executor):
    run = synapse_executor.run(events.Speak)
    (text,) = [event.name for event in run.events if event.name.startswith("failed at x")]
    source = Path(events.__file__).read_text().splitlines()
    number = next(number for number, line in enumerate(source, 1) if '{}["missing"]' in line)
    lines = text.splitlines()
    assert lines[:4] == [
        "failed at x",
        "Traceback (most recent call last):",
        f'  File "{events.__file__}", line {number}, in execute',
        '    {}["missing"]',
    ]
    assert lines[-1] == "KeyError: 'missing'"


@on_this_machine
def test_08_awkward_event_data_arrives_unchanged(synapse_executor):
    run = synapse_executor.run(events.SpeakOddly)
    assert run.error is None, "".join(traceback.format_exception(run.error))
    check_odd(run.events)


def test_08_awkward_event_data_of_a_job_arrives_unchanged(medley):
    check_odd(medley[0].events[len(EXPECTED) : -1000])


def check_odd(arrived):
    import numpy

    expected = [
        {"color": Color.RED, "point": Point(1.0, 2.0), "path": Path("a"), "set": {1}, "large": 2**70},
        {"array": numpy.arange(3), "scalar": numpy.float32(0.5), "nan": float("nan")},
        {"1": "one", "None": "none", "two": 2},
        {"half": "\ud800"},
        {},
        {},
        {"text": events.LONG, "bytes": bytes(range(256)) * 100},
        {"class": Point, "type": int, "function": events.say_nothing},
        {"values": [1]},
        {"values": [1, 2]},
        {"loss": numpy.float64(0.5)},
    ]
    assert portrait([event.data for event in arrived]) == portrait(expected)
    assert [event.name for event in arrived[3:6]] == [
        "snow ☃ \U0001f600 \x1e\r\n\x00",
        "line one\nline two\x1e+ \r",
        events.LONG,
    ]


@not_as_jobs
def test_08_data_that_cannot_be_pickled_arrives_as_text(synapse_executor):
    run = synapse_executor.run(events.SpeakUnpicklably)
    assert run.error is None
    assert run.result == "done"
    assert [event.name for event in run.events] == ["lock", "closure", "last"]
    lock, closure, _ = (event.data for event in run.events)
    assert lock["lock"].startswith("<unlocked _thread.lock object at ")
    assert lock["ok"] == 1
    assert str(closure["closure"]).startswith("<function SpeakUnpicklably.execute.<locals>.<lambda> at ")
    assert type(closure["closure"]) is str
    assert closure["ok"] == 2


@not_as_jobs
def test_08_events_before_a_failure_are_kept(synapse_executor):
    run = synapse_executor.run(events.SpeakAndFail)
    assert type(run.error) is ExecutionError
    assert fields_of(run.events) == [
        ("log", "before", {}, "info", None, None),
        ("progress", "", {"current": 1, "total": 2}, "info", None, None),
        message("soon", "warning"),
    ]


@not_as_jobs
def test_08_a_thousand_events_arrive_in_order_and_a_listener_receives_the_same(synapse_executor):
    received = []
    run = synapse_executor.run(events.SpeakMuch, on_event=received.append)
    assert run.result == 1000
    check_thousand(run.events, received)


def test_08_a_thousand_events_of_a_job_arrive_in_order_and_a_listener_receives_the_same(medley):
    run, received = medley
    assert portrait(fields_of(received)) == portrait(fields_of(run.events))
    check_thousand(run.events[-1000:], received[-1000:])


def check_thousand(events, received):
    expected = []
    for number in range(250):
        expected += [
            ("log", "log", {"number": number}, "info", None, None),
            ("progress", "", {"current": number, "total": 250}, "info", None, None),
            ("metrics", "", {"number": number}, "info", "train", None),
            message(f"message {number}"),
        ]
    assert fields_of(events) == expected
    assert received == events
    times = [event.time for event in events]
    assert times == sorted(times)


INVALID = {
    "progress beyond": (ValueError, "set_progress(11, 10): total must be positive, and current between 0 and total"),
    "progress of nan": (ValueError, "set_progress(nan, 10): total must be positive, and current between 0 and total"),
    "metrics without step": (ValueError, "set_metrics needs the name of a step, such as 'training', not ''"),
    "metrics without names": (TypeError, "set_metrics needs a dict of names and values, not list"),
    "unknown value": (KeyError, "'name'"),
}


@not_as_jobs
@pytest.mark.parametrize("call", INVALID, ids=lambda call: call.replace(" ", "_"))
def test_08_invalid_event_fails_the_action(synapse_executor, call):
    run = synapse_executor.run(events.SpeakWrongly, {"call": call})
    kind, text = INVALID[call]
    assert type(run.error) is ExecutionError
    assert type(run.error.__cause__) is kind
    assert str(run.error.__cause__) == text
    assert [event.name for event in run.events] == ["before"]

"""Watched calls in task mode: live events and output, and that losing the channel loses no data."""

from __future__ import annotations

import asyncio
import functools

import pytest

from synapse_runtime.core.execution import ActionRun
from synapse_runtime.core.output_capture import Captured
from synapse_runtime.errors import ExecutionError, WorkerCrashed
from synapse_runtime.events import Event
from synapse_runtime.executors.ray import RayActorExecutor
from synapse_runtime.executors.ray.event_channel import EventBatch, EventChannel, LiveEvents
from synapse_runtime.executors.ray.task import WarmWorker
from synapse_runtime.loggers import NullLogger
from tests.patience import patience
from tests.ray.conftest import PLUGIN


class Recorder:
    """Records the events and output of a run in order; consecutive pieces of one stream are joined."""

    def __init__(self) -> None:
        self.items: list[tuple[object, ...]] = []
        self.pieces = 0

    def event(self, event: Event) -> None:
        self.items.append((event.name, event.data["n"]))

    def output(self, stream: str, text: str) -> None:
        self.pieces += 1
        if self.items and self.items[-1][0] == stream:
            text = f"{self.items.pop()[1]}{text}"
        self.items.append((stream, text))


def expected_items(rounds: int) -> list[tuple[object, ...]]:
    parts: list[tuple[object, ...]] = []
    for n in range(rounds):
        before = f"ä{n - 1};" if n else ""
        parts += [("stdout", f"{before}out {n};"), ("said", n), ("stderr", f"err {n};"), ("said again", n)]
    return [*parts, ("stdout", f"ä{rounds - 1};")]


@pytest.mark.parametrize(("rounds", "pause"), [(5, 0.0), (5, 0.15)])
def test_events_and_output_are_received_once_and_in_order(task, rounds, pause):
    recorder = Recorder()
    run = task.run("talk", {"rounds": rounds, "pause": pause}, on_event=recorder.event, on_output=recorder.output)
    assert recorder.items == expected_items(rounds)
    assert len(run.events) == 2 * rounds
    assert run.stdout == "".join(f"out {n};ä{n};" for n in range(rounds))


def test_events_and_output_can_be_watched_separately(task):
    only_events, only_output = Recorder(), Recorder()
    task.run("talk", {"pause": 0.1}, on_event=only_events.event)
    task.run("talk", {"pause": 0.1}, on_output=only_output.output)
    assert only_events.items == [part for part in expected_items(3) if part[0] in ("said", "said again")]
    assert "".join(str(text) for stream, text in only_output.items if stream == "stderr") == "err 0;err 1;err 2;"


def test_stdout_of_a_worker_is_unbuffered_and_need_not_be_flushed(task):
    assert task.execute("talk") == "Unbuffered"  # Ray's own stream, which `OutputFiles` detects by this name


def test_events_and_output_from_before_the_worker_was_killed_are_received(worker):
    executor = RayActorExecutor(plugin=PLUGIN, worker=worker, logger=NullLogger())
    recorder = Recorder()
    run = executor.run(
        "talk", {"rounds": 4, "pause": 0.2, "ending": "kill"}, on_event=recorder.event, on_output=recorder.output
    )
    assert type(run.error) is WorkerCrashed
    assert recorder.items == expected_items(4)
    assert [event.name for event in run.events] == ["said", "said again"] * 4


@pytest.mark.parametrize("moment", ["before", "during"])
def test_losing_the_channel_loses_no_data(moment):
    import ray

    worker = WarmWorker()
    with RayActorExecutor(plugin=PLUGIN, worker=worker, logger=NullLogger()) as executor:
        executor.run("talk", on_event=lambda _: None)
        channel = worker._channel
        assert channel is not None
        kill_channel = functools.cache(lambda: ray.kill(channel.actor))
        recorder = Recorder()
        if moment == "before":
            kill_channel()

        def kill_and_record(event: Event) -> None:
            kill_channel()
            recorder.event(event)

        executor.run("talk", {"rounds": 6, "pause": 0.2}, on_event=kill_and_record, on_output=recorder.output)
        assert recorder.items == expected_items(6)
        second = Recorder()
        executor.run("talk", {"pause": 0.1}, on_event=second.event, on_output=second.output)
        assert second.items == expected_items(3)
    worker.close()


def test_failing_callback_fails_the_call_and_the_next_call_works(task):
    def fail(event: Event) -> None:
        raise KeyError(event.name)

    with pytest.raises(KeyError, match="said"):
        task.run("talk", {"rounds": 10, "pause": 0.1}, on_event=fail)
    recorder = Recorder()
    task.run("talk", on_event=recorder.event, on_output=recorder.output)
    assert recorder.items == expected_items(3)


def test_failing_callback_of_arun_stops_the_action_and_keeps_the_worker(task):
    def fail(event: Event) -> None:
        raise KeyError(event.name)

    async def main() -> None:
        with pytest.raises(KeyError, match="said"):
            await task.arun("talk", {"rounds": 1000, "pause": 0.1}, on_event=fail)

    before = task.run("echo").pid
    for _ in range(5):
        asyncio.run(asyncio.wait_for(main(), patience(20)))
        assert task.run("echo").pid == before
        recorder = Recorder()
        task.run("talk", on_event=recorder.event, on_output=recorder.output)
        assert recorder.items == expected_items(3)


def test_worker_whose_action_cannot_be_stopped_is_replaced(task, monkeypatch):
    monkeypatch.setattr("synapse_runtime.executors.ray.task._STOP_SECONDS", 0.1)

    def fail(event: Event) -> None:
        raise KeyError(event.name)

    before = task.run("echo").pid
    with pytest.raises(KeyError, match="said"):
        task.run("stubborn", on_event=fail)
    assert task.run("echo").pid != before


def test_channel_ends_with_its_worker():
    import ray
    from ray.exceptions import RayActorError

    worker = WarmWorker()
    executor = RayActorExecutor(plugin=PLUGIN, worker=worker, logger=NullLogger())
    executor.execute("echo")
    assert worker._channel is None  # no call was watched
    executor.run("talk", on_event=lambda _: None)
    assert worker._channel is not None
    actor = worker._channel.actor
    worker.close()
    with pytest.raises(RayActorError):
        ray.get(actor.put.remote(0, 0, b""), timeout=patience(30))


def test_drain_returns_the_batches_of_a_dead_worker(task):
    import ray

    task.execute("echo")  # connects this process
    channel = EventChannel()
    ray.get([channel.actor.put.remote(7, number, b"data") for number in range(3)], timeout=patience(30))
    assert sorted(channel.drain()) == [EventBatch(7, number, b"data") for number in range(3)]
    assert list(channel.drain()) == []
    channel.close()
    assert not channel.is_alive


def live_events_of(recorder: Recorder, batches: dict[bytes, list[tuple[object, ...]]]) -> LiveEvents:
    return LiveEvents(7, recorder.event, recorder.output, batches.__getitem__)


def row(n: int) -> tuple[object, ...]:
    return ("log", "said", {"n": n}, "info", None, None, 0.0)


def test_batches_of_the_call_are_read_in_the_order_in_which_they_were_written():
    recorder = Recorder()
    by_content = {b"first": [row(0)], b"second": [row(1), ("stdout", "x")], b"other": [row(9)]}
    live_events = live_events_of(recorder, by_content)
    live_events.handle([EventBatch(7, 1, b"second"), EventBatch(6, 0, b"other")])
    assert recorder.items == []
    live_events.handle([EventBatch(7, 0, b"first")])
    assert recorder.items == [("said", 0), ("said", 1), ("stdout", "x")]


def test_rest_of_a_run_after_the_last_batch_is_received():
    recorder = Recorder()
    live_events = live_events_of(recorder, {b"first": [("stdout", "ab"), row(0)]})
    live_events.handle([EventBatch(7, 0, b"first")])
    events = [Event(*row(n)) for n in range(3)]  # type: ignore[arg-type]
    captured = Captured(stdout="abcd", stderr="e", output_positions=[(0, "stdout", 2), (2, "stderr", 1)])
    live_events.finish(ActionRun("talk", events=events, captured=captured))
    assert recorder.items == [
        *(("stdout", "ab"), ("said", 0), ("said", 1)),
        *(("stderr", "e"), ("said", 2), ("stdout", "cd")),
    ]
    assert recorder.pieces == 3


def test_run_without_captured_output_has_no_rest():
    recorder = Recorder()
    live_events_of(recorder, {}).finish(ActionRun("talk", error=ExecutionError("refused")))
    assert recorder.items == []

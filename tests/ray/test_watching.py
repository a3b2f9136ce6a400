"""Task mode's watched calls: what is heard while the action runs, and that nothing is lost where the mailbox is."""

from __future__ import annotations

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


class Heard:
    """All that was heard of a run, in order; pieces of one stream that follow each other are one."""

    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []
        self.pieces = 0

    def event(self, event: Event) -> None:
        self.said.append((event.name, event.data["n"]))

    def output(self, stream: str, text: str) -> None:
        self.pieces += 1
        if self.said and self.said[-1][0] == stream:
            text = f"{self.said.pop()[1]}{text}"
        self.said.append((stream, text))


def spoken(rounds: int) -> list[tuple[object, ...]]:
    parts: list[tuple[object, ...]] = []
    for n in range(rounds):
        before = f"ä{n - 1};" if n else ""
        parts += [("stdout", f"{before}out {n};"), ("said", n), ("stderr", f"err {n};"), ("said again", n)]
    return [*parts, ("stdout", f"ä{rounds - 1};")]


@pytest.mark.parametrize(("rounds", "pause"), [(5, 0.0), (5, 0.15)])
def test_what_is_said_and_what_is_printed_are_heard_once_and_in_order(task, rounds, pause):
    heard = Heard()
    run = task.run("talk", {"rounds": rounds, "pause": pause}, on_event=heard.event, on_output=heard.output)
    assert heard.said == spoken(rounds)
    assert len(run.events) == 2 * rounds
    assert run.stdout == "".join(f"out {n};ä{n};" for n in range(rounds))


def test_either_can_be_watched_alone(task):
    only_events, only_output = Heard(), Heard()
    task.run("talk", {"pause": 0.1}, on_event=only_events.event)
    task.run("talk", {"pause": 0.1}, on_output=only_output.output)
    assert only_events.said == [part for part in spoken(3) if part[0] in ("said", "said again")]
    assert "".join(str(text) for stream, text in only_output.said if stream == "stderr") == "err 0;err 1;err 2;"


def test_a_worker_passes_on_what_is_printed_at_once_so_that_it_need_not_be_asked_to(task):
    assert task.execute("talk") == "Unbuffered"  # Ray's own stream: `OutputFiles` goes by its name


def test_what_a_worker_has_said_before_it_was_killed_is_heard(worker):
    executor = RayActorExecutor(plugin=PLUGIN, worker=worker, logger=NullLogger())
    heard = Heard()
    run = executor.run(
        "talk", {"rounds": 4, "pause": 0.2, "ending": "kill"}, on_event=heard.event, on_output=heard.output
    )
    assert type(run.error) is WorkerCrashed
    assert heard.said == spoken(4)
    assert [event.name for event in run.events] == ["said", "said again"] * 4


@pytest.mark.parametrize("moment", ["before", "during"])
def test_a_mailbox_that_is_lost_loses_nothing(moment):
    import ray

    worker = WarmWorker()
    with RayActorExecutor(plugin=PLUGIN, worker=worker, logger=NullLogger()) as executor:
        executor.run("talk", on_event=lambda _: None)
        mailbox = worker._channel
        assert mailbox is not None
        end = functools.cache(lambda: ray.kill(mailbox.actor))
        heard = Heard()
        if moment == "before":
            end()

        def listen(event: Event) -> None:
            end()
            heard.event(event)

        executor.run("talk", {"rounds": 6, "pause": 0.2}, on_event=listen, on_output=heard.output)
        assert heard.said == spoken(6)
        again = Heard()
        executor.run("talk", {"pause": 0.1}, on_event=again.event, on_output=again.output)
        assert again.said == spoken(3)
    worker.close()


def test_a_listener_that_fails_fails_the_call_and_the_next_one_works(task):
    def fail(event: Event) -> None:
        raise KeyError(event.name)

    with pytest.raises(KeyError, match="said"):
        task.run("talk", {"rounds": 10, "pause": 0.1}, on_event=fail)
    heard = Heard()
    task.run("talk", on_event=heard.event, on_output=heard.output)
    assert heard.said == spoken(3)


def test_the_mailbox_ends_with_its_worker():
    import ray
    from ray.exceptions import RayActorError

    worker = WarmWorker()
    executor = RayActorExecutor(plugin=PLUGIN, worker=worker, logger=NullLogger())
    executor.execute("echo")
    assert worker._channel is None  # nobody has watched
    executor.run("talk", on_event=lambda _: None)
    assert worker._channel is not None
    actor = worker._channel.actor
    worker.close()
    with pytest.raises(RayActorError):
        ray.get(actor.put.remote(0, 0, b""), timeout=patience(30))


def test_what_a_dead_worker_has_left_in_the_mailbox_is_taken_out(task):
    import ray

    task.execute("echo")  # so that there is a connection
    mailbox = EventChannel()
    ray.get([mailbox.actor.put.remote(7, number, b"said") for number in range(3)], timeout=patience(30))
    assert sorted(mailbox.drain()) == [EventBatch(7, number, b"said") for number in range(3)]
    assert list(mailbox.drain()) == []
    mailbox.close()
    assert not mailbox.is_alive


def listener(heard: Heard, letters: dict[bytes, list[tuple[object, ...]]]) -> LiveEvents:
    return LiveEvents(7, heard.event, heard.output, letters.__getitem__)


def row(n: int) -> tuple[object, ...]:
    return ("log", "said", {"n": n}, "info", None, None, 0.0)


def test_letters_are_read_in_the_order_that_they_were_written_in_and_only_those_of_the_call():
    heard = Heard()
    by_content = {b"first": [row(0)], b"second": [row(1), ("stdout", "x")], b"other": [row(9)]}
    hears = listener(heard, by_content)
    hears.handle([EventBatch(7, 1, b"second"), EventBatch(6, 0, b"other")])
    assert heard.said == []
    hears.handle([EventBatch(7, 0, b"first")])
    assert heard.said == [("said", 0), ("said", 1), ("stdout", "x")]


def test_the_rest_of_a_run_is_heard_from_where_the_letters_end():
    heard = Heard()
    hears = listener(heard, {b"first": [("stdout", "ab"), row(0)]})
    hears.handle([EventBatch(7, 0, b"first")])
    events = [Event(*row(n)) for n in range(3)]  # type: ignore[arg-type]
    captured = Captured(stdout="abcd", stderr="e", output_positions=[(0, "stdout", 2), (2, "stderr", 1)])
    hears.finish(ActionRun("talk", events=events, captured=captured))
    assert heard.said == [
        *(("stdout", "ab"), ("said", 0), ("said", 1)),
        *(("stderr", "e"), ("said", 2), ("stdout", "cd")),
    ]
    assert heard.pieces == 3


def test_a_run_that_came_without_output_has_no_rest():
    heard = Heard()
    listener(heard, {}).finish(ActionRun("talk", error=ExecutionError("refused")))
    assert heard.said == []

"""What a worker's action says and prints while it runs: in batches, in order, whoever finds it first."""

from __future__ import annotations

import threading
import time

import pytest

from synapse_runtime import serialization
from synapse_runtime.events import Event
from synapse_runtime.executors.streaming import Forwarder
from tests.patience import patience


class Output:
    """Stands for a worker's output: what is put into `printed` is there at once."""

    def __init__(self) -> None:
        self.printed = ["", ""]
        self.peeked = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def has_new_output(self) -> bool:
        return any(self.printed)

    def read_new(self) -> tuple[str, str]:
        stdout, stderr = self.printed
        self.printed = ["", ""]
        if stdout:
            self.peeked.set()
            assert self.may_go_on.wait(patience(10))
        return stdout, stderr


class Forwarded:
    """Forwards one action's words, and keeps what was sent."""

    def __init__(self, output: Output, *, fails: bool = False) -> None:
        self.said: list[object] = []
        self.numbers: list[int] = []
        self._fails = fails
        self._news = threading.Event()
        self.forwarder = Forwarder(self._send, output)  # type: ignore[arg-type]

    def _send(self, number: int, batch: bytes) -> None:
        self.numbers.append(number)
        self.said += [item[1] if len(item) != 2 else item for item in serialization.loads(batch)]
        self._news.set()
        if self._fails:
            raise ConnectionError("the channel is gone")

    def wait(self) -> None:
        assert self._news.wait(patience(10))
        self._news.clear()


@pytest.fixture
def output() -> Output:
    return Output()


def test_what_is_said_comes_in_numbered_batches_with_what_was_printed_before_it(output):
    forwarded = Forwarded(output)
    forwarder = forwarded.forwarder
    forwarder.event(Event("log", "one"))
    output.printed = ["out", "err"]
    forwarder.event(Event("log", "two"))
    forwarded.wait()
    while len(forwarded.said) < 4:  # it was not all one batch
        forwarded.wait()
    output.printed = ["more", ""]
    forwarded.wait()
    assert forwarded.said == ["one", ("stdout", "out"), ("stderr", "err"), "two", ("stdout", "more")]
    assert forwarded.numbers == [*range(len(forwarded.numbers))]
    assert forwarder.close() == [(1, "stdout", 3), (1, "stderr", 3), (2, "stdout", 4)]


def test_an_event_waits_for_what_was_printed_before_it_where_the_other_thread_is_just_taking_that(output):
    output.may_go_on.clear()
    forwarded = Forwarded(output)
    output.printed = ["before", ""]
    assert output.peeked.wait(patience(10))
    action = threading.Thread(target=forwarded.forwarder.event, args=(Event("log", "after"),))
    action.start()
    action.join(0.2)
    assert action.is_alive()
    output.may_go_on.set()
    action.join(patience(10))
    assert forwarded.forwarder.close() == [(0, "stdout", 6)]
    forwarded.wait()
    assert forwarded.said[0] == ("stdout", "before")


def test_what_is_not_sent_when_the_action_ends_is_only_told_the_place_of(output):
    forwarded = Forwarded(output)
    forwarded.forwarder.event(Event("log", "one"))
    output.printed = ["", "late"]
    assert forwarded.forwarder.close() == [(1, "stderr", 4)]
    time.sleep(3 * Forwarder.EVERY_SECONDS)
    assert forwarded.said in ([], ["one"])


def test_nothing_is_taken_after_the_end(output):
    forwarded = Forwarded(output)
    forwarded.forwarder.close()
    output.printed = ["of the next call", ""]
    assert forwarded.forwarder.close() == []
    forwarded.forwarder._forward()  # as the other thread does that has begun to just before
    assert output.printed == ["of the next call", ""]
    assert forwarded.numbers == []


def test_a_batch_that_cannot_be_sent_does_not_end_the_next_ones_nor_those_of_the_next_call(output):
    for _ in range(2):
        forwarded = Forwarded(output, fails=True)
        for name in ("one", "two"):
            forwarded.forwarder.event(Event("log", name))
            forwarded.wait()
        assert forwarded.numbers == [0, 1]
        assert forwarded.said == ["one", "two"]
        forwarded.forwarder.close()


def test_all_calls_have_one_thread(output):
    before = None
    for _ in range(3):
        forwarded = Forwarded(output)
        threads = [thread for thread in threading.enumerate() if thread.name == "synapse-forwarder"]
        assert len(threads) == 1
        assert before in (None, threads[0])
        before = threads[0]
        forwarded.forwarder.close()

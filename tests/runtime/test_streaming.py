"""Tests for streaming events and output of a running action in batches, in order."""

from __future__ import annotations

import threading
import time

import pytest

from synapse_runtime import serialization
from synapse_runtime.events import Event
from synapse_runtime.executors.streaming import Forwarder
from tests.patience import patience


class Output:
    """Stands for a worker's captured output: text in `printed` is available immediately."""

    def __init__(self) -> None:
        self.printed = ["", ""]
        self.reading = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def has_new_output(self) -> bool:
        return any(self.printed)

    def read_new(self) -> tuple[str, str]:
        stdout, stderr = self.printed
        self.printed = ["", ""]
        if stdout:
            self.reading.set()
            assert self.may_go_on.wait(patience(10))
        return stdout, stderr


class SentBatches:
    """Forwards one action's events and output, and records what was sent."""

    def __init__(self, output: Output, *, fails: bool = False) -> None:
        self.items: list[object] = []
        self.numbers: list[int] = []
        self._fails = fails
        self._has_new = threading.Event()
        self.forwarder = Forwarder(self._send, output)  # type: ignore[arg-type]

    def _send(self, number: int, batch: bytes) -> None:
        self.numbers.append(number)
        self.items += [item[1] if len(item) != 2 else item for item in serialization.loads(batch)]
        self._has_new.set()
        if self._fails:
            raise ConnectionError("the channel is gone")

    def wait(self) -> None:
        assert self._has_new.wait(patience(10))
        self._has_new.clear()


@pytest.fixture
def output() -> Output:
    return Output()


def test_events_are_sent_in_numbered_batches_after_the_output_printed_before_them(output):
    sent = SentBatches(output)
    forwarder = sent.forwarder
    forwarder.event(Event("log", "one"))
    output.printed = ["out", "err"]
    forwarder.event(Event("log", "two"))
    sent.wait()
    while len(sent.items) < 4:  # there was more than one batch
        sent.wait()
    output.printed = ["more", ""]
    sent.wait()
    assert sent.items == ["one", ("stdout", "out"), ("stderr", "err"), "two", ("stdout", "more")]
    assert sent.numbers == [*range(len(sent.numbers))]
    assert forwarder.close() == [(1, "stdout", 3), (1, "stderr", 3), (2, "stdout", 4)]


def test_event_follows_earlier_output_that_the_other_thread_is_just_reading(output):
    output.may_go_on.clear()
    sent = SentBatches(output)
    output.printed = ["before", ""]
    assert output.reading.wait(patience(10))
    action = threading.Thread(target=sent.forwarder.event, args=(Event("log", "after"),))
    action.start()
    action.join(0.2)
    assert action.is_alive()
    output.may_go_on.set()
    action.join(patience(10))
    assert sent.forwarder.close() == [(0, "stdout", 6)]
    sent.wait()
    assert sent.items[0] == ("stdout", "before")


def test_close_returns_positions_of_output_that_was_not_sent(output):
    sent = SentBatches(output)
    sent.forwarder.event(Event("log", "one"))
    output.printed = ["", "late"]
    assert sent.forwarder.close() == [(1, "stderr", 4)]
    time.sleep(3 * Forwarder.EVERY_SECONDS)
    assert sent.items in ([], ["one"])


def test_nothing_is_read_after_close(output):
    sent = SentBatches(output)
    sent.forwarder.close()
    output.printed = ["of the next call", ""]
    assert sent.forwarder.close() == []
    sent.forwarder._forward()  # as the other thread does if it has started just before
    assert output.printed == ["of the next call", ""]
    assert sent.numbers == []


def test_failed_batch_stops_neither_later_batches_nor_the_next_call(output):
    for _ in range(2):
        sent = SentBatches(output, fails=True)
        for name in ("one", "two"):
            sent.forwarder.event(Event("log", name))
            sent.wait()
        assert sent.numbers == [0, 1]
        assert sent.items == ["one", "two"]
        sent.forwarder.close()


def test_all_calls_share_one_thread(output):
    before = None
    for _ in range(3):
        sent = SentBatches(output)
        threads = [thread for thread in threading.enumerate() if thread.name == "synapse-forwarder"]
        assert len(threads) == 1
        assert before in (None, threads[0])
        before = threads[0]
        sent.forwarder.close()

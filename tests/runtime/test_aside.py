"""What threads have together, or one after the other."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from synapse_runtime.aside import StoppableThread, Together, stops_are_heard
from synapse_runtime.deadline import OutOfTime
from tests.patience import patience


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def together(told: list[str]) -> Together:
    @contextlib.contextmanager
    def change() -> Iterator[None]:
        told.append("made")
        yield
        told.append("undone")

    return Together(change)


def test_a_change_is_made_for_the_first_and_undone_after_the_last(together, told):
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with together():
            inside.set()
            leave.wait(patience(10))

    thread = threading.Thread(target=other)
    with together():
        thread.start()
        assert inside.wait(patience(10))
    assert told == ["made"]
    leave.set()
    thread.join()
    assert told == ["made", "undone"]
    with together():
        assert told == ["made", "undone", "made"]


def test_a_change_is_undone_where_a_block_fails(together, told):
    with pytest.raises(LookupError), together():
        raise LookupError
    assert told == ["made", "undone"]


class Connection:
    """One whose finalizer takes a while, in which a stop can come."""

    def __init__(self, during: Callable[[], object]) -> None:
        self._during = during

    def __del__(self) -> None:
        self._during()
        for _ in range(20):
            time.sleep(0.01)


def wait_long() -> None:
    for _ in range(1000):
        time.sleep(0.01)


def test_a_stop_that_comes_while_a_finalizer_runs_is_not_lost():
    in_finalizer = threading.Event()

    def work() -> None:
        Connection(in_finalizer.set)
        wait_long()

    thread = StoppableThread(work, name="stopped")
    thread.start()
    assert in_finalizer.wait(patience(5))
    thread.stop()
    thread.join(patience(5))
    assert not thread.is_alive()
    with pytest.raises(OutOfTime):
        thread.outcome()


def test_ctrl_c_that_comes_while_a_finalizer_runs_is_not_lost():
    def work() -> None:
        with stops_are_heard():
            Connection(lambda: signal.raise_signal(signal.SIGINT))
            wait_long()

    with pytest.raises(KeyboardInterrupt):
        work()


def test_ctrl_c_is_not_lost_either_if_the_machine_is_slow_to_leave_the_hook(monkeypatch):
    start = threading.Thread.start

    def start_slowly(thread: threading.Thread) -> None:
        start(thread)
        time.sleep(0.1)

    def work() -> None:
        with stops_are_heard():
            Connection(lambda: signal.raise_signal(signal.SIGINT))
            wait_long()

    monkeypatch.setattr(threading.Thread, "start", start_slowly)
    with pytest.raises(KeyboardInterrupt):
        work()


def test_what_else_a_finalizer_raises_is_told_as_before(monkeypatch):
    told: list[type[BaseException] | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: told.append(dropped.exc_type))
    ours = sys.unraisablehook
    with stops_are_heard():
        Connection(lambda: 1 / 0)
    assert told == [ZeroDivisionError]
    assert sys.unraisablehook is ours

"""What threads have together, or one after the other."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from synapse_runtime.core.threads import InterruptibleThread, SharedContext, reraise_dropped_interrupts
from synapse_runtime.core.timeouts import ActionInterrupted
from tests.patience import patience


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def together(told: list[str]) -> SharedContext:
    @contextlib.contextmanager
    def change() -> Iterator[None]:
        told.append("made")
        yield
        told.append("undone")

    return SharedContext(change)


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

    thread = InterruptibleThread(work, name="stopped")
    thread.start()
    assert in_finalizer.wait(patience(5))
    thread.stop()
    thread.join(patience(5))
    assert not thread.is_alive()
    with pytest.raises(ActionInterrupted):
        thread.outcome()


def test_ctrl_c_that_comes_while_a_finalizer_runs_is_not_lost():
    def work() -> None:
        with reraise_dropped_interrupts():
            Connection(lambda: signal.raise_signal(signal.SIGINT))
            wait_long()

    with pytest.raises(KeyboardInterrupt):
        work()


def test_what_else_a_finalizer_raises_is_told_as_before(monkeypatch):
    told: list[type[BaseException] | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: told.append(dropped.exc_type))
    ours = sys.unraisablehook
    with reraise_dropped_interrupts():
        Connection(lambda: 1 / 0)
    assert told == [ZeroDivisionError]
    assert sys.unraisablehook is ours

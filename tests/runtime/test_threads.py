"""Tests for interruptible threads and changes that several threads share."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import pytest

from synapse_runtime.core.threads import InterruptibleThread, SharedContext, reraise_dropped_interrupts
from synapse_runtime.errors import ActionInterrupted
from synapse_runtime.executors.ray.log_suppression import suppress_log_records, suppress_ray_output
from tests.patience import patience


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def shared_change(calls: list[str]) -> SharedContext:
    @contextlib.contextmanager
    def change() -> Iterator[None]:
        calls.append("made")
        yield
        calls.append("undone")

    return SharedContext(change)


def test_change_is_applied_by_the_first_user_and_undone_by_the_last(shared_change, calls):
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with shared_change():
            inside.set()
            leave.wait(patience(10))

    thread = threading.Thread(target=other)
    with shared_change():
        thread.start()
        assert inside.wait(patience(10))
    assert calls == ["made"]
    leave.set()
    thread.join()
    assert calls == ["made", "undone"]
    with shared_change():
        assert calls == ["made", "undone", "made"]


def test_change_is_undone_if_the_block_raises(shared_change, calls):
    with pytest.raises(LookupError), shared_change():
        raise LookupError
    assert calls == ["made", "undone"]


class Connection:
    """A connection whose finalizer takes a while, so that it can be interrupted."""

    def __init__(self, during: Callable[[], object]) -> None:
        self._during = during

    def __del__(self) -> None:
        self._during()
        for _ in range(20):
            time.sleep(0.01)


def wait_long() -> None:
    for _ in range(1000):
        time.sleep(0.01)


def test_interrupt_during_a_finalizer_is_not_lost():
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


def test_ctrl_c_during_a_finalizer_is_not_lost():
    def work() -> None:
        with reraise_dropped_interrupts():
            Connection(lambda: signal.raise_signal(signal.SIGINT))
            wait_long()

    with pytest.raises(KeyboardInterrupt):
        work()


def test_ctrl_c_is_not_lost_if_the_machine_is_slow_to_leave_the_hook(monkeypatch):
    start = threading.Thread.start

    def start_slowly(thread: threading.Thread) -> None:
        start(thread)
        time.sleep(0.1)

    def work() -> None:
        with reraise_dropped_interrupts():
            Connection(lambda: signal.raise_signal(signal.SIGINT))
            wait_long()

    monkeypatch.setattr(threading.Thread, "start", start_slowly)
    with pytest.raises(KeyboardInterrupt):
        work()


def test_other_exceptions_of_a_finalizer_go_to_the_previous_hook(monkeypatch):
    calls: list[type[BaseException] | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: calls.append(dropped.exc_type))
    ours = sys.unraisablehook
    with reraise_dropped_interrupts():
        Connection(lambda: 1 / 0)
    assert calls == [ZeroDivisionError]
    assert sys.unraisablehook is ours


def test_ray_log_records_are_suppressed_in_the_current_thread_only_and_levels_stay(caplog):
    loggers = [logging.getLogger(name) for name in ("ray.of_the_test", "urllib3.connectionpool", "asyncio")]
    levels = [logger.level for logger in loggers]
    caplog.set_level(logging.DEBUG)

    def log(where: str) -> None:
        for logger in loggers:
            logger.warning("%s %s", where, logger.name)

    with suppress_log_records():
        log("inside")
        thread = threading.Thread(target=log, args=("another thread",))
        thread.start()
        thread.join()
        loggers[0].error("error")
        loggers[1].setLevel(logging.CRITICAL)  # set by a user at the same time
    log("outside")
    assert [logger.level for logger in loggers] == [levels[0], logging.CRITICAL, levels[2]]
    loggers[1].setLevel(levels[1])
    assert caplog.messages == [
        *(f"another thread {logger.name}" for logger in loggers),
        "error",
        "outside ray.of_the_test",
        "outside asyncio",
    ]


def test_ray_warnings_are_suppressed_in_the_current_thread_only_and_filters_stay():
    def warn(text: str) -> None:
        warnings.warn(text, UserWarning, stacklevel=2)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with suppress_ray_output():
            warn("inside")
            thread = threading.Thread(target=warn, args=("another thread",))
            thread.start()
            thread.join()
            warnings.filterwarnings("ignore", "ours")  # set by a user at the same time
        warn("outside")
        warn("ours")
    assert [str(warning.message) for warning in caught] == ["another thread", "outside"]

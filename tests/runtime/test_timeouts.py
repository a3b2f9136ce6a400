"""Tests for timeouts: they are on time, record the stack, and preserve alarms of other code."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from synapse_runtime.core.timeouts import time_limit
from tests.patience import patience


def wait_forever() -> None:
    while True:
        time.sleep(0.01)


def in_main_thread(function: Callable[[], Any]) -> Any:
    return function()


def in_another_thread(function: Callable[[], Any]) -> Any:
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(patience(10))
    return results[0]


@pytest.fixture(params=[in_main_thread, in_another_thread])
def where(request) -> Callable[[Callable[[], Any]], Any]:
    """Run a function in the main thread, and in another thread."""
    return request.param


def test_block_that_ends_in_time_has_no_stack(where):
    def work():
        with time_limit(5) as limit:
            result = 42
        return result, limit.stack

    assert where(work) == (42, None)


def test_no_timeout_changes_nothing():
    before = signal.getsignal(signal.SIGALRM), threading.active_count()
    with time_limit(None) as limit:
        assert (signal.getsignal(signal.SIGALRM), threading.active_count()) == before
    assert limit.stack is None


def test_block_that_times_out_is_interrupted_and_has_its_stack(where):
    def work():
        started = time.monotonic()
        with time_limit(0.1) as limit:
            wait_forever()
        return limit.stack, time.monotonic() - started

    stack, took = where(work)
    assert "in wait_forever\n    time.sleep(0.01)" in stack
    assert 0.1 <= took < patience(1)


def test_except_exception_does_not_catch_the_interrupt(where):
    def work():
        with time_limit(0.1) as limit:
            while True:
                try:
                    wait_forever()
                except Exception:  # noqa: BLE001 - what this test is about
                    continue
        return limit.stack

    assert "wait_forever" in where(work)


def test_blocking_call_in_the_main_thread_is_interrupted():
    started = time.monotonic()
    with time_limit(0.1):
        threading.Event().wait(patience(30))
    assert time.monotonic() - started < patience(2)


def test_errors_are_raised_and_leave_no_timer_behind(where):
    def work():
        with pytest.raises(KeyError), time_limit(0.05):
            raise KeyError
        time.sleep(0.1)
        return "not stopped"

    assert where(work) == "not stopped"


def interrupt_while_unwinding() -> None:
    try:
        wait_forever()
    finally:
        raise KeyboardInterrupt


def test_keyboard_interrupt_is_raised_even_after_the_timeout():
    with pytest.raises(KeyboardInterrupt), time_limit(0.05):
        interrupt_while_unwinding()


def test_error_raised_while_an_interrupted_block_unwinds_is_dropped(where):
    def work():
        with time_limit(0.05) as limit:
            try:
                wait_forever()
            finally:
                raise ValueError("cleanup failed")
        return limit.stack

    assert "wait_forever" in where(work)


def test_nested_inner_timeout_ends_only_the_inner_block(where):
    def work():
        with time_limit(5) as outer:
            with time_limit(0.05) as inner:
                wait_forever()
            return inner.stack is not None, outer.stack

    assert where(work) == (True, None)


def test_shorter_outer_timeout_ends_both_blocks(where):
    def work():
        started = time.monotonic()
        with time_limit(0.1) as outer:
            with time_limit(5) as inner:
                wait_forever()
            raise AssertionError("must not get here")
        return "wait_forever" in outer.stack, inner.stack, time.monotonic() - started < 1

    assert where(work) == (True, None, True)


def test_outer_timeout_still_applies_after_an_inner_one_has_ended(where):
    def work():
        started = time.monotonic()
        with time_limit(0.2) as outer:
            with time_limit(0.05):
                wait_forever()
            wait_forever()
        return outer.stack is not None, time.monotonic() - started < 1

    assert where(work) == (True, True)


@pytest.fixture
def alarm():
    """An alarm of other code, such as pytest-timeout; returns the times at which it went off."""
    rang: list[float] = []
    before = signal.signal(signal.SIGALRM, lambda signum, frame: rang.append(time.monotonic()))
    yield rang
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_existing_alarm_goes_off_on_time_during_the_block(alarm):
    started = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with time_limit(0.2) as limit:
        wait_forever()
    assert limit.stack is not None
    assert len(alarm) == 1
    assert alarm[0] - started < patience(0.2)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_existing_alarm_continues_after_the_block_with_its_remaining_time(alarm):
    handler = signal.getsignal(signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, 10, 3)
    with time_limit(5):
        time.sleep(0.1)
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    assert 9 < left <= 9.9
    assert interval == 3
    assert signal.getsignal(signal.SIGALRM) is handler
    assert alarm == []


def test_existing_alarm_keeps_its_interval(alarm):
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    with time_limit(0.28):
        wait_forever()
    assert len(alarm) >= 2


def test_no_thread_and_no_alarm_is_left_behind(where):
    before = threading.active_count()
    handler = signal.getsignal(signal.SIGALRM)

    def work():
        for _ in range(3):
            with time_limit(0.02):
                wait_forever()
            with time_limit(5):
                pass

    where(work)
    assert threading.active_count() == before
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)

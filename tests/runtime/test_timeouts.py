"""Time limits: kept to the second, with the stack, and nobody else's alarm is lost."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from synapse_runtime.core.timeouts import time_limit
from tests.patience import patience


def wait_for_ever() -> None:
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
    """Run a function in the main thread, and in another."""
    return request.param


def test_what_ends_in_time_has_no_stack(where):
    def work():
        with time_limit(5) as limit:
            result = 42
        return result, limit.stack

    assert where(work) == (42, None)


def test_without_a_limit_nothing_changes():
    before = signal.getsignal(signal.SIGALRM), threading.active_count()
    with time_limit(None) as limit:
        assert (signal.getsignal(signal.SIGALRM), threading.active_count()) == before
    assert limit.stack is None


def test_what_does_not_end_is_stopped_and_shows_where_it_was(where):
    def work():
        started = time.monotonic()
        with time_limit(0.1) as limit:
            wait_for_ever()
        return limit.stack, time.monotonic() - started

    stack, took = where(work)
    assert "in wait_for_ever\n    time.sleep(0.01)" in stack
    assert 0.1 <= took < patience(1)


def test_no_except_exception_of_the_action_stops_it(where):
    def work():
        with time_limit(0.1) as limit:
            while True:
                try:
                    wait_for_ever()
                except Exception:  # noqa: BLE001 - the point
                    continue
        return limit.stack

    assert "wait_for_ever" in where(work)


def test_a_blocking_call_in_the_main_thread_is_interrupted():
    started = time.monotonic()
    with time_limit(0.1):
        threading.Event().wait(patience(30))
    assert time.monotonic() - started < patience(2)


def test_errors_come_through_and_leave_no_limit_behind(where):
    def work():
        with pytest.raises(KeyError), time_limit(0.05):
            raise KeyError
        time.sleep(0.1)
        return "not stopped"

    assert where(work) == "not stopped"


def interrupt_on_the_way_out() -> None:
    try:
        wait_for_ever()
    finally:
        raise KeyboardInterrupt


def test_an_interrupt_comes_through_even_when_time_has_run_out():
    with pytest.raises(KeyboardInterrupt), time_limit(0.05):
        interrupt_on_the_way_out()


def test_an_error_on_the_way_out_of_a_stopped_block_does_not_count(where):
    def work():
        with time_limit(0.05) as limit:
            try:
                wait_for_ever()
            finally:
                raise ValueError("cleanup failed")
        return limit.stack

    assert "wait_for_ever" in where(work)


def test_limits_nest_and_the_inner_one_ends_the_inner_block_only(where):
    def work():
        with time_limit(5) as outer:
            with time_limit(0.05) as inner:
                wait_for_ever()
            return inner.stack is not None, outer.stack

    assert where(work) == (True, None)


def test_an_outer_limit_that_is_nearer_ends_both_blocks(where):
    def work():
        started = time.monotonic()
        with time_limit(0.1) as outer:
            with time_limit(5) as inner:
                wait_for_ever()
            raise AssertionError("must not get here")
        return "wait_for_ever" in outer.stack, inner.stack, time.monotonic() - started < 1

    assert where(work) == (True, None, True)


def test_the_outer_limit_holds_after_an_inner_one_has_ended(where):
    def work():
        started = time.monotonic()
        with time_limit(0.2) as outer:
            with time_limit(0.05):
                wait_for_ever()
            wait_for_ever()
        return outer.stack is not None, time.monotonic() - started < 1

    assert where(work) == (True, True)


@pytest.fixture
def alarm():
    """Somebody else's alarm, such as pytest-timeout's; gives the moments at which it rang."""
    rang: list[float] = []
    before = signal.signal(signal.SIGALRM, lambda signum, frame: rang.append(time.monotonic()))
    yield rang
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_somebody_elses_alarm_rings_on_time_during_the_block(alarm):
    started = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with time_limit(0.2) as limit:
        wait_for_ever()
    assert limit.stack is not None
    assert len(alarm) == 1
    assert alarm[0] - started < patience(0.2)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_somebody_elses_alarm_goes_on_after_the_block_with_what_is_left_of_it(alarm):
    handler = signal.getsignal(signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, 10, 3)
    with time_limit(5):
        time.sleep(0.1)
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    assert 9 < left <= 9.9
    assert interval == 3
    assert signal.getsignal(signal.SIGALRM) is handler
    assert alarm == []


def test_somebody_elses_alarm_keeps_ringing_at_its_interval(alarm):
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    with time_limit(0.28):
        wait_for_ever()
    assert len(alarm) >= 2


def test_no_thread_and_no_alarm_is_left_behind(where):
    before = threading.active_count()
    handler = signal.getsignal(signal.SIGALRM)

    def work():
        for _ in range(3):
            with time_limit(0.02):
                wait_for_ever()
            with time_limit(5):
                pass

    where(work)
    assert threading.active_count() == before
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)

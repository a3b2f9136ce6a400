"""Tests for interrupts and shields, and for what cancelled calls leave behind."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from synapse_runtime.core import async_bridge
from synapse_runtime.core.interrupts import Interrupts, keyboard_interrupt_deferred, shielded
from synapse_runtime.core.process_state import process_state
from synapse_runtime.core.threads import InterruptibleLock, InterruptibleThread
from synapse_runtime.core.timeouts import time_limit
from synapse_runtime.decorators import action
from synapse_runtime.errors import ActionInterrupted
from synapse_runtime.executors.local import LocalExecutor, _GuardedCallback
from synapse_runtime.loggers import NullLogger
from tests.patience import patience


@action
def one(params, ctx):
    return 1


@action
def two_milliseconds(params, ctx):
    time.sleep(0.002)
    return 2


@action
def in_a_thread(params, ctx):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: 3).result()


async def cancelled_after(seconds: float, executor: LocalExecutor, function: object) -> str:
    task = asyncio.ensure_future(executor.arun(function))
    await asyncio.sleep(0)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until and not task.done():
        await asyncio.sleep(0)
    task.cancel()
    try:
        run = await task
    except asyncio.CancelledError:
        return "cancelled"
    return "done" if run.error is None else repr(run.error)


@pytest.mark.parametrize("function", [one, two_milliseconds, in_a_thread], ids=lambda function: function.__name__)
def test_cancellations_at_any_moment_leave_nothing_behind(function, monkeypatch):
    monkeypatch.setattr(logging.getLogger("synapse"), "disabled", True)
    monkeypatch.setattr(async_bridge, "_STOP_SECONDS", patience(10))
    dice = random.Random(18)
    unexpected: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: unexpected.append(args.exc_type.__name__))
    executor = LocalExecutor(env={"OF_THE_ACTION": "1"}, logger=NullLogger())
    ends: Counter[str] = Counter()

    async def main() -> None:
        until = time.monotonic() + patience(25)
        for _ in range(700):
            ends[await cancelled_after(dice.uniform(0, 0.003), executor, function)] += 1
            assert time.monotonic() < until
        # With other variables, an action waits until the previous ones have left theirs.
        await asyncio.wait_for(LocalExecutor(env={"OTHER": "1"}, logger=NullLogger()).arun(one), patience(10))

    asyncio.run(main())
    assert "OF_THE_ACTION" not in os.environ
    assert process_state._applied == []
    assert unexpected == []
    assert set(ends) <= {"cancelled", "done"}
    assert ends["cancelled"] > 20


def test_member_of_a_task_group_that_fails_at_once_leaves_nothing_behind():
    executor = LocalExecutor(env={"OF_THE_ACTION": "1"}, logger=NullLogger())

    async def fail() -> None:
        raise LookupError

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(executor.arun(one))
            tasks.create_task(fail())

    for _ in range(50):
        with pytest.raises(ExceptionGroup):
            asyncio.run(asyncio.wait_for(group(), patience(30)))
    assert "OF_THE_ACTION" not in os.environ


def interrupted_thread(work) -> tuple[InterruptibleThread, threading.Event, list[str]]:
    ready, said = threading.Event(), []
    thread = InterruptibleThread(lambda: work(ready, said), name="interrupted")
    thread.start()
    assert ready.wait(patience(10))
    return thread, ready, said


def ended(thread: InterruptibleThread) -> None:
    thread.join(patience(10))
    assert not thread.is_alive()


def test_shield_holds_an_interrupt_back_until_it_is_left():
    proceed = threading.Event()

    def work(ready: threading.Event, said: list[str]) -> None:
        with shielded():
            with shielded():
                ready.set()
                proceed.wait(patience(10))
                said.append("inner")
            said.append("outer")
        said.append("after")

    thread, _, said = interrupted_thread(work)
    thread.stop()
    proceed.set()
    ended(thread)
    assert said == ["inner", "outer"]
    with pytest.raises(ActionInterrupted):
        thread.outcome()


def test_what_takes_long_inside_a_shield_is_interrupted_and_the_shield_restored():
    proceed = threading.Event()

    def work(ready: threading.Event, said: list[str]) -> None:
        def long() -> None:
            ready.set()
            while True:
                time.sleep(0.001)

        with shielded() as interrupts:
            with pytest.raises(ActionInterrupted):
                interrupts.call_interruptibly(long)
            said.append("stopped")
            proceed.wait(patience(10))
            said.append("cleaned up")

    thread, _, said = interrupted_thread(work)
    thread.stop()
    while not said:
        time.sleep(0.001)
    thread.stop()
    proceed.set()
    ended(thread)
    assert said == ["stopped", "cleaned up"]
    with pytest.raises(ActionInterrupted):
        thread.outcome()


def test_interrupt_of_a_thread_that_has_ended_reaches_no_other():
    thread = InterruptibleThread(lambda: 1, name="ended")
    thread.start()
    ended(thread)

    def others() -> int:
        for _ in range(20):
            thread.stop()
            time.sleep(0.001)
        return 2

    # The system gives its id to the next thread.
    assert [InterruptibleThread(others, name="next").start_and_wait(1) for _ in range(5)] == [2] * 5
    assert thread.outcome() == 1


def test_thread_that_is_stopped_before_it_starts_does_not_call_its_function():
    said: list[str] = []
    thread = InterruptibleThread(lambda: said.append("called"), name="stopped")
    thread.stop()
    thread.start()
    ended(thread)
    assert said == []
    with pytest.raises(ActionInterrupted):
        thread.outcome()


def test_interrupt_while_a_thread_starts_another_reaches_neither_too_early_nor_the_other():
    failed: list[str] = []

    def child() -> None:
        try:
            for _ in range(50):
                time.sleep(0)
        except BaseException as error:  # noqa: BLE001 - the test is about it
            failed.append(type(error).__name__)

    def work() -> None:
        while True:
            other = threading.Thread(target=child)
            other.start()

    for delay in range(60):
        thread = InterruptibleThread(work, name="starts threads")
        thread.start()
        time.sleep(delay / 20_000)
        thread.stop()
        ended(thread)
    assert failed == []


def test_waiting_for_a_lock_is_interrupted_and_leaves_it_usable():
    lock = InterruptibleLock()
    dice = random.Random(1)
    inside: list[int] = []

    def hold() -> None:
        lock.call(lambda: (inside.append(1), time.sleep(0.0005), inside.pop()))

    for _ in range(150):
        threads = [InterruptibleThread(hold, name=f"waits {number}") for number in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(dice.uniform(0, 0.002))
        for thread in threads[1:]:
            thread.stop()
        for thread in threads:
            ended(thread)
            inside.clear()
    assert lock.call(lambda: "free") == "free"


def test_time_limit_expires_at_the_end_of_a_shield():
    said: list[str] = []
    with time_limit(0.05) as limit:
        with shielded():
            until = time.monotonic() + 0.2
            while time.monotonic() < until:
                pass
            said.append("whole")
        said.append("too late")
    assert said == ["whole"]
    assert limit.stack is not None


def test_time_limit_of_another_thread_expires_at_the_end_of_a_shield():
    def work() -> list[str]:
        said: list[str] = []
        with time_limit(0.05) as limit:
            with shielded():
                time.sleep(0.2)
                said.append("whole")
            said.append("too late")
        assert limit.stack is not None
        return said

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == ["whole"]


def test_ctrl_c_passes_a_shield():
    with pytest.raises(KeyboardInterrupt), shielded():
        raise KeyboardInterrupt
    assert shielded()._shields == 0


def test_wait_ends_at_an_interrupt():
    interrupts = Interrupts(shields=1)
    event = threading.Event()
    threading.Timer(0.05, interrupts.raise_interrupt).start()
    started = time.monotonic()
    interrupts.wait(event, patience(30))
    assert time.monotonic() - started < patience(10)
    with pytest.raises(ActionInterrupted):
        interrupts.raise_deferred()


def test_interrupt_that_arrives_in_a_callback_stops_the_action():
    started, ended = threading.Event(), threading.Event()

    @action
    def emit_forever(params, ctx):
        started.set()
        try:
            while True:
                ctx.log("event")
        finally:
            ended.set()

    async def main() -> None:
        executor = LocalExecutor(logger=NullLogger())
        task = asyncio.ensure_future(executor.arun(emit_forever, on_event=lambda event: None))
        while not started.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for _ in range(20):
        started.clear()
        ended.clear()
        asyncio.run(main())
        assert ended.wait(patience(5))


def test_interrupt_in_a_callback_is_not_an_error_of_the_callback():
    ready = threading.Event()

    def callback(event: object) -> None:
        ready.set()
        while True:
            time.sleep(0)

    guarded = _GuardedCallback(callback)
    thread = InterruptibleThread(lambda: guarded(None), name="emits")  # type: ignore[arg-type]
    thread.start()
    assert ready.wait(patience(10))
    thread.stop()
    ended(thread)
    with pytest.raises(ActionInterrupted):
        thread.outcome()
    guarded.raise_error()


class TestDeferredCtrlC:
    def test_is_raised_at_the_end_of_the_block(self) -> None:
        before, seen = signal.getsignal(signal.SIGINT), []

        def interrupted() -> None:
            with keyboard_interrupt_deferred():
                signal.raise_signal(signal.SIGINT)
                seen.append("goes on")

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert seen == ["goes on"]
        assert signal.getsignal(signal.SIGINT) is before

    def test_is_raised_where_a_callback_would_have_dropped_it(self) -> None:
        class Noisy:
            def __del__(self) -> None:
                signal.raise_signal(signal.SIGINT)
                for _ in range(1000):
                    pass

        with pytest.raises(KeyboardInterrupt), keyboard_interrupt_deferred():
            Noisy()

    def test_is_not_hidden_by_an_error_of_the_block(self) -> None:
        def interrupted() -> None:
            with keyboard_interrupt_deferred():
                signal.raise_signal(signal.SIGINT)
                raise ImportError("half of Ray")

        with pytest.raises(KeyboardInterrupt) as caught:
            interrupted()
        assert isinstance(caught.value.__context__, ImportError)

    def test_other_threads_and_ignored_signals_stay_alone(self) -> None:
        before = signal.getsignal(signal.SIGINT)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(_handler_inside).result() is before
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            assert _handler_inside() is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGINT, before)


def _handler_inside() -> object:
    with keyboard_interrupt_deferred():
        return signal.getsignal(signal.SIGINT)

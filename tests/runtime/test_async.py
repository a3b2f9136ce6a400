"""Tests for `arun` and `aexecute` in local mode, under asyncio and trio."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
import time
import warnings
from pathlib import Path

import anyio
import pytest

from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action
from synapse_runtime.errors import ActionNotFoundError, ExecutionError, ExecutionTimeout, ValidationError
from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.loggers import NullLogger
from tests.patience import patience

pytestmark = pytest.mark.anyio  # each test runs under both
who = contextvars.ContextVar("who", default="nobody")


class Nap(BaseAction):
    def execute(self):
        self.ctx.log("lies down")
        until = time.monotonic() + self.params["seconds"]
        while time.monotonic() < until:
            time.sleep(0.01)
        return "slept"


@action
async def nap_async(params, context):
    context.log("lies down")
    await asyncio.sleep(params["seconds"])
    return "slept"


@action
def nap_in_c(params, context):
    context.log("lies down")
    threading.Event().wait(params["seconds"])
    return "slept"


@action
def speak(params, context):
    print("aloud")
    logging.getLogger("speaker").warning("logged")
    warnings.warn("warned", UserWarning, stacklevel=1)
    context.set_progress(1, 2)
    context.set_progress(2, 2)
    return who.get()


@action
def fail(params, context):
    raise KeyError("lost")


def all_threads_end(seconds: float = 1.0) -> bool:
    """Return whether all threads of calls end: each reports its end a moment before it ends."""
    until = time.monotonic() + seconds
    while any(thread.name.startswith("synapse-") for thread in threading.enumerate()):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


async def test_arun_behaves_like_run(local, capsys, caplog, recwarn):
    who.set("the test")
    run = await local.arun(speak)
    assert run.unwrap() == "the test"
    assert [tuple(progress) for progress in run.progress] == [(1, 2), (2, 2)]
    assert capsys.readouterr().out == "aloud\n"
    assert caplog.messages == ["logged"]
    assert [str(item.message) for item in recwarn] == ["warned"]
    assert run.mode == "local"
    assert all_threads_end()


async def test_arun_raises_the_same_errors_as_run(local):
    with pytest.raises(ExecutionError, match="fail failed: KeyError") as caught:
        await local.aexecute(fail)
    assert caught.value.__cause__.args == ("lost",)
    assert caught.traceback[-1].frame.code.name in ("aexecute", "unwrap")
    assert isinstance((await local.arun(fail)).error, ExecutionError)
    with pytest.raises(ActionNotFoundError):
        await local.aexecute("nothing")
    with pytest.raises(ValueError, match="timeout must be"):
        await local.aexecute(fail, timeout=-1)


async def test_invalid_params_raise_a_validation_error(write_plugin):
    plugin = write_plugin(
        config="code: a\nactions: {double: {entrypoint: 'work:double'}}",
        files={
            "work.py": """
            from pydantic import BaseModel
            from synapse_runtime.decorators import action

            class Params(BaseModel):
                number: int

            @action(params=Params)
            def double(params, context):
                return 2 * params.number
            """
        },
    )
    executor = LocalExecutor(plugin=plugin, logger=NullLogger())
    assert await executor.aexecute("double", {"number": 2}) == 4
    with pytest.raises(ValidationError, match="number"):
        await executor.aexecute("double", {"number": "two"})


async def test_event_loop_keeps_running(local):
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as group:
        group.start_soon(beat)
        assert await local.aexecute(Nap, {"seconds": 0.3}) == "slept"
        group.cancel_scope.cancel()
    assert beats > 10


async def test_one_executor_runs_several_actions_concurrently(local):
    results: list[int] = []

    @action
    def double(params, context):
        time.sleep(0.2)
        return 2 * params["number"]

    async def run(number: int) -> None:
        results.append(await local.aexecute(double, {"number": number}))

    started = time.monotonic()
    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(run, number)
    assert sorted(results) == [0, 2, 4, 6, 8]
    assert time.monotonic() - started < patience(0.9)


async def test_actions_with_different_process_state_wait_for_each_other():
    seen: list[tuple[str, str]] = []

    @action
    def look(params, context):
        first = os.environ["WHOSE"]
        time.sleep(0.1)
        return first, os.environ["WHOSE"]

    async def run(whose: str) -> None:
        seen.append(await LocalExecutor({"WHOSE": whose}, logger=NullLogger()).aexecute(look))

    before = dict(os.environ)
    async with anyio.create_task_group() as group:
        for whose in "abc":
            group.start_soon(run, whose)
    assert sorted(seen) == [("a", "a"), ("b", "b"), ("c", "c")]
    assert dict(os.environ) == before


async def test_fresh_modules_belong_to_one_call(write_plugin):
    plugin = write_plugin(
        config="code: a\nactions: {count: {entrypoint: 'counting:count'}}",
        files={
            "counting.py": """
            import time
            from synapse_runtime.decorators import action

            calls = []

            @action
            def count(params, context):
                time.sleep(0.05)
                calls.append(1)
                return len(calls)
            """
        },
    )
    shared = LocalExecutor(plugin=plugin, logger=NullLogger())
    assert [await shared.aexecute("count") for _ in range(3)] == [1, 2, 3]
    executor = LocalExecutor(plugin=plugin, logger=NullLogger(), fresh=True)
    results: list[int] = []

    async def run() -> None:
        results.append(await executor.aexecute("count"))

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(run)
    assert results == [1, 1, 1, 1]
    assert await shared.aexecute("count") == 4


async def test_action_may_run_another_with_different_process_state(tmp_path):
    @action
    def inner(params, context):
        return os.environ["WHOSE"]

    @action
    async def outer(params, context):
        mine = LocalExecutor({"WHOSE": "inner"}, logger=NullLogger())
        fresh = LocalExecutor({"WHOSE": "fresh"}, logger=NullLogger(), fresh=True)
        return await mine.aexecute(inner), mine.execute(inner), fresh.execute(inner), os.environ["WHOSE"]

    for fresh in (False, True):
        executor = LocalExecutor({"WHOSE": "outer"}, logger=NullLogger(), fresh=fresh)
        with anyio.fail_after(patience(5)):
            assert await executor.aexecute(outer) == ("inner", "inner", "fresh", "outer")


@pytest.mark.parametrize("stuck", [Nap, nap_async, nap_in_c])
async def test_timeout_interrupts_the_action_and_shows_its_stack(local, stuck):
    started = time.monotonic()
    run = await local.arun(stuck, {"seconds": 2.5}, timeout=0.2)
    assert time.monotonic() - started < patience(2)
    assert type(run.error) is ExecutionTimeout
    assert [event.name for event in run.events] == ["lies down"]
    assert any(place in run.error.details for place in ("in execute\n", "in nap_async\n", "in nap_in_c\n"))
    assert "synapse_runtime" not in run.error.details
    assert await local.aexecute(speak_quietly) == "here"
    assert all_threads_end(5)


@action
def speak_quietly(params, context):
    return "here"


async def test_timeout_shows_only_the_stack_of_its_own_call(local):
    @action
    def other(params, context):
        time.sleep(1)

    async with anyio.create_task_group() as group:
        group.start_soon(local.aexecute, other)
        run = await local.arun(Nap, {"seconds": 2.5}, timeout=0.3)
    assert "in execute\n" in run.error.details
    assert "in other\n" not in run.error.details


@pytest.mark.parametrize("stuck", [Nap, nap_async])
async def test_cancelling_the_await_stops_the_action(local, stuck):
    before = dict(os.environ)
    executor = LocalExecutor({"SOME": "thing"}, logger=NullLogger())
    started = time.monotonic()
    with pytest.raises(TimeoutError), anyio.fail_after(0.2):
        await executor.aexecute(stuck, {"seconds": 30})
    assert time.monotonic() - started < patience(1)
    assert all_threads_end()
    assert dict(os.environ) == before
    assert await local.aexecute(speak_quietly) == "here"


async def test_call_blocked_in_c_is_abandoned_with_a_warning(caplog):
    before = dict(os.environ), os.getcwd()
    executor = LocalExecutor({"SOME": "thing"}, logger=NullLogger())
    started = time.monotonic()
    with anyio.move_on_after(0.1):
        await executor.aexecute(nap_in_c, {"seconds": 2.5})
    assert time.monotonic() - started < patience(2)
    assert caplog.messages == ["synapse-action is blocked in native code and keeps running in the background"]
    assert (dict(os.environ), os.getcwd()) == before
    assert await executor.aexecute(speak_quietly) == "here"
    assert all_threads_end(5)


async def test_listeners_are_called_in_the_event_loop_as_events_happen(local):
    received: list[tuple[str, int, float]] = []
    here = threading.get_ident()
    started = time.monotonic()
    await local.arun(
        Nap,
        {"seconds": 0.5},
        on_event=lambda event: received.append((event.name, threading.get_ident(), time.monotonic())),
    )
    ((name, thread, moment),) = received
    assert (name, thread) == ("lies down", here)
    assert moment - started < patience(0.4)


async def test_exception_of_a_listener_stops_the_action_and_is_raised(local):
    def listen(event: object) -> None:
        raise LookupError("not that")

    started = time.monotonic()
    with pytest.raises(LookupError, match="not that"):
        await local.arun(Nap, {"seconds": 30}, on_event=listen)
    assert time.monotonic() - started < patience(2)
    assert all_threads_end()


async def test_action_may_use_its_own_event_loop(local):
    @action
    def ask(params, context):
        async def answer():
            await anyio.sleep(0)
            return "answer"

        return anyio.run(answer), anyio.run(answer, backend="trio")

    assert await local.aexecute(ask) == ("answer", "answer")


async def test_keyboard_interrupt_that_an_action_raises_itself_is_its_error():
    @action
    def interrupt(params, context):
        raise KeyboardInterrupt("mine")

    run = await LocalExecutor(logger=NullLogger()).arun(interrupt)
    assert str(run.error) == "interrupt failed: KeyboardInterrupt: mine"


def test_arun_without_an_event_loop_raises_runtime_error(local):
    with pytest.raises(RuntimeError, match="await them under asyncio or trio, or call run and execute"):
        local.aexecute(speak).send(None)


def test_ctrl_c_stops_the_action(tmp_path: Path):
    import signal
    import subprocess
    import sys

    script = tmp_path / "script.py"
    script.write_text(
        """
import asyncio, sys, time
from pathlib import Path
from synapse_runtime.decorators import action
from synapse_runtime.executors.local import LocalExecutor

@action
def tick(params, context):
    while True:
        Path(sys.argv[1]).write_text(str(time.time()))
        time.sleep(0.01)

try:
    asyncio.run(LocalExecutor().aexecute(tick))
except KeyboardInterrupt:
    before = Path(sys.argv[1]).read_text()
    time.sleep(0.1)
    print("interrupted", Path(sys.argv[1]).read_text() == before)
"""
    )
    ticks = tmp_path / "ticks"
    with subprocess.Popen([sys.executable, str(script), str(ticks)], stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + patience(20)
        while not ticks.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=patience(20))
    assert out == "interrupted True\n"

"""`arun` and `aexecute` in task and job mode."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import anyio
import pytest

from synapse_runtime.errors import ExecutionError, ExecutionTimeout, ValidationError
from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor
from tests.patience import patience, within
from tests.ray.conftest import PLUGIN

pytestmark = pytest.mark.anyio


# Task mode with both event loops; jobs are slow, and do not depend on the event loop.
@pytest.fixture(params=["asyncio-task", "trio-task", "asyncio-job"], scope="session")
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param.partition("-")[0]


@pytest.fixture
def executor(request: pytest.FixtureRequest, anyio_backend: str) -> RayActorExecutor | RayJobsApiExecutor:
    mode = request.node.callspec.params["anyio_backend"].partition("-")[2]
    return request.getfixturevalue(mode)


# A call is awaited in the same kind of thread in all modes; only how it is stopped differs.
not_as_jobs = pytest.mark.parametrize("anyio_backend", ["asyncio-task", "trio-task"], indirect=True, scope="session")


@not_as_jobs
async def test_arun_does_the_same_as_run(executor, capsys):
    events: list[tuple[str, int]] = []
    run = await executor.arun(
        "narrate", {"steps": 2}, on_event=lambda event: events.append((event.kind, threading.get_ident()))
    )
    assert run.unwrap() is None
    assert [event.kind for event in run.events] == [kind for kind, _ in events]
    assert len(events) == 10
    assert {thread for _, thread in events} == {threading.get_ident()}
    await executor.aexecute("print", {"lines": ["aloud"]})
    assert capsys.readouterr().out == "aloud\n"
    with pytest.raises(ExecutionError) as caught:
        await executor.aexecute("fail")
    assert caught.value.__cause__.code == 7
    with pytest.raises(ValidationError, match="steps"):
        await executor.aexecute("narrate", {"steps": "many"})


@not_as_jobs
async def test_event_loop_keeps_running_and_calls_of_one_executor_do_not_mix(executor):
    beats = 0
    results: list[int] = []

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await anyio.sleep(0.01)

    async def echo(number: int) -> None:
        results.append((number, await executor.aexecute("echo", {"value": number})))

    async with anyio.create_task_group() as beating:
        beating.start_soon(beat)
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(echo, number)
        await executor.aexecute("sleep", {"seconds": 0.3})
        beating.cancel_scope.cancel()
    assert sorted(results) == [(0, 0), (1, 1), (2, 2)]
    assert beats > 10


async def test_timeout_is_enforced(executor):
    run = await executor.arun("sleep", {"seconds": 30}, timeout=0.5)
    assert type(run.error) is ExecutionTimeout
    assert run.duration < patience(3)
    assert "in execute" in run.error.details


# Cancelling may interrupt Ray's HTTP client, which leaves its socket to the garbage collector; collect it here, so that
# it does not warn in another test.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_cancelling_stops_the_action_and_the_next_call_works(executor, tmp_path: Path):
    touched = tmp_path / "touched"

    async def cancel_when_it_runs(scope: anyio.CancelScope) -> None:
        while not touched.exists():
            await anyio.sleep(0.02)
        scope.cancel()

    with anyio.fail_after(patience(30)):
        async with anyio.create_task_group() as group:
            group.start_soon(cancel_when_it_runs, group.cancel_scope)
            await executor.aexecute("sleep", {"touch": str(touched)})
    assert touched.exists()
    cancelled_at = time.time()
    assert await executor.aexecute("echo", {"value": 1}) == 1

    def is_at_rest() -> bool:
        before = touched.stat().st_mtime
        time.sleep(0.3)
        return touched.stat().st_mtime == before

    assert within(10, is_at_rest)
    assert touched.stat().st_mtime < cancelled_at + 8
    gc.collect()


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
async def test_call_that_waits_for_the_worker_can_be_cancelled_and_does_not_run(task, tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    async with anyio.create_task_group() as group:
        group.start_soon(task.aexecute, "sleep", {"seconds": 2, "touch": str(first)})
        while not first.exists():
            await anyio.sleep(0.02)
        started = time.monotonic()
        with anyio.move_on_after(0.2):
            await task.aexecute("sleep", {"seconds": 0.1, "touch": str(second)})
        assert time.monotonic() - started < patience(1)
        pid = (await task.aexecute("identify"))["pid"]
    assert not second.exists()
    assert pid != os.getpid()


def test_connecting_in_a_thread_prints_no_warnings(reached):
    program = """
    import asyncio, sys
    from synapse_runtime.executors.ray import RayActorExecutor
    from synapse_runtime.loggers import NullLogger

    async def main():
        with RayActorExecutor(plugin=sys.argv[1], ray_address=sys.argv[2], logger=NullLogger()) as executor:
            print(await executor.aexecute("echo", {"value": 1}))

    asyncio.run(main())
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program), str(PLUGIN), reached["RAY_ADDRESS"]]
    done = subprocess.run(command, env=os.environ | reached, capture_output=True, text=True, timeout=patience(60))
    assert (done.stdout, done.stderr) == ("1\n", "")

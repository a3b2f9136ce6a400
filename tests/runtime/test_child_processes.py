"""Processes that a call leaves running are found, whatever sessions and parents they have, and end with the worker."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from synapse_runtime.executors import child_processes
from synapse_runtime.executors.child_processes import ChildProcesses, Process, descendants, describe, stop
from tests.patience import patience, within

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")
SLEEP = ["sleep", "600"]


def daemonize() -> None:
    """Start a process as daemons do: its parent has exited, and its session is new."""
    script = "import os, subprocess; os.setsid(); subprocess.Popen(['sleep', '600'])"
    subprocess.run([sys.executable, "-c", script], check=True)


def in_new_session() -> None:
    subprocess.Popen(SLEEP, start_new_session=True)


def as_orphan() -> None:
    subprocess.run(["sh", "-c", "sleep 600 &"], check=True)


@pytest.fixture
def processes():
    """A call of this process, as if it were a worker; what is left is stopped."""
    call = ChildProcesses()
    yield call
    child_processes._set_subreaper(False)
    child_processes.adopt_orphans.cache_clear()
    stop(call.left())


def is_running(process: Process) -> bool:
    return child_processes._is_running(process)


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.parametrize("start", [daemonize, in_new_session, as_orphan])
def test_process_that_is_left_is_found_and_stopped(processes: ChildProcesses, start: Callable[[], None]) -> None:
    start()
    (left,) = processes.left()
    assert left.name == "sleep"
    assert describe([left]) == f"sleep (pid {left.pid})"
    stop([left])
    assert within(5, lambda: not is_running(left))
    assert processes.left() == []


def test_process_that_ignores_sigterm_is_killed(processes: ChildProcesses) -> None:
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        stop(processes.left())
        assert process.wait(patience(5)) == -9


def test_processes_that_end_with_the_worker_or_were_there_before_are_not_left(processes: ChildProcesses) -> None:
    before = subprocess.Popen(SLEEP)
    later = ChildProcesses()
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=time.sleep, args=(600,))
    child.start()  # starts the resource tracker, too
    ending = subprocess.Popen(["sleep", "0.05"])
    try:
        assert later.left() == []
        assert [one.pid for one in processes.left()] == [before.pid]
    finally:
        child.kill()
        child.join()
        before.kill()
        before.wait()
        ending.wait()


def test_adopted_process_that_has_ended_does_not_remain_as_a_zombie(processes: ChildProcesses) -> None:
    daemonize()
    (left,) = processes.left()
    os.kill(left.pid, 9)
    assert within(5, lambda: processes.left() == [] and left.pid not in [one.pid for one in descendants()])


WORKER = """
import os, subprocess, sys
from synapse_runtime.executors.child_processes import ChildProcesses, stop_with_this_process

call = ChildProcesses()
subprocess.Popen(["sleep", "600"], start_new_session=True)
(first,) = call.left()
stop_with_this_process([first])
call = ChildProcesses()
if os.fork() == 0:  # holds what this process has open
    os.setsid()
    os.execvp("sleep", ["sleep", "600"]) if len(sys.argv) > 1 else __import__("time").sleep(600)
(second,) = call.left()
stop_with_this_process([second])
print(first.pid, first.started, second.pid, second.started, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["exit", "kill"])
@pytest.mark.parametrize("arguments", [(), ("exec",)], ids=["fork", "exec"])
def test_processes_are_killed_when_their_worker_ends(end: str, arguments: tuple[str, ...]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        numbers = [int(word) for word in worker.stdout.readline().split()]
        left = [
            Process(pid, 0, 0, started, "", False) for pid, started in zip(numbers[::2], numbers[1::2], strict=True)
        ]
        assert all(map(is_running, left))
        if end == "kill":
            worker.kill()
        worker.communicate(timeout=patience(10))
    assert within(10, lambda: not any(map(is_running, left)))

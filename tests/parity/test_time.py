"""Rows 15 and 16: timeouts and Ctrl-C."""

import gc
import os
import signal
import threading
import time

import pytest

from synapse_runtime.errors import ExecutionTimeout
from tests.parity.modes import everywhere, not_as_jobs, on_workers_and_backends
from tests.patience import patience

pytestmark = everywhere


@pytest.mark.synapse(timeout=1)
def test_15_stuck_action_is_stopped_at_its_timeout_with_its_stacks_and_the_next_call_works(synapse_executor, capfd):
    run = synapse_executor.run("lab.workers:Stuck")
    assert type(run.error) is ExecutionTimeout
    assert run.duration < patience(3)
    assert str(run.error) == "lab.workers:Stuck exceeded its timeout of 1 s"
    own, _, beside = run.error.details.partition("Thread beside:\n")
    assert "in execute\n    wait_for_ever()" in own
    assert "in wait_for_ever\n    time.sleep(0.05)" in own
    assert "in wait_beside\n    time.sleep(30)" in beside
    assert "synapse_runtime" not in run.error.details
    assert [event.name for event in run.events] == ["waiting"]
    assert "before it got stuck" in capfd.readouterr().out
    assert_next_call_works(synapse_executor)


def assert_next_call_works(executor):
    if executor.mode != "job":  # each job has its own process
        assert executor.execute("echo", {"value": 1}) == 1


@not_as_jobs
@pytest.mark.synapse(timeout=1)
def test_15_stack_of_a_coroutine_shows_where_it_waits(synapse_executor):
    details = synapse_executor.run("lab.workers:StuckAsync").error.details
    assert "in execute\n    await never()" in details
    assert "in never\n    await asyncio.Event().wait()" in details
    assert "selectors.py" not in details


@not_as_jobs
def test_15_timeout_can_be_passed_with_the_call(synapse_executor):
    run = synapse_executor.run("lab.workers:StuckAsync", timeout=0.5)
    assert str(run.error) == "lab.workers:StuckAsync exceeded its timeout of 0.5 s"
    assert run.duration < patience(2.5)
    with pytest.raises(ExecutionTimeout, match=r"its timeout of 0\.5 s"):
        synapse_executor.execute("lab.workers:StuckAsync", timeout=0.5)


@on_workers_and_backends
@pytest.mark.synapse(timeout=1)
def test_15_action_that_cannot_be_interrupted_is_killed_with_its_worker(synapse_executor):
    run = synapse_executor.run("lab.workers:StuckInC")
    assert type(run.error) is ExecutionTimeout
    assert run.duration < patience(4)
    assert "in block_in_c" in run.error.details
    assert "synapse_runtime" not in run.error.details
    assert_next_call_works(synapse_executor)


@on_workers_and_backends
@pytest.mark.synapse(timeout=0.5)
def test_15_suspended_process_is_killed_from_outside(synapse_executor, monkeypatch):
    monkeypatch.setattr("synapse_runtime.executors.ray.task._OVERDUE_SECONDS", 1.0)
    run = synapse_executor.run("lab.workers:Halt")
    assert type(run.error) is ExecutionTimeout
    assert "exceeded its timeout of 0.5 s and could not be interrupted" in str(run.error)
    assert run.duration < patience(4)
    assert_next_call_works(synapse_executor)


@pytest.mark.synapse(mode="task", timeout=1)
def test_15_worker_that_timed_out_is_replaced(synapse_executor):
    before = synapse_executor.execute("lab.workers:Where")["pid"]
    synapse_executor.run("lab.workers:Stuck")
    assert synapse_executor.execute("lab.workers:Where")["pid"] != before


# The interrupt may hit a request of Ray's HTTP client, which leaves its socket to the garbage collector; the test calls
# it, so that it does not run in another test.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_16_interrupted_action_stops(synapse_executor, tmp_path):
    path = tmp_path / "ticks"

    def interrupt_when_it_ticks():
        deadline = time.monotonic() + patience(30)
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_when_it_ticks, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        synapse_executor.execute("lab.workers:Tick", {"path": str(path)})
    assert path.exists()
    deadline = time.monotonic() + patience(10)
    size = -1
    while size != path.stat().st_size and time.monotonic() < deadline:
        size = path.stat().st_size
        time.sleep(0.5)
    assert size == path.stat().st_size
    assert synapse_executor.execute("echo", {"value": 1}) == 1
    gc.collect()

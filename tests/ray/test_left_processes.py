"""Processes that an action leaves running: a warning names them, a job stops them, and they end with a warm worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from synapse_runtime.decorators import action
from synapse_runtime.errors import ExecutionError, ProcessesLeftWarning, WorkerCrashed
from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor
from synapse_runtime.executors.ray.task import WarmWorker
from synapse_runtime.loggers import NullLogger
from tests.patience import within

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")


@action
def leave_daemons(params, context):
    in_new_session = subprocess.Popen(["sleep", "600"], start_new_session=True)
    in_new_session.returncode = 0  # as if it had been detached
    script = "import os, subprocess; os.setsid(); print(subprocess.Popen(['sleep', '600'], stdout=2).pid)"
    forked_twice = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE).stdout
    return [in_new_session.pid, int(forked_twice)]


@action
def leave_daemons_and_crash(params, context):
    Path(params["file"]).write_text(repr(leave_daemons(params, context)))
    os.kill(os.getpid(), signal.SIGKILL)


@action
def look(params, context):
    return [os.path.exists(f"/proc/{pid}") for pid in params["pids"]]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_job_stops_the_daemons_of_its_action_and_warns(job: RayJobsApiExecutor) -> None:
    with pytest.warns(ProcessesLeftWarning) as caught:
        pids = job.execute(leave_daemons)
    assert not any(map(is_running, pids))
    (text,) = (str(one.message) for one in caught)
    assert text.startswith("leave_daemons has left processes running, which have been stopped: ")
    assert all(f"sleep (pid {pid})" in text for pid in pids)


def test_job_stops_the_daemons_of_an_action_that_crashed(job: RayJobsApiExecutor, tmp_path: Path) -> None:
    file = tmp_path / "pids"
    with pytest.raises(WorkerCrashed, match="was killed by SIGKILL"):
        job.execute(leave_daemons_and_crash, {"file": str(file)})
    assert not any(map(is_running, json.loads(file.read_text())))


def test_warm_worker_keeps_the_daemons_of_its_actions_until_it_ends_and_warns_once() -> None:
    worker = WarmWorker()
    executor = RayActorExecutor(worker=worker, logger=NullLogger())
    with pytest.warns(ProcessesLeftWarning, match="left processes running, which will be killed when its worker ends"):
        pids = executor.execute(leave_daemons)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert executor.execute(look, {"pids": pids}) == [True, True]
    worker.close()
    assert within(10, lambda: not any(map(is_running, pids)))


def test_warning_that_is_turned_into_an_error_fails_the_run(worker: WarmWorker) -> None:
    executor = RayActorExecutor(worker=worker, logger=NullLogger())
    with warnings.catch_warnings():
        warnings.simplefilter("error", ProcessesLeftWarning)
        with pytest.raises(ExecutionError, match="ProcessesLeftWarning: leave_daemons has left processes running"):
            executor.execute(leave_daemons)

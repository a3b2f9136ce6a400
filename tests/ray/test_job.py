"""Job mode: jobs by their ids, and the log as a channel."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid

import pytest

from synapse_runtime.decorators import action
from synapse_runtime.errors import ClusterError, ExecutionError, ValidationError
from synapse_runtime.executors.ray import RayJobsApiExecutor
from synapse_runtime.executors.ray.cluster.preflight import session_directory
from synapse_runtime.executors.ray.job_log import EVENT, RUN, LogWriter
from synapse_runtime.loggers import NullLogger
from tests.cli.processes import cluster
from tests.patience import patience
from tests.ray.conftest import PLUGIN


@pytest.fixture(scope="module")
def echoed(job: RayJobsApiExecutor) -> str:
    """A job that has succeeded, with the result `[1, 2]`."""
    job_id = job.submit("echo", {"value": [1, 2]})
    assert job.wait(job_id, timeout=patience(60)) == "SUCCEEDED"
    return job_id


@pytest.fixture(scope="module")
def failed(job: RayJobsApiExecutor, echoed: str) -> str:
    """A job whose action has raised, submitted after `echoed`."""
    job_id = job.submit("fail")
    job.wait(job_id, timeout=patience(60))
    return job_id


def test_job_can_be_submitted_and_followed_to_its_end_and_returns_its_result(job):
    job_id = job.submit("narrate", {"steps": 8, "pause": 0.6})  # long enough that its log is followed, not polled
    assert job.get_status(job_id) in {"PENDING", "RUNNING"}
    lines = list(job.stream_logs(job_id))
    assert all(line.endswith("\n") for line in lines)
    assert any("walk: 4/8 (50%)" in line for line in lines)
    assert sum("walk: height=" in line for line in lines) == 8
    assert job.wait(job_id, timeout=patience(30)) == "SUCCEEDED"
    assert job.get_logs(job_id) == "".join(lines)
    assert job.get_result(job_id) is None
    assert job.get_run(job_id).progress == [(step, 8) for step in range(1, 9)]


@action
def ray_address(params, context):
    return os.environ["RAY_ADDRESS"]


def test_ray_address_of_a_job_is_its_own_cluster_if_there_are_several(job):
    program = """
    import sys
    from synapse_runtime.executors.ray import RayJobsApiExecutor
    from tests.ray.test_job import ray_address

    with RayJobsApiExecutor(plugin=sys.argv[1], ray_address=sys.argv[2]) as executor:
        print(executor.execute(ray_address))
    """
    with cluster(num_cpus=1) as other:
        assert job.execute(ray_address) == job.cluster.address
        command = [sys.executable, "-c", textwrap.dedent(program), str(PLUGIN), other["address"]]
        done = subprocess.run(command, env=os.environ | other, capture_output=True, text=True, timeout=patience(60))
        assert done.stdout == other["address"] + "\n", done.stderr


def test_python_path_with_a_space_is_rejected_immediately(echoed, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/my projects/venv/bin/python")
    with pytest.raises(ClusterError, match=r"path of Python contains a space: '/my projects/venv/bin/python'\. Create"):
        RayJobsApiExecutor(plugin=PLUGIN, logger=NullLogger()).submit("echo", {"value": 1})


def test_another_executor_can_fetch_the_result_by_id(echoed):
    assert RayJobsApiExecutor(logger=NullLogger()).get_result(echoed, timeout=patience(30)) == [1, 2]


def test_result_and_log_are_exact_whatever_the_action_prints(job):
    lines = [
        '{"result": "mine"}',
        LogWriter().frame(RUN, {"forged": 1}).decode().strip(),
        LogWriter().frame(EVENT, {"forged": 1}).decode().strip(),
        "\x1e",
        "\x1erun",
        "SYNAPSE_RESULT_START",
        "no newline problem \r carriage",
        "",
    ]
    job_id = job.submit("print", {"count": 10_000, "lines": lines})
    assert job.get_result(job_id, timeout=patience(60)) == {"printed": 10_000}
    expected = "".join(f"line {n}\n" for n in range(10_000)) + "".join(line + "\n" for line in lines)
    log = job.get_logs(job_id)
    assert log.replace("child\n", "") == expected
    assert "".join(job.stream_logs(job_id)) == log


def test_result_of_a_failed_job_raises_the_exception_of_its_action(job, failed):
    with pytest.raises(ExecutionError, match="OwnError") as caught:
        job.get_result(failed, timeout=patience(30))
    assert type(caught.value.__cause__).__name__ == "OwnError"


def test_waiting_has_a_timeout_and_stopping_a_job_stops_its_action_and_a_deleted_job_stays_deleted(job, tmp_path):
    heartbeat = tmp_path / "heartbeat"
    job_id = job.submit("sleep", {"touch": str(heartbeat)})
    deadline = time.monotonic() + patience(20)
    while not heartbeat.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(TimeoutError, match=job_id):
        job.wait(job_id, timeout=0.2)
    with pytest.raises(TimeoutError, match=job_id):
        job.get_result(job_id, timeout=0.2)
    assert job.get_status(job_id) == "RUNNING"
    assert job.stop(job_id)
    assert job.wait(job_id, timeout=patience(20)) == "STOPPED"
    with pytest.raises(ExecutionError, match="was stopped"):
        job.get_result(job_id, timeout=patience(5))
    last = heartbeat.read_text()
    cluster, client = job._connect()
    directory = session_directory(client.get_address(), cluster.headers)
    logs = [path for path in (directory / "logs").rglob("*") if job_id in path.name]
    assert logs
    assert job.delete(job_id)
    assert not any(path.exists() for path in logs)
    until = time.monotonic() + 2  # for a while, Ray may create it again
    while time.monotonic() < until:
        with pytest.raises(ClusterError, match=f"has no job '{job_id}'"):
            job.get_status(job_id)
        time.sleep(0.2)
    assert heartbeat.read_text() == last


def test_ctrl_c_stops_the_job_on_an_ephemeral_cluster_without_prompting():
    prompts = []
    executor = RayJobsApiExecutor(plugin=PLUGIN, logger=NullLogger(), leave_running=prompts.append)

    def press_ctrl_c(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executor.run("narrate", {"steps": 100, "pause": 0.5}, on_event=press_ctrl_c)
    (left,) = executor._calls
    assert executor.wait(left, timeout=patience(20)) == "STOPPED"
    assert prompts == []


def test_jobs_of_actions_are_listed_in_order(job, echoed, failed):
    summaries = job.list_jobs()
    ids = [summary.id for summary in summaries]
    assert ids.index(echoed) < ids.index(failed)
    summary = summaries[ids.index(echoed)]
    assert (summary.action, summary.status) == ("echo", "SUCCEEDED")
    assert 0 < summary.took < patience(30)


def test_ephemeral_cluster_is_not_used_without_start_cluster(echoed):
    executor = RayJobsApiExecutor(plugin=PLUGIN, logger=NullLogger(), start_cluster=False)
    with pytest.raises(ClusterError, match="no cluster that outlives this process: start one with"):
        executor.submit("echo")


def test_job_id_can_be_used_only_once_and_neither_listings_nor_local_files_contain_the_environment(job, monkeypatch):
    secret, job_id = uuid.uuid4().hex, f"train-{uuid.uuid4().hex[:8]}"
    executor = RayJobsApiExecutor({"API_KEY": secret}, plugin=PLUGIN, logger=NullLogger())
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", "/nowhere")  # so that writing a file fails
        assert executor.submit("echo", {"value": 1}, job_id=job_id) == job_id
    with pytest.raises(ClusterError, match="already"):
        job.submit("echo", job_id=job_id)
    assert executor.get_result(job_id, timeout=patience(30)) == 1
    _, client = executor._connect()
    assert all(secret not in str(details) for details in client.list_jobs())


def test_submit_rejects_invalid_params(job):
    with pytest.raises(ValidationError, match="seconds"):
        job.submit("sleep", {"seconds": "long"})


def test_unavailable_resources_raise_an_error_immediately():
    executor = RayJobsApiExecutor(plugin=PLUGIN, num_gpus=7, logger=NullLogger())
    with pytest.raises(ClusterError, match=r"requested num_gpus=7, but the cluster has 2 GPUs in total"):
        executor.submit("echo")


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), 1e12])
def test_timeout_of_a_wait_must_be_a_number_of_seconds(timeout):
    executor = RayJobsApiExecutor(ray_address="127.0.0.1:9", start_cluster=False)
    for wait in (executor.wait, executor.get_run, executor.get_result):
        with pytest.raises(ValueError, match="timeout must be a "):
            wait("some-job", timeout)

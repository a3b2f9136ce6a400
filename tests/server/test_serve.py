"""`synapse serve`: start, stop, and what a server that was killed leaves; and the embedded server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from synapse_runtime.cli.app import run
from synapse_runtime.errors import RemoteError
from synapse_runtime.executors.remote.embedded_server import serve_embedded
from synapse_runtime.run_record import RunRecord
from tests.patience import patience, within
from tests.server.conftest import Client, Serve, client_of, write_plugin
from tests.server.test_runs import is_running, pid_in


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run `synapse serve`, which must be refused, in this process; return what it says."""
    assert run(["serve", *map(str, arguments)]) in (1, 2)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return " ".join(said.replace("│", " ").split())


def test_server_says_where_it_is_and_writes_a_private_login_file(
    serve: Serve, lab: Path, tmp_path: Path, state: dict[str, str]
) -> None:
    data = tmp_path / "data"
    with serve(lab, "--data", data) as served:
        port = served.client.host.rpartition(":")[2]
        file = Path(state["XDG_STATE_HOME"], "synapse", "servers", f"{port}.json")
        assert file.stat().st_mode & 0o777 == 0o600
        login = json.loads(file.read_text())
        assert login == {"host": served.client.host, "token": served.client.token, "pid": served.process.pid}
        assert (data / "token").read_text().strip() == login["token"]
        assert (data / "token").stat().st_mode & 0o777 == 0o600
        assert served.client.run("echo", {"a": 1})["result"] == {"a": 1}
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(patience(20)) == 0
        assert not file.exists()
        _, stderr = served.process.communicate()
        assert b"synapse login --local" in stderr
        assert login["token"].encode() not in stderr


def test_server_keeps_its_data(serve: Serve, lab: Path, tmp_path: Path) -> None:
    with serve(lab, "--data", tmp_path / "data") as served:
        token, job = served.client.token, served.client.run("train")
    with serve(lab, "--data", tmp_path / "data") as served:
        assert served.client.token == token
        assert served.client.get(f"/jobs/{job['id']}/").text.count("NaN") == 1
        assert served.client.json(f"/jobs/{job['id']}/")["result"] == job["result"]
        assert served.client.events(job["id"])[-1][1] == "end"
        assert served.client.post("/runtime/reset/").status_code == 403
        assert "reset" not in served.client.json("/runtime/")["features"]


def test_stopped_server_fails_its_jobs_and_ends_their_processes(serve: Serve, lab: Path, tmp_path: Path) -> None:
    with serve(lab, "--data", tmp_path / "data", "--concurrency", "1") as served:
        running = served.client.start("sleep", {"file": str(tmp_path / "pid")})
        waiting = served.client.start("echo")
        pid = pid_in(tmp_path / "pid")
        follower = served.client.http.send(
            served.client.http.build_request("GET", f"/runtime/jobs/{running}/events/"), stream=True
        )
        served.process.send_signal(signal.SIGHUP)
        assert served.process.wait(patience(20)) == 0
        follower.close()
        assert not is_running(pid)
    with serve(lab, "--data", tmp_path / "data") as served:
        for job_id in (running, waiting):
            job = served.client.json(f"/v2/jobs/{job_id}/")["data"]
            assert (job["status"], job["error"]["error_type"]) == ("FAILED", "infrastructure")


@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_killed_server_leaves_no_process_and_no_job_without_an_end(
    serve: Serve, lab: Path, tmp_path: Path, delay: float
) -> None:
    data, file = tmp_path / "data", tmp_path / "pid"
    with serve(lab, "--data", data, "--concurrency", "2") as served:
        client: Client = served.client
        slow = client.start("sleep", {"file": str(file)})
        pid = pid_in(file)
        jobs = [slow, *(client.start("train", {"epochs": 3}) for _ in range(6))]
        time.sleep(delay)
        served.process.kill()
        served.process.wait()
    assert within(10, lambda: not is_running(pid))
    with serve(lab, "--data", data) as served:
        client = served.client
        assert client.json("/jobs/")["count"] == len(jobs)
        for job_id in jobs:
            job = client.json(f"/jobs/{job_id}/")
            assert job["status"] in ("SUCCEEDED", "FAILED")
            assert (job["result"] == {"accuracy": 0.9, "weights": "weights.npz"}) == (job["status"] == "SUCCEEDED")
            events = client.events(job_id)
            assert [number for number, _, _ in events] == [*range(1, len(events) + 1)]
            assert [kind for _, kind, _ in events].count("end") == 1
            run = RunRecord.loads(client.get(f"/runtime/jobs/{job_id}/run/").text).to_run()
            if job["status"] == "FAILED":
                assert job["meta"]["error"]["error_type"] == "infrastructure"
                assert type(run.error).__name__ == "WorkerCrashed"
        assert client.json(f"/jobs/{slow}/")["status"] == "FAILED"
        assert client.run("echo")["status"] == "SUCCEEDED"


def test_second_server_on_the_same_data_is_refused(
    serve: Serve, lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(lab, "--data", tmp_path / "data") as served:
        said = refusal(capsys, "--port", "0", "--data", tmp_path / "data")
        assert f"in use by another server (pid {served.process.pid})" in said
        assert "--data" in said
        port = served.client.host.rpartition(":")[2]
        said = refusal(capsys, "--port", port, "--ephemeral")
        assert f"cannot listen on 127.0.0.1:{port}" in said
        assert served.client.get("/ready/").status_code == 200


def test_wrong_command_lines_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free = ("--port", "0", "--ephemeral")
    assert "config.yaml" in refusal(capsys, *free, tmp_path)
    assert "--insecure" in refusal(capsys, *free, "--bind", "0.0.0.0")
    assert "expected one of worker, task, job" in refusal(capsys, "--run-in", "cloud")
    assert "cannot be used with --ephemeral" in refusal(capsys, *free, "--data", tmp_path)
    assert "requires --run-in" in refusal(capsys, *free, "--ray-address", "auto")
    first, second = write_plugin(tmp_path / "a"), write_plugin(tmp_path / "b")
    assert "its code 'lab' is also that of the plugin in" in refusal(capsys, *free, first, second)


def test_embedded_server_ends_with_its_block(lab: Path) -> None:
    with serve_embedded([lab]) as server:
        assert httpx.get(f"{server.host}/health/").status_code == 200
        assert server.token not in repr(server)
        client = client_of(server.host, server.token)
        job_id = client.start("sleep")
        client.wait_for_output(job_id)
        client.close()
    assert not is_running(server.pid)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.host}/health/")


def test_embedded_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match=r"did not start: .*config\.yaml"), serve_embedded([tmp_path]):
        pass


def test_embedded_server_ends_when_its_parent_is_killed(lab: Path, tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from synapse_runtime.executors.remote.embedded_server import serve_embedded\n"
        f"with serve_embedded([{str(lab)!r}]) as server:\n"
        "    print(server.pid, server.host, server.token, flush=True)\n"
        "    time.sleep(300)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid, host, token = parent.stdout.readline().decode().split()
    client = client_of(host, token)
    client.start("sleep", {"file": str(tmp_path / "pid")})
    action = pid_in(tmp_path / "pid")
    client.close()
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    assert within(15, lambda: not is_running(int(pid)) and not is_running(action))

"""A server that runs its jobs on a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from synapse_runtime.executors.remote.embedded_server import serve_embedded
from synapse_runtime.run_record import RunRecord
from tests.server.conftest import client_of, write_plugin


@pytest.mark.parametrize("run_in", ["task", pytest.param("job", marks=pytest.mark.thorough)])
def test_server_runs_jobs_on_a_cluster(
    reached: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_in: str
) -> None:
    for name, value in reached.items():
        monkeypatch.setenv(name, value)
    with serve_embedded([write_plugin(tmp_path)], run_in=run_in) as server:
        client = client_of(server.host, server.token)
        job = client.run("train")
        assert (job["status"], job["result"]) == ("SUCCEEDED", {"accuracy": 0.9, "weights": "weights.npz"})
        assert [kind for _, kind, _ in client.events(job["id"])].count("metric") == 2
        run = RunRecord.loads(client.get(f"/runtime/jobs/{job['id']}/run/").text).to_run()
        assert (run.mode, run.stdout, bool(run.node)) == ("remote", "epoch 0\nepoch 1\n", True)
        assert client.run("train", {"epochs": "many"})["meta"]["error"]["error_type"] == "validation_error"
        running = client.start("sleep")
        client.wait_for_output(running)
        assert client.post(f"/v2/jobs/{running}/stop/").json()["data"]["status"] == "STOPPED"
        client.close()

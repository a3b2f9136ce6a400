"""The SDK's clients, with their own checks of each answer, and its worker, against our server."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from synapse_runtime.executors.remote.backend import connect
from tests.patience import within
from tests.sdk_remote.conftest import Sdk

V1 = """
import json, sys, time
from synapse_sdk.clients.backend import BackendClient

client = BackendClient(sys.argv[1], access_token=sys.argv[2])
(agent,) = client.list_agents()
token = agent.token if hasattr(agent, "token") else agent["token"]
client.health_check_agent(token)
made = client.create_plugin({"name": "Made", "code": "made", "category": "custom"})
client.update_plugin(made["id"], {"name": "Made twice", "code": "made", "category": "custom"})
releases = client.list_plugin_releases("digits")
releases = releases["results"] if isinstance(releases, dict) else releases
release = client.get_plugin_release_by_lookup("digits@1.0.0")
assert client.get_plugin_release(release["id"], params={"expand": "plugin"})["plugin"]["code"] == "digits"
job_id = client.run_plugin("digits", {"agent": 1, "action": "train", "params": {"epochs": 2}, "debug": True})["job_id"]
tailed = [*client.tail_job_console_logs(job_id)]
while client.get_job(job_id)["status"] in ("PENDING", "RUNNING"):
    time.sleep(0.1)
job = client.get_job(job_id)
jobs = client.list_jobs(params={"status": "SUCCEEDED"})
print(json.dumps({
    "name": client.get_plugin(made["id"])["name"],
    "releases": [each["version"] for each in releases],
    "job": {name: job[name] for name in ("status", "action", "result", "metrics_record")},
    "listed": job_id in [each["id"] for each in jobs["results"]],
    "lines": client.list_job_console_logs(job_id),
    "tailed": tailed,
}))
"""
V2 = """
import json, sys
from synapse_sdk.clients.backend_v2 import BackendClientV2

client = BackendClientV2(sys.argv[1], access_token=sys.argv[2], allow_insecure=True)
jobs = [*client.jobs.list(list_all=True, per_page=2)]
job = client.jobs.retrieve(sys.argv[3])
print(json.dumps([len(jobs), str(job.id), str(job.status)], default=str))
"""


def test_v1_client_accepts_each_answer(sdk: Sdk) -> None:
    answer = sdk.run(V1, sdk.server.host, sdk.server.token)
    assert answer["name"] == "Made twice"
    assert answer["releases"] == ["1.0.0"]
    loss = answer["job"].pop("metrics_record")["record"]["steps"]["train"]["loss"]
    assert math.isnan(loss)  # sent bare, as the SDK does
    assert answer["job"] == {"status": "SUCCEEDED", "action": "train", "result": {"accuracy": 0.9}}
    assert answer["listed"]
    assert answer["lines"] == ["epoch 0 of 2\n", "epoch 1 of 2\n"]
    assert [line for line in answer["tailed"] if "epoch" in line]


def test_v2_client_accepts_jobs_and_follows_pages(sdk: Sdk) -> None:
    jobs = [sdk.job_of(sdk("plugin", "run", "deploy", "--mode", "remote")) for _ in range(3)]
    client = connect(sdk.server.host, sdk.server.token)
    assert within(30, lambda: all(client.job(job_id).has_ended for job_id in jobs))
    count, found, status = sdk.run(V2, sdk.server.host, sdk.server.token, jobs[0])
    assert count >= 3
    assert (found, status.rpartition(".")[2].upper()) == (jobs[0], "SUCCEEDED")


@pytest.mark.parametrize(
    ("action", "params", "status", "result"),
    [
        ("TrainAction", {"epochs": 2}, "SUCCEEDED", {"accuracy": 0.9}),
        ("FailAction", {}, "FAILED", {"error": "no weights"}),
        ("TrainAction", {"epochs": "many"}, "FAILED", None),
    ],
    ids=["succeeds", "raises", "wrong params"],
)
def test_worker_of_the_sdk_reports_to_the_server(
    sdk: Sdk, action: str, params: dict[str, Any], status: str, result: Any
) -> None:
    client = connect(sdk.server.host, sdk.server.token)
    # A job that waits: the SDK's worker reports on it in place of ours.
    job_id = sdk.job_of(sdk("plugin", "run", "wait", "--mode", "remote"))
    assert within(30, lambda: client.job(job_id).status == "RUNNING")
    sdk.work(job_id, f"plugin.main.{action}", json.dumps(params))
    job = client.job(job_id)
    assert job.status == status
    if result is not None:
        assert job.result == result
    if status == "SUCCEEDED":
        assert job.metrics["record"]["steps"]["train"]["epoch"] == 1
        assert job.progress["record"]["steps"]["train"]["percent"] == 100.0

"""The SDK's clients, with their own checks of each answer, and its worker, against our server."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.sdk_remote.conftest import Sdk
from tests.server.conftest import plugin_zip

V1 = """
import json, sys, time
from synapse_sdk.clients.backend import BackendClient

client = BackendClient(sys.argv[1], access_token=sys.argv[2])
(agent,) = client.list_agents()
assert agent.is_connected
assert client.health_check_agent(agent.extract_token() or agent.token)["id"] == agent.id
made = client.create_plugin({"name": "Made", "code": "made", "category": "custom"})
client.update_plugin(made["id"], {"name": "Made twice", "code": "made", "category": "custom"})
name = client.get_plugin(made["id"])["name"]
published = client.create_plugin_release({"plugin": "made", "version": "2.0.0", "config": {}}, file=sys.argv[3])
release = client.get_plugin_release_by_lookup("made@2.0.0")
assert client.get_plugin_release(release["id"], params={"expand": "plugin"}) == release
assert (release["id"], release["plugin"]["code"]) == (published["id"], "made")
releases = client.list_plugin_releases("made")
run = {"agent": agent.id, "action": "train", "params": {"epochs": 2}, "debug": True, "language": "en"}
job_id = client.run_plugin("made", run)["job_id"]
tailed = [*client.tail_job_console_logs(job_id)]
while client.get_job(job_id)["status"] in ("PENDING", "RUNNING"):
    time.sleep(0.1)
job = client.get_job(job_id, params={"expand": "plugin_release"})
client.update_job(job_id, {"meta": {"note": "kept"}})
client.create_logs({"event": "message", "data": {"content": "later"}, "job": job_id})
client.create_logs([{"event": "file", "data": {}, "job": job_id, "file": sys.argv[4]}] * 2)
application = client.create_serve_application({"job": job_id, "status": "RUNNING", "data": {"name": "made@2.0.0"}})
client.create_serve_application({"job": job_id, "status": "UNHEALTHY"})
listed = client.list_serve_applications(params={"plugin_code": "made", "job__agent": agent.id})
pages, count = client.list_serve_applications(params={"page_size": 1}, list_all=True)
print(json.dumps({
    "name": name,
    "releases": [each["version"] for each in releases],
    "job": {name: job[name] for name in ("status", "action", "result", "metrics_record")},
    "meta": client.get_job(job_id)["meta"],
    "listed": [each["id"] for each in client.list_jobs(params={"status": "SUCCEEDED", "plugin": "made"})["results"]],
    "job_id": job_id,
    "lines": client.list_job_console_logs(job_id),
    "tailed": [json.loads(line.removeprefix("data: ")) for line in tailed if line],
    "applications": [[each["job"], each["status"]] for each in listed["results"]],
    "paged": [each["id"] == application["id"] for each in pages],
}))
"""
V2 = """
import json, sys
from synapse_sdk.clients.backend_v2 import BackendClientV2
from synapse_sdk.clients.exceptions import NotFoundError

client = BackendClientV2(sys.argv[1], access_token=sys.argv[2], allow_insecure=True)
ended, running = sys.argv[3:]
jobs = client.jobs
patched = jobs.partial_update(ended, {"meta": {"note": "kept"}})
stopped = jobs.stop(running)
try:
    jobs.retrieve("550e8400-e29b-41d4-a716-446655440000")
except NotFoundError as error:
    missing = str(error)
print(json.dumps({
    "first": [str(job.id) for job in jobs.list(per_page=2).results],
    "all": [str(job.id) for job in jobs.list(list_all=True, per_page=1, action="train")],
    "ended": [jobs.retrieve(ended).status.value, jobs.retrieve(ended).plugin_release.version, patched.meta],
    "stopped": [stopped.status.value, jobs.retrieve(running).is_active],
    "logs": jobs.console_logs(ended).logs,
    "missing": missing,
}, default=str))
"""
OF_A_RUN = """
import json, os, sys
from synapse_sdk.clients.backend import BackendClient
from synapse_sdk.clients.exceptions import AuthorizationError, NotFoundError

client = BackendClient(os.environ["SYNAPSE_HOST"], access_token=os.environ["SYNAPSE_ACCESS_TOKEN"])
job_id = os.environ["SYNAPSE_JOB_ID"]
refused = []
for call in (
    lambda: client.get_job(sys.argv[1]),
    lambda: client.update_job(sys.argv[1], {"meta": {}}),
    lambda: client.create_serve_application({"job": sys.argv[1]}),
    lambda: client.run_plugin("digits", {"action": "train"}),
    lambda: client.create_plugin({"name": "Mine", "code": "mine"}),
):
    try:
        call()
    except (AuthorizationError, NotFoundError) as error:
        refused.append(type(error).__name__)
updated = client.update_job(job_id, {"progress_record": {"a": 1}, "metrics_record": {"loss": float("nan")}})
print(json.dumps({
    "status": updated["status"],
    "log": client.create_logs({"event": "message", "data": {"content": "hi"}, "job": job_id})["event"],
    "release": client.get_plugin_release_by_lookup(os.environ["SYNAPSE_PLUGIN_RELEASE_CODE"])["version"],
    "application": client.create_serve_application({"job": job_id, "status": "DEPLOYING"})["job"] == job_id,
    "jobs": [job["id"] == job_id for job in client.list_jobs()["results"]],
    "refused": refused,
}))
"""


def test_v1_client_accepts_each_answer(sdk: Sdk, tmp_path: Path) -> None:
    (tmp_path / "made.zip").write_bytes(plugin_zip("made"))
    (tmp_path / "plot.png").write_bytes(b"\x89PNG")
    files = (str(tmp_path / "made.zip"), str(tmp_path / "plot.png"))
    answer = sdk.run(V1, sdk.client.host, sdk.client.token, *files)
    assert answer["name"] == "Made twice"
    assert answer["releases"] == ["2.0.0"]
    loss = answer["job"].pop("metrics_record")["record"]["steps"]["train"]["loss"]
    assert math.isnan(loss)  # sent bare, as the SDK does
    result = {"accuracy": 0.9, "weights": "weights.npz"}
    assert answer["job"] == {"status": "SUCCEEDED", "action": "train", "result": result}
    assert answer["meta"] == {"note": "kept"}
    assert answer["listed"] == [answer["job_id"]]
    assert answer["lines"] == ["epoch 0\n", "epoch 1\n"]
    frames = [(frame["type"], frame.get("data") or frame.get("message")) for frame in answer["tailed"]]
    assert frames == [("connected", None), ("log", "epoch 0"), ("log", "epoch 1"), ("complete", "SUCCEEDED")]
    assert answer["applications"] == [[answer["job_id"], "UNHEALTHY"], [answer["job_id"], "RUNNING"]]
    assert answer["paged"][:2] == [False, True]
    logs = sdk.client.json("/logs/", params={"job": answer["job_id"], "event": "file"})["results"]
    assert [entry["file"] for entry in logs] == ["data:image/png;base64,iVBORw=="] * 2


def test_v2_client_accepts_jobs_and_follows_pages(sdk: Sdk, tmp_path: Path) -> None:
    ids = [sdk.client.start("train", plugin="digits", debug=True) for _ in range(3)]
    for job_id in ids:
        sdk.client.finish(job_id)
    running = sdk.start_waiting(tmp_path / "variables.json")["SYNAPSE_JOB_ID"]
    answer = sdk.run(V2, sdk.client.host, sdk.client.token, ids[0], running)
    assert answer["first"] == [running, ids[2]]
    assert answer["all"][:3] == ids[::-1]
    assert answer["ended"] == ["SUCCEEDED", "1.0.0", {"note": "kept"}]
    assert answer["stopped"] == ["STOPPED", False]
    assert answer["logs"] == ["epoch 0 of 2\n", "epoch 1 of 2\n"]
    assert "there is no job" in answer["missing"]


@pytest.mark.parametrize(
    ("action", "params", "status", "result"),
    [
        ("TrainAction", {"epochs": 2}, "SUCCEEDED", {"accuracy": 0.9}),
        ("FailAction", {}, "FAILED", {"error": "no weights"}),
        ("TrainAction", {"epochs": "many"}, "FAILED", None),
    ],
    ids=["succeeds", "raises", "wrong params"],
)
def test_worker_of_the_sdk_reports_with_the_token_of_its_run(
    sdk: Sdk, tmp_path: Path, action: str, params: dict[str, Any], status: str, result: Any
) -> None:
    # A job that waits: the SDK's worker reports on it in place of ours.
    variables = sdk.start_waiting(tmp_path / "variables.json")
    assert variables["SYNAPSE_ACCESS_TOKEN"] != sdk.client.token
    sdk.work(variables, f"plugin.main.{action}", params)
    job = sdk.client.json(f"/jobs/{variables['SYNAPSE_JOB_ID']}/")
    assert job["status"] == status
    assert "epochs" in job["result"]["error"] if result is None else job["result"] == result
    if status == "SUCCEEDED":
        metrics = job["metrics_record"]["record"]["steps"]["train"]
        assert metrics["epoch"] == 1
        assert math.isnan(metrics["loss"])
        assert job["progress_record"]["record"]["steps"]["train"]["percent"] == 100.0
        logs = sdk.client.json("/logs/", params={"job": job["id"], "event": "done"})["results"]
        assert [entry["data"] for entry in logs] == [{"x": 1}]


def test_token_of_a_run_is_for_that_run(sdk: Sdk, tmp_path: Path) -> None:
    other = sdk.client.start("train", plugin="digits", debug=True)
    variables = sdk.start_waiting(tmp_path / "variables.json")
    assert sdk.run(OF_A_RUN, other, **variables) == {
        "status": "RUNNING",
        "log": "message",
        "release": "1.0.0",
        "application": True,
        "jobs": [True],
        "refused": ["NotFoundError", "NotFoundError", "NotFoundError", "AuthorizationError", "AuthorizationError"],
    }

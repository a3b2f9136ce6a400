"""The v1 API, request by request as the reference SDK makes them."""

from __future__ import annotations

import json
import math
import uuid

import pytest

from tests.server.conftest import MAIN, Client, plugin_zip

PAGE = {"count", "next", "previous", "results"}


def test_agents_are_this_server(client: Client) -> None:
    page = client.json("/agents/")
    assert page.keys() == PAGE
    (agent,) = page["results"]
    assert (agent["id"], agent["name"], agent["status"], agent["url"]) == (1, "local", "connected", client.host)
    assert client.post(f"/agents/{agent['token']}/connect/").json()["id"] == 1
    assert client.post("/agents/0000/connect/").status_code == 404


def test_plugin_can_be_listed_and_shown_by_code_and_id(client: Client) -> None:
    (plugin,) = client.json("/plugins/", params={"code": "lab"})["results"]
    assert plugin["category"] == "neural_net"
    assert client.json("/plugins/lab/") == client.json(f"/plugins/{plugin['id']}/") == plugin
    assert client.get("/plugins/nothing/").status_code == 404


def test_plugin_can_be_created_and_changed(client: Client) -> None:
    created = client.post("/plugins/", json={"code": "made", "name": "Made", "category": "custom"})
    assert created.status_code == 201
    assert client.post("/plugins/", json={"code": "made"}).status_code == 409
    path = f"/plugins/{created.json()['id']}/"
    changed = client.http.put(path, json={"code": "made", "name": "Changed"})
    assert changed.json()["name"] == client.json(path)["name"] == "Changed"
    assert client.http.put(path, json={"code": "other"}).status_code == 400


def test_run_answers_a_job_id_and_the_job_runs(client: Client) -> None:
    body = {"agent": 1, "action": "train", "params": {"epochs": 2}, "debug": True, "language": "ko"}
    job_id = client.post("/plugins/lab/run/", json=body).json()["job_id"]
    assert str(uuid.UUID(job_id)) == job_id
    job = client.finish(job_id)
    assert job.keys() == {
        *("id", "status", "action", "params", "agent", "plugin_release", "progress_record", "metrics_record"),
        *("result", "meta", "created", "modified", "completed"),
    }
    assert (job["status"], job["action"], job["params"]) == ("SUCCEEDED", "train", {"epochs": 2})
    assert job["result"] == {"accuracy": 0.9, "weights": "weights.npz"}
    assert (type(job["agent"]), type(job["plugin_release"])) == (int, int)
    assert job["progress_record"]["record"] == {"steps": {"train": {"percent": 100.0}}}
    assert job["progress_record"]["current_progress"]["step"] == "train"
    assert math.isnan(job["metrics_record"]["record"]["steps"]["train"]["loss"])
    assert client.json(f"/jobs/{job_id}/console_logs/") == ["epoch 0\n", "epoch 1\n"]


def test_nan_is_given_bare(client: Client) -> None:
    job = client.run("train")
    assert '"loss":NaN' in client.get(f"/jobs/{job['id']}/").text


def test_nan_is_taken_bare(client: Client) -> None:
    body = '{"action": "echo", "params": {"rate": NaN}}'
    answer = client.post("/plugins/lab/run/", content=body, headers={"Content-Type": "application/json"})
    job = client.finish(answer.json()["job_id"])
    assert math.isnan(job["result"]["rate"])
    assert math.isnan(job["params"]["rate"])


def test_result_that_is_no_object_is_wrapped(client: Client) -> None:
    assert client.run("deploy")["result"] == {"result": "deployed"}


def test_failure_has_the_text_of_what_was_raised(client: Client) -> None:
    job = client.run("fail")
    assert (job["status"], job["result"]) == ("FAILED", {"error": "no weights"})
    assert job["meta"]["error"]["error_type"] == "execution_error"
    lines = client.json(f"/jobs/{job['id']}/console_logs/")
    assert lines[:2] == ["before\n", "Traceback (most recent call last):\n"]
    assert lines[-1] == "ValueError: no weights\n"
    assert not any("synapse_runtime" in line for line in lines)


def test_refused_params_fail_with_the_text_of_pydantic(client: Client) -> None:
    job = client.run("train", {"epochs": "many"})
    assert (job["status"], job["meta"]["error"]["error_type"]) == ("FAILED", "validation_error")
    assert "epochs" in job["result"]["error"]
    assert "valid integer" in job["result"]["error"]


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/plugins/nothing/run/", {"action": "train"}, "no plugin 'nothing'"),
        ("/plugins/labb/run/", {"action": "train"}, "did you mean 'lab'"),
        ("/plugins/lab/run/", {"action": "trian"}, "did you mean 'train'"),
        ("/plugins/lab/run/", {"action": "train", "version": "9.9.9"}, "no uploaded release '9.9.9'"),
        ("/plugins/lab/run/", {"action": "train", "agent": 7}, "no agent 7"),
    ],
)
def test_what_does_not_exist_is_refused_and_nothing_is_stored(
    client: Client, path: str, body: dict[str, object], text: str
) -> None:
    before = client.json("/jobs/")["count"]
    answer = client.post(path, json=body)
    assert answer.status_code == 404
    assert text in answer.json()["detail"]
    assert client.json("/jobs/")["count"] == before


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"\xff", 400),
        (b'{"action": "\\ud800"}', 400),
        (b"[" * 100_000, 400),
        (b"[]", 422),
        (b'{"action": 5}', 422),
        (b'{"action": "echo", "params": []}', 422),
        (b'{"action": "echo", "agent": 99999999999999999999}', 422),
        (b'{"action": ""}', 422),
        (b"{}", 422),
        (b'{"action": "echo", "params": {"n": ' + b"9" * 5000 + b"}}", 400),
    ],
)
def test_invalid_bodies_are_refused(client: Client, content: bytes, status: int) -> None:
    assert client.post("/plugins/lab/run/", content=content).status_code == status


def test_field_problems_are_a_list_that_the_sdk_prints(client: Client) -> None:
    detail = client.post("/plugins/lab/run/", json={"action": "echo", "params": 5}).json()["detail"]
    assert detail == [{"loc": ["body", "params"], "msg": "Input should be a valid dictionary", "type": "dict_type"}]


def test_inference_is_answered_at_once_in_both_spellings(client: Client) -> None:
    for name in ("infer", "inference"):
        body = {"action": name, "params": {"input": {"a": 1}, "path": "/p"}}
        answer = client.post("/plugins/lab/run/", json=body)
        assert (answer.status_code, answer.json()) == (200, {"answer": {"a": 1}, "path": "/p"})
    body = {"action": "inference", "params": {"model": 3, "method": "post", "json": {"input": {"b": 2}}}}
    assert client.post("/plugins/lab/run/", json=body).json() == {"answer": {"b": 2}, "path": "/"}


def test_inference_that_fails_is_an_error(client: Client) -> None:
    body = {"action": "inference", "params": {"input": {"fails": True}}}
    answer = client.post("/plugins/lab/run/", json=body)
    assert (answer.status_code, answer.json()) == (500, {"detail": "inference failed: no model"})


def test_params_that_an_inference_refuses_are_a_list_that_the_sdk_prints(client: Client) -> None:
    answer = client.post("/plugins/lab/run/", json={"action": "inference", "params": {"input": 5}})
    problem = {"loc": ["body", "params", "input"], "msg": "Input should be a valid dictionary", "type": "dict_type"}
    assert (answer.status_code, answer.json()) == (422, {"detail": [problem]})


def test_deployment_finds_deploy(client: Client) -> None:
    job_id = client.post("/plugins/lab/run/", json={"action": "deployment"}).json()["job_id"]
    assert client.finish(job_id)["action"] == "deploy"


def test_jobs_are_listed_in_pages_the_newest_first(client: Client) -> None:
    ids = [client.run("echo")["id"] for _ in range(3)]
    page = client.json("/jobs/", params={"page_size": 2, "plugin": "lab"})
    assert page.keys() == PAGE
    assert [job["id"] for job in page["results"]] == ids[:0:-1]
    following = client.json(page["next"])
    assert following["results"][0]["id"] == ids[0]
    assert following["previous"].startswith(client.host)
    assert client.json("/jobs/", params={"status": "RUNNING"})["results"] == []
    assert client.json("/jobs/", params={"agent": 2})["count"] == 0
    assert client.get("/jobs/", params={"page": 0}).status_code == 422


def test_unknown_job_is_not_found(client: Client) -> None:
    for path in ("", "console_logs/", "tail_console_logs/"):
        answer = client.get(f"/jobs/{uuid.uuid4()}/{path}")
        assert answer.status_code == 404
        assert "no job" in answer.json()["detail"]


def test_job_can_be_changed_but_not_out_of_a_final_status(client: Client) -> None:
    path = f"/jobs/{client.run('echo')['id']}/"
    changed = client.http.patch(path, json={"progress_record": {"a": 1}, "meta": {"b": 2}}).json()
    assert (changed["progress_record"], changed["meta"], changed["status"]) == ({"a": 1}, {"b": 2}, "SUCCEEDED")
    assert client.http.patch(path, json={"status": "SUCCEEDED"}).status_code == 200
    refused = client.http.patch(path, json={"status": "RUNNING"})
    assert refused.status_code == 400
    assert "SUCCEEDED and cannot become RUNNING" in refused.json()["detail"]
    assert client.http.patch(path, json={"status": "running"}).status_code == 422
    nan = client.http.patch(path, content='{"metrics_record": {"loss": NaN}}')
    assert math.isnan(nan.json()["metrics_record"]["loss"])


def test_console_logs_of_a_job_can_be_replaced(client: Client) -> None:
    path = f"/jobs/{client.run('output')['id']}/"
    assert client.http.patch(path, json={"console_logs": [{"message": "one"}, {"x": 1}]}).status_code == 200
    assert client.json(f"{path}console_logs/") == ["one\n", '{"x":1}\n']


def test_logs_of_a_run_are_as_the_sdks_worker_sends_them(client: Client) -> None:
    job_id = client.run("train")["id"]
    page = client.json("/logs/", params={"job": job_id})
    entries = [(entry["event"], entry["data"]) for entry in page["results"]]
    assert entries[0] == ("message", {"content": "starting"})
    assert entries[1] == ("metric", {"category": "train", "metrics": {"loss": 0.5}})
    assert entries[-1] == ("done", {"epochs": 2})


def test_logs_can_be_added_one_by_one_and_as_a_list(client: Client) -> None:
    job_id = client.run("echo")["id"]
    entry = {"event": "visualization", "data": {"a": 1}, "job": job_id, "file": "data:image/png;base64,iVBORw=="}
    assert client.post("/logs/", json=entry).status_code == 201
    assert client.post("/logs/", json=[{**entry, "level": "warning"}, entry]).status_code == 201
    assert client.post("/logs/", json={"event": "no job", "data": {}}).status_code == 201
    assert client.json("/logs/", params={"job": job_id, "event": "visualization"})["count"] == 3
    assert client.post("/logs/", json=[entry] * 1001).status_code == 400
    assert client.post("/logs/", json={"event": "x", "job": str(uuid.uuid4())}).status_code == 404


def test_release_is_published_and_runs(client: Client) -> None:
    config = {"name": "Up", "code": "up", "version": "1.0.0", "actions": {}}
    published = client.publish(plugin_zip("up"), plugin="up", config=json.dumps(config))
    assert published.status_code == 201, published.text
    release = published.json()
    assert (release["version"], release["debug"], type(release["plugin"])) == ("1.0.0", False, int)
    expanded = client.json(f"/plugin_releases/{release['id']}/", params={"expand": "plugin"})
    assert expanded["plugin"]["code"] == "up"
    assert client.json("/plugin_releases/up@1.0.0/") == expanded
    assert client.get(release["file"]).content == plugin_zip("up")
    job_id = client.post("/plugins/up/run/", json={"action": "train", "version": "1.0.0"}).json()["job_id"]
    assert client.finish(job_id)["plugin_release"] == release["id"]
    assert client.json("/plugin_releases/", params={"plugin": "up"})["results"][0]["id"] == release["id"]
    assert client.get("/plugin_releases/up@2/").status_code == 404


def test_version_is_published_once_unless_it_is_a_debug_release(client: Client) -> None:
    again = {"plugin": "twice", "version": "1.0.0"}
    released = client.publish(plugin_zip("twice"), **again).json()
    refused = client.publish(plugin_zip("twice"), **again)
    assert refused.status_code == 409
    assert "raise the version" in refused.json()["detail"]
    debug = {"plugin": "twice", "version": "1.1.0", "debug": "True"}
    first = client.publish(plugin_zip("twice"), **debug).json()
    changed = plugin_zip("twice", main=MAIN.replace('"deployed"', '"changed"'))
    assert client.publish(changed, **debug).json()["id"] == first["id"]
    for wanted, result in (({"debug": True}, "changed"), ({}, "deployed"), ({"version": "1.1.0"}, "changed")):
        answer = client.post("/plugins/twice/run/", json={"action": "deploy", **wanted})
        assert client.finish(answer.json()["job_id"])["result"] == {"result": result}
    replaced = client.publish(plugin_zip("twice"), **again, debug="True").json()
    assert (replaced["id"], replaced["debug"]) == (released["id"], True)


def test_only_debug_releases_are_not_run_by_accident(client: Client) -> None:
    assert client.publish(plugin_zip("bug"), plugin="bug", debug="True").status_code == 201
    refused = client.post("/plugins/bug/run/", json={"action": "echo"})
    assert refused.status_code == 404
    assert "only debug releases" in refused.json()["detail"]


def test_what_only_the_real_backend_has_is_named(client: Client) -> None:
    assert "real Synapse backend" in client.get("/models/").json()["detail"]
    assert "end with a slash" in client.get("/jobs").json()["detail"]
    assert client.http.delete("/jobs/").status_code == 405


def test_applications_of_deployments_are_registered_and_listed(client: Client) -> None:
    job_id = client.run("deploy")["id"]
    application = {"job": job_id, "status": "DEPLOYING", "data": {"name": "lab@1.2.3", "load": math.nan}}
    first = client.post("/serve_applications/", json={"job": job_id, "status": None})
    assert (first.status_code, first.json()["status"], first.json()["data"]) == (201, "NOT_STARTED", {})
    second = client.post("/serve_applications/", content=json.dumps(application)).json()
    assert second.keys() == {"id", "job", "status", "data", "created"}
    assert (second["job"], second["status"]) == (job_id, "DEPLOYING")
    assert math.isnan(second["data"]["load"])
    page = client.json("/serve_applications/", params={"plugin_code": "lab", "job__agent": 1, "page_size": 1})
    assert page.keys() == PAGE
    assert [page["count"], page["results"][0]["id"]] == [2, second["id"]]
    assert client.json(page["next"])["results"] == [first.json()]
    for others in ({"plugin_code": "other"}, {"job__agent": 2}):
        assert client.json("/serve_applications/", params=others)["count"] == 0


def test_application_needs_a_job_and_a_status_that_exist(client: Client) -> None:
    for job in (str(uuid.uuid4()), 5):
        refused = client.post("/serve_applications/", json={"job": job})
        assert (refused.status_code, refused.json()["detail"]) == (404, f"there is no job '{job}'")
    job_id = client.run("deploy")["id"]
    for body in ({}, {"job": job_id, "status": "BORED"}, {"job": job_id, "data": []}):
        assert client.post("/serve_applications/", json=body).status_code == 422


def test_application_is_deleted_with_its_job(client: Client) -> None:
    job_id = client.run("deploy")["id"]
    before = client.json("/serve_applications/")["count"]
    client.post("/serve_applications/", json={"job": job_id})
    assert client.json("/serve_applications/")["count"] == before + 1
    assert client.http.delete(f"/runtime/jobs/{job_id}/").status_code == 204
    assert client.json("/serve_applications/")["count"] == before

"""What is below `/runtime/`: submitting once, run records, deleting, resetting."""

from __future__ import annotations

import json
import shlex
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from synapse_runtime import __version__
from synapse_runtime.executors.protocol import caller_settings, settings_to_json
from synapse_runtime.json_values import encode_value
from synapse_runtime.run_record import RunRecord
from tests.server.conftest import Client, plugin_zip


def test_features_are_listed(client: Client) -> None:
    answer = client.json("/runtime/")
    assert (answer["server"], answer["version"]) == ("synapse-runtime", __version__)
    assert {"jobs", "idempotency", "events", "run_records", "reset"} <= {*answer["features"]}


def test_submitted_job_has_a_location(client: Client) -> None:
    answer = client.post("/runtime/jobs/", json={"plugin": "lab", "action": "echo", "params": {"a": 1}})
    assert answer.status_code == 201
    job = answer.json()
    assert (job["status"], job["plugin"], job["version"]) == ("PENDING", "lab", "1.2.3")
    assert type(job["release"]) is int
    assert answer.headers["location"] == f"/runtime/jobs/{job['id']}/"
    client.finish(job["id"])
    assert client.json(answer.headers["location"])["status"] == "SUCCEEDED"


def test_jobs_are_listed_with_the_newest_first(client: Client) -> None:
    ended = [client.run(action)["id"] for action in ("echo", "fail", "echo")]
    first, *others = client.json("/runtime/jobs/", params={"limit": 2})["results"]
    assert [job["id"] for job in (first, *others)] == ended[:0:-1]
    assert (first["plugin"], first["version"], first["action"], first["status"]) == (
        "lab",
        "1.2.3",
        "echo",
        "SUCCEEDED",
    )
    assert first["created"] <= first["started"] <= first["completed"]
    older = client.json("/runtime/jobs/", params={"before": others[0]["number"], "limit": 1})["results"]
    assert [job["id"] for job in older] == ended[:1]
    failed = client.json("/runtime/jobs/", params={"status": "FAILED"})
    assert ended[1] == failed["results"][0]["id"]
    assert {job["status"] for job in failed["results"]} == {"FAILED"}
    assert failed["count"] >= len(failed["results"])


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 201}, {"before": -1}, {"before": "x"}, {"status": "done"}])
def test_list_with_wrong_filters_is_refused(client: Client, query: dict[str, Any]) -> None:
    assert client.get("/runtime/jobs/", params=query).status_code == 422


HARD = {"text": 'it\'s $HOME `x` \n"q"', "number": 2**63, "nan": float("nan"), "é": [None, True]}


def test_job_has_the_command_that_runs_it_again(client: Client, lab: Path) -> None:
    params, _ = encode_value(HARD)
    body = {"plugin": "lab", "action": "echo", "params": params, "timeout": 30.0}
    job_id = client.post("/runtime/jobs/", json=body).json()["id"]
    client.finish(job_id)
    job = client.json(f"/runtime/jobs/{job_id}/")
    assert job["params"] == {**HARD, "nan": {"$float": "nan"}}
    words = shlex.split(job["command"])
    assert words[:-1] == [
        *("synapse", "plugin", "run", "echo", "--path", str(lab), "--mode", "remote", "--host", client.host),
        *("--timeout", "30.0", "--params"),
    ]
    assert repr(json.loads(words[-1])) == repr(HARD)


def test_command_names_the_uploaded_release(client: Client) -> None:
    assert client.publish(plugin_zip("again"), plugin="again", version="3.1.0").status_code == 201
    job_id = client.start("echo", plugin="again", version="3.1.0")
    client.finish(job_id)
    command = client.json(f"/runtime/jobs/{job_id}/")["command"]
    assert command.startswith("synapse plugin run echo --plugin again --version 3.1.0 --mode remote --host ")


def test_job_of_an_entrypoint_has_no_command(client: Client) -> None:
    job_id = client.post("/runtime/jobs/", json={"plugin": "lab", "entrypoint": "plugin.main:hidden"}).json()["id"]
    client.finish(job_id)
    assert client.json(f"/runtime/jobs/{job_id}/")["command"] is None


def test_run_record_can_be_had_without_what_was_emitted(client: Client) -> None:
    job_id = client.run("train")["id"]
    whole, brief = (client.json(f"/runtime/jobs/{job_id}/run/{query}") for query in ("", "?events=false"))
    assert whole["events"]
    assert whole["stdout"]
    assert brief == {**whole, "events": [], "stdout": "", "stderr": ""}


def test_same_key_from_many_clients_makes_one_job(client: Client) -> None:
    key, body = str(uuid.uuid4()), {"plugin": "lab", "action": "echo", "params": {"key": 1}}
    before = client.json("/jobs/")["count"]
    answers: list[Any] = []
    start = threading.Barrier(20)

    def submit() -> None:
        start.wait()
        answers.append(client.post("/runtime/jobs/", json=body, headers={"Idempotency-Key": key}))

    threads = [threading.Thread(target=submit) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    (job_id,) = {answer.json()["id"] for answer in answers}
    client.finish(job_id)
    assert client.json("/jobs/")["count"] == before + 1
    kinds = [kind for _, kind, _ in client.events(job_id)]
    assert kinds == ["status", "status", "end"]


def test_same_key_with_another_body_is_refused(client: Client) -> None:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    body = {"plugin": "lab", "action": "echo", "params": {"a": 1, "b": 2}}
    first = client.post("/runtime/jobs/", json=body, headers=headers)
    assert client.post("/runtime/jobs/", json={**body, "params": {"b": 2, "a": 1}}, headers=headers).status_code == 200
    refused = client.post("/runtime/jobs/", json={**body, "params": {}}, headers=headers)
    assert refused.status_code == 409
    assert "new key" in refused.json()["detail"]
    client.finish(first.json()["id"])
    assert client.post("/runtime/jobs/", json=body, headers=headers).json()["status"] == "SUCCEEDED"
    assert client.post("/runtime/jobs/", json=body, headers={"Idempotency-Key": "k" * 300}).status_code == 400


def test_key_is_honoured_on_the_v1_run(client: Client) -> None:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    ids = {
        client.post("/plugins/lab/run/", json={"action": "echo"}, headers=headers).json()["job_id"] for _ in range(2)
    }
    assert len(ids) == 1
    assert client.post("/plugins/lab/run/", json={"action": "fail"}, headers=headers).status_code == 409


def test_run_record_is_the_run(client: Client) -> None:
    job_id = client.run("train")["id"]
    run = RunRecord.loads(client.get(f"/runtime/jobs/{job_id}/run/").text).to_run()
    assert (run.mode, run.job_id, run.name, run.error) == ("remote", job_id, "train", None)
    assert run.stdout == "epoch 0\nepoch 1\n"
    assert [event.kind for event in run.events] == ["message", *["progress", "metrics"] * 2, "log"]
    assert [tuple(report) for report in run.progress] == [(1, 2), (2, 2)]
    assert run.result["fields"]["accuracy"] == 0.9


def test_run_record_has_the_error_with_its_traceback(client: Client) -> None:
    job_id = client.run("fail")["id"]
    error = RunRecord.loads(client.get(f"/runtime/jobs/{job_id}/run/").text).to_run().error
    assert str(error) == "fail failed: ValueError: no weights"
    assert isinstance(error.__cause__, ValueError)  # type: ignore[union-attr]


def test_run_record_exists_once_the_job_has_ended(client: Client) -> None:
    job_id = client.start("sleep")
    client.wait_for_output(job_id)
    for method, path in (("GET", f"/runtime/jobs/{job_id}/run/"), ("DELETE", f"/runtime/jobs/{job_id}/")):
        answer = client.http.request(method, path)
        assert (answer.status_code, answer.json()["status"]) == (409, "RUNNING")
    client.post(f"/runtime/jobs/{job_id}/stop/")
    assert client.get(f"/runtime/jobs/{job_id}/run/").json()["status"] == "failed"


def test_params_and_results_that_json_lacks_are_encoded(client: Client) -> None:
    params = {"path": Path("w.npz"), "pair": (1, 2), "nan": float("nan"), "bytes": b"x", "plain": [1]}
    job_id = client.run("echo", encode_value(params)[0])["id"]
    run = RunRecord.loads(client.get(f"/runtime/jobs/{job_id}/run/").text).to_run()
    assert {name: type(value).__name__ for name, value in run.result.items()} == {
        **{"path": "PosixPath", "pair": "tuple", "nan": "float", "bytes": "bytes", "plain": "list"}
    }


def test_params_may_be_of_the_plugins_own_classes(client: Client) -> None:
    color = {"$type": "plugin.main:Color", "name": "RED"}
    body = {"plugin": "lab", "entrypoint": "plugin.main:hidden", "params": {"color": color, "text": "a"}}
    job = client.finish(client.post("/runtime/jobs/", json=body).json()["id"])
    assert job["result"] == {"types": ["color:Color", "text:str"], "pair": [1, "eA=="]}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"plugin": "lab"},
        {"plugin": "lab", "action": "echo", "entrypoint": "plugin.main:echo"},
        {"plugin": "lab", "action": "echo", "tiemout": 5},
        {"plugin": "lab", "action": "echo", "timeout": 0},
        {"plugin": "lab", "action": "echo", "timeout": {"$float": "nan"}},
        {"plugin": "lab", "action": "echo", "env": {"A=B": "x"}},
        {"plugin": "lab", "action": "echo", "env": []},
        {"plugin": "lab", "action": "echo", "id": "../etc"},
        {"plugin": "lab", "action": "echo", "caller": {"import_path": 3}},
        {"plugin": "lab", "action": "echo", "params": None},
        {"plugin": "lab", "action": "echo", "resources": {"gpus": 1}},
    ],
)
def test_invalid_requests_are_refused(client: Client, body: dict[str, Any]) -> None:
    before = client.json("/jobs/")["count"]
    answer = client.post("/runtime/jobs/", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"][0] == "body"
    assert client.json("/jobs/")["count"] == before


def test_environment_is_not_stored(client: Client) -> None:
    job_id = client.start("echo", env={"PASSWORD": "open-sesame"})
    client.finish(job_id)
    shown = [
        client.get(path).text for path in (f"/jobs/{job_id}/", f"/v2/jobs/{job_id}/", f"/runtime/jobs/{job_id}/run/")
    ]
    assert not [text for text in shown if "open-sesame" in text]


def test_deleted_job_is_gone(client: Client) -> None:
    job_id = client.run("train")["id"]
    assert client.http.delete(f"/runtime/jobs/{job_id}/").status_code == 204
    paths = (f"/jobs/{job_id}/", f"/runtime/jobs/{job_id}/events/", f"/runtime/jobs/{job_id}/run/")
    assert [client.get(path).status_code for path in paths] == [404] * 3
    assert client.json("/logs/", params={"job": job_id})["count"] == 0


def test_releases_are_found_by_their_content(client: Client) -> None:
    published = client.publish(plugin_zip("known"), plugin="known").json()
    (found,) = client.json("/runtime/releases/", params={"plugin": "known"})["results"]
    assert (found["id"], found["live"], found["debug"]) == (published["id"], False, False)
    (same,) = client.json("/runtime/releases/", params={"content": found["content"]})["results"]
    assert same == found
    assert client.json("/runtime/releases/", params={"content": "0" * 64})["results"] == []


def test_reset_stops_and_deletes_all(alone: Client) -> None:
    assert alone.publish(plugin_zip()).status_code == 201
    running = alone.start("sleep")
    alone.wait_for_output(running)
    assert alone.post("/runtime/reset/").status_code == 204
    assert alone.json("/jobs/")["count"] == 0
    assert {plugin["code"] for plugin in alone.json("/plugins/")["results"]} == {"lab", "live"}
    assert alone.run("echo")["status"] == "SUCCEEDED"
    assert alone.publish(plugin_zip()).status_code == 201
    assert alone.run("echo", plugin="uploaded")["status"] == "SUCCEEDED"


@pytest.mark.parametrize("params", [{"input": {"a": 1}, "path": "/p"}, {"path": "/p", "json": {"input": {"a": 1}}}])
def test_inference_takes_both_forms_of_the_platform(client: Client, params: dict[str, Any]) -> None:
    assert client.run("infer", params)["result"]["answer"] == {"a": 1}


def test_inference_of_a_caller_that_has_the_plugin_takes_params_as_they_are(client: Client) -> None:
    job = client.run("inference", {"json": {"input": {"a": 1}}}, caller=settings_to_json(caller_settings(None)))
    assert (job["status"], "input" in job["result"]["error"]) == ("FAILED", True)

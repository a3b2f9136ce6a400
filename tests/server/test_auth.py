"""Who may do what, and which requests are for this server at all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from synapse_runtime.server.auth import AllowedHosts, authenticate, local_token, new_token, token_in
from synapse_runtime.server.store import Store
from synapse_runtime.server.wire import ApiError
from tests.server.conftest import Client, Serve, plugin_zip


@pytest.mark.parametrize("name", ["Synapse-Access-Token", "SYNAPSE-ACCESS-TOKEN", "Authorization"])
@pytest.mark.parametrize("scheme", ["", "Token ", "Bearer ", "token "])
def test_token_is_taken_in_all_spellings(client: Client, name: str, scheme: str) -> None:
    assert httpx.get(f"{client.host}/agents/", headers={name: f"{scheme}{client.token}"}).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"Authorization": ""}, {"Authorization": "Token"}, {"Authorization": "syn_0"}])
@pytest.mark.parametrize("path", ["/agents/", "/jobs/", "/runtime/", "/v2/jobs/", "/plugin_releases/"])
def test_no_or_a_wrong_token_is_401(client: Client, headers: dict[str, str], path: str) -> None:
    answer = httpx.get(client.host + path, headers=headers)
    assert answer.status_code == 401
    assert "synapse login" in answer.text


def test_health_is_open_and_says_nothing(client: Client) -> None:
    for path in ("/health/", "/ready/"):
        assert httpx.get(client.host + path).json() == {"status": "ok"}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "192.168.1.5"])
def test_other_hosts_are_refused(client: Client, host: str) -> None:
    answer = client.get("/agents/", headers={"Host": host})
    assert answer.status_code == 400
    assert "use the address that it printed" in answer.json()["detail"]


def test_own_names_are_accepted(client: Client) -> None:
    for host in ("localhost", "LOCALHOST:1234", "127.0.0.1", "[::1]:80"):
        assert client.get("/agents/", headers={"Host": host}).status_code == 200


def test_server_for_other_machines_accepts_addresses_but_no_foreign_names() -> None:
    hosts = AllowedHosts("0.0.0.0")
    assert hosts.permit("192.168.1.5:8000")
    assert not hosts.permit("evil.example:8000")
    assert not AllowedHosts("127.0.0.1").permit("10.0.0.1")


def test_no_other_site_may_read_answers(client: Client) -> None:
    answer = client.get("/agents/", headers={"Origin": "http://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = client.http.request(
        "OPTIONS", "/agents/", headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "GET"}
    )
    assert preflight.status_code == 405


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.in_directory(tmp_path)
    yield store
    store.close()


def add(store: Store, *scopes: str, **options: float) -> str:
    token = new_token()
    store.add_token(token, name="a", owner="somebody", scopes=scopes, **options)  # type: ignore[arg-type]
    return token


def test_token_has_256_bits_and_only_its_hash_is_stored(store: Store, tmp_path: Path) -> None:
    token = add(store, "read")
    assert token.startswith("syn_")
    assert len(bytes.fromhex(token.removeprefix("syn_"))) == 32
    assert authenticate(store, token).scopes == {"read"}
    store.close()
    assert not [file for file in tmp_path.iterdir() if token.encode() in file.read_bytes()]


def test_expired_and_revoked_tokens_are_refused(store: Store) -> None:
    expired = add(store, "read", expires=time.time() - 1)
    with pytest.raises(ApiError, match="has expired"):
        authenticate(store, expired)
    token = add(store, "read", expires=time.time() + 60)
    row = store.tokens()[-1]
    assert authenticate(store, token).owner == "somebody"
    assert store.revoke_token(row.id)
    assert not store.revoke_token(row.id)
    with pytest.raises(ApiError, match="was revoked"):
        authenticate(store, token)


def test_scopes_do_not_contain_each_other(store: Store) -> None:
    runner = authenticate(store, add(store, "read", "run"))
    assert runner.may("run")
    assert not runner.may("publish")
    assert authenticate(store, add(store, "admin")).may("publish")


def test_local_token_is_kept_in_a_private_file_and_renewed_if_it_is_revoked(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "token"
    token = local_token(store, file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert local_token(store, file) == token == file.read_text().strip()
    store.revoke_token(store.tokens()[0].id)
    assert local_token(store, file) != token


def test_token_in_prefers_the_access_token() -> None:
    headers = [("Authorization", "Bearer user"), ("Synapse-Access-Token", "Token  access ")]
    assert token_in(headers) == "access"
    assert token_in([]) is None


def test_scopes_and_owners_limit_what_a_token_can_do(serve: Serve, lab: Path, tmp_path: Path) -> None:
    with serve(lab, "--data", tmp_path / "data") as served:
        admin: Client = served.client
        store = Store.in_directory(tmp_path / "data")
        tokens = {}
        for name, scopes in {"reader": ["read"], "runner": ["read", "run"], "other": ["read", "run"]}.items():
            tokens[name] = new_token()
            store.add_token(tokens[name], name=name, owner=name, scopes=scopes)
        store.close()
        reader, runner, other = (admin.with_token(tokens[name]) for name in ("reader", "runner", "other"))

        assert reader.get("/agents/").status_code == 200
        refused = reader.post("/plugins/lab/run/", json={"action": "echo"})
        assert (refused.status_code, "lacks the scope 'run'" in refused.text) == (403, True)
        assert runner.publish(plugin_zip()).status_code == 403
        assert runner.post("/runtime/reset/").status_code == 403

        job = runner.run("echo")
        path = f"/jobs/{job['id']}/"
        assert runner.json("/jobs/")["count"] == admin.json("/jobs/")["count"] == 1
        assert other.json("/jobs/")["count"] == 0
        assert other.json("/v2/jobs/")["data"] == []
        answers = [other.get(path), other.http.patch(path, json={}), other.post(f"/v2{path}stop/")]
        answers += [
            other.get(f"/runtime{path}run/"),
            other.get(f"/runtime{path}events/"),
            other.get(f"{path}console_logs/"),
        ]
        application = {"job": job["id"], "status": "RUNNING"}
        answers += [other.post("/serve_applications/", json=application)]
        answers += [other.http.delete(f"/runtime{path}"), other.post("/logs/", json={"event": "x", "job": job["id"]})]
        assert [answer.status_code for answer in answers] == [404] * len(answers)
        assert "error" in other.get(f"/v2{path}tail_console_logs/").text

        assert runner.post("/serve_applications/", json=application).status_code == 201
        assert runner.json("/serve_applications/")["count"] == admin.json("/serve_applications/")["count"] == 1
        assert other.json("/serve_applications/")["count"] == 0

        assert runner.http.patch(path, json={"meta": {"a": 1}}).status_code == 200
        assert runner.http.patch(path, json={"status": "SUCCEEDED"}).status_code == 403
        assert admin.http.patch(path, json={"status": "SUCCEEDED"}).status_code == 200


def test_token_of_a_run_is_for_its_job_and_ends_with_it(client: Client) -> None:
    other = client.run("echo")["id"]
    job_id = client.start("sleep", {"seconds": 60})
    client.wait_for_output(job_id)
    # The action's own token is in the environment of its process.
    process = client.json(f"/jobs/{client.run('environment')['id']}/")["result"]["process"]
    ended = client.with_token(process["SYNAPSE_ACCESS_TOKEN"])
    assert ended.get("/jobs/").status_code == 401
    assert "run that has ended" in ended.get("/jobs/").text
    assert process["SYNAPSE_HOST"] == client.host
    client.post(f"/v2/jobs/{job_id}/stop/")
    assert other


RUN_WITH_TOKEN = """
import json, os, urllib.error, urllib.request
from synapse_runtime.decorators import action

def request(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Synapse-Access-Token": f"Token {os.environ['SYNAPSE_ACCESS_TOKEN']}"}
    made = urllib.request.Request(os.environ["SYNAPSE_HOST"] + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(made) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code

@action
def call(params, context):
    own = f"/jobs/{os.environ['SYNAPSE_JOB_ID']}/"
    return {
        "own": request("GET", own),
        "other": request("GET", f"/jobs/{params['other']}/"),
        "list": request("GET", "/jobs/"),
        "patch": request("PATCH", own, {"progress_record": {"a": float("nan")}}),
        "status": request("PATCH", own, {"status": "RUNNING"}),
        "served": request("POST", "/serve_applications/", {"job": os.environ["SYNAPSE_JOB_ID"], "status": "RUNNING"}),
        "logs": request("POST", "/logs/", [{"event": "e", "data": {"x": 1}, "job": os.environ["SYNAPSE_JOB_ID"]}]),
        "release": request("GET", f"/plugin_releases/{os.environ['SYNAPSE_PLUGIN_RELEASE_CODE']}/"),
        "run": request("POST", "/plugins/lab/run/", {"action": "echo"}),
        "publish": request("POST", "/plugins/", {"code": "x"}),
    }
"""


def test_action_can_use_the_api_with_the_token_of_its_run(client: Client) -> None:
    config = "code: caller\nname: Caller\nversion: 1.0.0\nactions:\n  call: {entrypoint: 'plugin.main:call'}\n"
    assert client.publish(plugin_zip("caller", config, RUN_WITH_TOKEN), plugin="caller").status_code == 201
    other = client.run("echo")["id"]
    job = client.run("call", {"other": other}, plugin="caller")
    assert job["result"] == {
        **{"own": 200, "other": 404, "list": 200, "patch": 200, "status": 200, "served": 201},
        **{"logs": 201, "release": 200, "run": 403, "publish": 403},
    }
    assert client.json("/logs/", params={"job": job["id"], "event": "e"})["results"][0]["data"] == {"x": 1}

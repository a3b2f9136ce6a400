"""The page at `/`: its files, logging in and out, and what a browser's cookie permits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from synapse_runtime.server.auth import new_token
from synapse_runtime.server.backend import Backend
from synapse_runtime.server.sessions import CODE_SECONDS, SESSION_SECONDS, Sessions
from synapse_runtime.server.store import hashed
from tests.patience import patience, within
from tests.server.conftest import Client, command, plugin_zip, served_on_terminal

PAGE = {"X-Synapse-Page": "1"}


@pytest.fixture
def browser(client: Client) -> Iterator[httpx.Client]:
    """A browser that has not logged in: it keeps cookies, and sends the page's header."""
    with httpx.Client(base_url=client.host, headers=PAGE, timeout=30) as browser:
        yield browser


@pytest.fixture
def member(browser: httpx.Client, client: Client) -> httpx.Client:
    """The same, logged in with the admin's token."""
    assert browser.post("/runtime/session/", json={"token": client.token}).status_code == 201
    return browser


def without_header(browser: httpx.Client) -> httpx.Client:
    """Return a client with the same cookies, such as a form on another site has."""
    return httpx.Client(base_url=browser.base_url, cookies=browser.cookies, timeout=30)


# Files


@pytest.mark.parametrize(
    ("path", "kind"), [("/", "text/html"), ("/page/page.js", "text/javascript"), ("/page/page.css", "text/css")]
)
def test_page_is_served_with_strict_headers(browser: httpx.Client, path: str, kind: str) -> None:
    answer = browser.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
    assert answer.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert "set-cookie" not in answer.headers
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_page_needs_nothing_from_elsewhere(browser: httpx.Client) -> None:
    files = [browser.get(path).text for path in ("/", "/page/page.js", "/page/page.css")]
    addresses = {found for text in files for found in re.findall(r"https?://[\w./]+", text)}
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"style=|<script>|\son\w+=", files[0])
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", files[1])


@pytest.mark.parametrize("path", ["/page/page.html", "/page/..%2fpage.py", "/page/%2e%2e/app.py", "/page/"])
def test_page_has_no_other_files(browser: httpx.Client, path: str) -> None:
    assert browser.get(path).status_code == 404


def test_page_is_not_for_other_hosts(browser: httpx.Client) -> None:
    for path in ("/", "/page/page.js", "/runtime/session/"):
        answer = browser.get(path, headers={"Host": "evil.example"})
        assert answer.status_code == 400
        assert "use the address that it printed" in answer.text


# Logging in


def test_token_is_exchanged_for_a_cookie(browser: httpx.Client, client: Client) -> None:
    assert browser.get("/runtime/session/").json() == {"owner": None, "scopes": []}
    assert browser.get("/runtime/jobs/").status_code == 401
    answer = browser.post("/runtime/session/", json={"token": f" {client.token}\n"})
    assert answer.status_code == 201
    assert answer.json() == browser.get("/runtime/session/").json() == {"owner": "local", "scopes": ["admin"]}
    port = client.host.rpartition(":")[2]
    (value,) = browser.cookies.values()
    assert len(value) >= 43  # 256 bits
    assert client.token not in answer.text + str(answer.headers)
    cookie = answer.headers["set-cookie"].replace(value, "VALUE")
    assert cookie == f"synapse_session_{port}=VALUE; HttpOnly; Max-Age=43200; Path=/; SameSite=strict"
    for path in ("/runtime/jobs/", "/jobs/", "/v2/jobs/", "/agents/"):
        assert browser.get(path).status_code == 200


def test_cookie_is_for_encrypted_connections_only_behind_a_proxy_with_tls(
    browser: httpx.Client, client: Client
) -> None:
    answer = browser.post("/runtime/session/", json={"token": client.token}, headers={"X-Forwarded-Proto": "https"})
    assert answer.headers["set-cookie"].endswith("; Secure")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"token": "syn_0"}, 401),
        ({"code": "0"}, 401),
        ({"code": ""}, 401),
        ({}, 422),
        ({"code": "0", "token": "0"}, 422),
        ({"code": 1}, 422),
        ({"token": "x" * 2000}, 422),
    ],
)
def test_wrong_credentials_give_no_cookie(browser: httpx.Client, body: dict[str, object], status: int) -> None:
    answer = browser.post("/runtime/session/", json=body)
    assert answer.status_code == status
    assert "set-cookie" not in answer.headers


def test_other_sites_cannot_log_a_browser_in(browser: httpx.Client, client: Client) -> None:
    with without_header(browser) as form:
        answer = form.post("/runtime/session/", json={"token": client.token})
    assert answer.status_code == 403
    assert "X-Synapse-Page" in answer.json()["detail"]
    assert "set-cookie" not in answer.headers


def test_code_logs_in_once(http: httpx.Client, backend: Backend) -> None:
    code = backend.sessions.create_code(hashed(http.headers["authorization"]))
    assert len(code) >= 43  # 256 bits
    with httpx.Client(base_url=http.base_url, headers=PAGE) as first:
        assert first.post("/runtime/session/", json={"code": code}).json() == {"owner": "local", "scopes": ["admin"]}
        assert first.get("/runtime/jobs/").status_code == 200
    with httpx.Client(base_url=http.base_url, headers=PAGE) as second:
        answer = second.post("/runtime/session/", json={"code": code})
        assert answer.status_code == 401
        assert "restart `synapse serve` for a new code" in answer.json()["detail"]
        assert second.get("/runtime/jobs/").status_code == 401


def test_code_and_session_expire(http: httpx.Client, backend: Backend) -> None:
    now = [1000.0]
    backend.sessions = Sessions(lambda: now[0])
    token_hash = hashed(http.headers["authorization"])
    early, late = backend.sessions.create_code(token_hash), backend.sessions.create_code(token_hash)
    with httpx.Client(base_url=http.base_url, headers=PAGE) as browser:
        now[0] += CODE_SECONDS - 1
        assert browser.post("/runtime/session/", json={"code": early}).status_code == 201
        now[0] += 1
        assert browser.post("/runtime/session/", json={"code": late}).status_code == 401
        now[0] += SESSION_SECONDS - 2
        assert browser.get("/runtime/jobs/").status_code == 200
        now[0] += 1
        assert browser.get("/runtime/jobs/").status_code == 401


def test_only_hashes_of_secrets_are_kept() -> None:
    sessions = Sessions()
    code = sessions.create_code("of the token")
    secret = sessions.open("of the token")
    assert sessions.token_hash(secret) == "of the token"
    kept = repr(vars(sessions))
    assert code not in kept
    assert secret not in kept


def test_oldest_session_ends_if_there_are_too_many() -> None:
    sessions = Sessions()
    first, *_, last = [sessions.open("of the token") for _ in range(1001)]
    assert sessions.token_hash(first) is None
    assert sessions.token_hash(last) == "of the token"


def test_session_ends_with_log_out(member: httpx.Client) -> None:
    cookies = dict(member.cookies)
    assert member.delete("/runtime/session/").status_code == 204
    assert not member.cookies
    member.cookies.update(cookies)
    assert member.get("/runtime/jobs/").status_code == 401
    assert member.delete("/runtime/session/").status_code == 401


def test_session_ends_with_its_token(http: httpx.Client, backend: Backend) -> None:
    token = new_token()
    backend.store.add_token(token, name="a", owner="somebody", scopes=["read"])
    with httpx.Client(base_url=http.base_url, headers=PAGE) as browser:
        browser.post("/runtime/session/", json={"token": token})
        assert browser.get("/runtime/jobs/").status_code == 200
        backend.store.revoke_token(backend.store.tokens()[-1].id)
        answer = browser.get("/runtime/jobs/")
        assert (answer.status_code, "was revoked" in answer.text) == (401, True)


# What a cookie permits


def test_change_by_cookie_needs_the_header(member: httpx.Client, client: Client) -> None:
    job_id = client.start("sleep")
    body = {"plugin": "lab", "action": "echo"}
    with without_header(member) as form:
        assert form.get(f"/runtime/jobs/{job_id}/").status_code == 200
        refused = [
            form.post(f"/runtime/jobs/{job_id}/stop/"),
            form.post("/runtime/jobs/", json=body),
            form.post("/plugins/lab/run/", json={"action": "echo"}),
            form.post("/plugin_releases/", data={"plugin": "lab"}, files={"file": plugin_zip()}),
            form.put("/plugins/lab/", json={}),
            form.patch(f"/jobs/{job_id}/", json={"status": "FAILED"}),
            form.patch(f"/v2/jobs/{job_id}/", json={"status": "FAILED"}),
            form.post(f"/v2/jobs/{job_id}/stop/"),
            form.delete(f"/runtime/jobs/{job_id}/"),
            form.post("/runtime/reset/"),
            form.delete("/runtime/session/"),
            form.post("/runtime/jobs/", json=body, headers={"X-Synapse-Page": "0"}),
        ]
    assert [answer.status_code for answer in refused] == [403] * len(refused)
    assert all("X-Synapse-Page" in answer.text for answer in refused)
    assert client.json(f"/runtime/jobs/{job_id}/")["status"] in ("PENDING", "RUNNING")
    assert member.post(f"/runtime/jobs/{job_id}/stop/").json()["status"] == "STOPPED"


def test_token_wins_over_the_cookie(member: httpx.Client, client: Client) -> None:
    with without_header(member) as program:
        assert program.get("/jobs/", headers={"Authorization": "syn_0"}).status_code == 401
        body, headers = {"plugin": "lab", "action": "echo"}, {"Authorization": client.token}
        assert program.post("/runtime/jobs/", json=body, headers=headers).status_code == 201


def test_events_can_be_followed_by_cookie(member: httpx.Client, client: Client) -> None:
    job_id = client.run("train")["id"]
    text = member.get(f"/runtime/jobs/{job_id}/events/?after=5").text
    assert text.startswith(": synapse\n\nid: 6\n")
    assert "\nevent: end\n" in text


def test_session_has_the_owner_and_scopes_of_its_token(http: httpx.Client, backend: Backend) -> None:
    tokens = {"reader": ["read"], "runner": ["read", "run"]}
    with (
        httpx.Client(base_url=http.base_url, headers=PAGE, timeout=30) as reader,
        httpx.Client(base_url=http.base_url, headers=PAGE, timeout=30) as runner,
    ):
        for owner, browser in {"reader": reader, "runner": runner}.items():
            token = new_token()
            backend.store.add_token(token, name=owner, owner=owner, scopes=tokens[owner])
            answer = browser.post("/runtime/session/", json={"token": token})
            assert answer.json() == {"owner": owner, "scopes": tokens[owner]}
        body = {"plugin": "lab", "action": "echo"}
        assert reader.post("/runtime/jobs/", json=body).status_code == 403
        job = runner.post("/runtime/jobs/", json=body).json()
        assert runner.get("/runtime/jobs/").json()["count"] == 1
        assert reader.get("/runtime/jobs/").json() == {"count": 0, "results": []}
        for path in ("", "run/", "events/"):
            assert reader.get(f"/runtime/jobs/{job['id']}/{path}").status_code == 404
        assert http.get("/runtime/jobs/").json()["count"] == 1


# `synapse serve`


def test_code_is_printed_on_a_terminal_and_opens_the_page(lab: Path, state: dict[str, str], tmp_path: Path) -> None:
    # A "browser" that writes down what it is given.
    script = tmp_path / "browser"
    script.write_text(
        f'#!/bin/sh\nprintf "%s" "$*" > {tmp_path}/opened.part\nmv {tmp_path}/opened.part {tmp_path}/opened\n'
    )
    script.chmod(0o755)
    with served_on_terminal(lab, "--open", env={**state, "BROWSER": f"{script} %s"}) as url:
        host, code = url.split("/#code=")
        assert within(20, (tmp_path / "opened").exists)
        opened = (tmp_path / "opened").read_text()
        file = Path(state["XDG_STATE_HOME"], "synapse", "servers", f"{host.rpartition(':')[2]}.html")
        assert opened == file.as_uri()  # other users see a browser's command line
        assert file.stat().st_mode & 0o777 == 0o600
        assert f'content="0; url={host}/#code={code}"' in file.read_text()
        with httpx.Client(base_url=host, headers=PAGE) as browser:
            assert browser.post("/runtime/session/", json={"code": code}).status_code == 201
            assert browser.get("/runtime/jobs/").json() == {"count": 0, "results": []}
    assert not file.exists()


def test_code_is_not_printed_to_a_log(lab: Path, state: dict[str, str]) -> None:
    process = command("serve", lab, "--port", "0", "--ephemeral", env=state)
    assert process.stdout is not None
    host = process.stdout.readline().decode().split()[-1]
    process.terminate()
    _, stderr = process.communicate(timeout=patience(20))
    assert re.search(f"^page: +{host}/$", stderr.decode(), re.MULTILINE)
    assert b"code=" not in stderr

"""Where tokens go, where they never go, and what is read of an answer."""

from __future__ import annotations

import logging
import traceback
import tracemalloc

import pytest

from synapse_runtime.errors import RemoteError
from synapse_runtime.executors.remote.backend import Backend
from synapse_runtime.executors.remote.config import Secret, Settings
from synapse_runtime.executors.remote.executor import RemoteExecutor
from synapse_runtime.executors.remote.transport import Answer, Transport, error_of
from tests.remote.conftest import SHORT
from tests.remote.stub import TOKEN, PlainBackend


def transport_to(backend: PlainBackend) -> Transport:
    return Transport(Settings(backend.url, Secret(TOKEN)), timeouts=SHORT)


def test_redirect_is_not_followed_and_named(plain: PlainBackend) -> None:
    with PlainBackend() as other:
        plain.redirect = other.url
        with pytest.raises(RemoteError, match=f"redirects to {other.url}/agents/, which does not get the token"):
            Backend(transport_to(plain)).agents()
        with pytest.raises(RemoteError, match="redirects to"):
            RemoteExecutor(plain.url, TOKEN, plugin="digits", agent=7, timeouts=SHORT).run("train")
        assert other.requests == []


def test_redirect_of_what_only_some_backends_have_is_a_plain_backend(plain: PlainBackend) -> None:
    plain.redirect = "https://login.example"
    assert not Backend(transport_to(plain)).has_runtime


def test_next_page_at_another_host_is_asked_for_at_this_one(plain: PlainBackend) -> None:
    with PlainBackend() as other:
        plain.agents = {"results": [{"id": 1, "name": "a"}], "next": f"{other.url}/agents/?page=2"}  # type: ignore[assignment]
        agents = Backend(transport_to(plain)).agents()
        assert [request.query for request in plain.of("GET", "/agents/")] == [{}, {"page": "2"}]
        assert [agent.id for agent in agents] == [1, 1]
        assert other.requests == []


def test_token_is_not_sent_without_encryption_to_other_machines() -> None:
    with pytest.raises(RemoteError, match=r"http://host.example would get the token without encryption: use https"):
        RemoteExecutor("http://host.example", TOKEN)
    RemoteExecutor("http://host.example", TOKEN, insecure=True)
    RemoteExecutor("https://host.example", TOKEN)
    for host in ("http://localhost:1", "http://127.3.2.1:1", "http://[::1]:1"):
        RemoteExecutor(host, TOKEN)


def test_proxy_does_not_get_what_is_for_this_machine(plain: PlainBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    with PlainBackend() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        Backend(transport_to(plain)).agents()
        assert proxy.requests == []


def test_body_that_is_too_large_is_not_read(plain: PlainBackend) -> None:
    transport = Transport(Settings(plain.url, Secret(TOKEN)), timeouts=SHORT, max_bytes=5_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteError, match="answered with more than 5 MB, which is not read"):
            transport.get("huge/")
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("status", [502, 503, 504, 429])
def test_reading_is_repeated(plain: PlainBackend, status: int) -> None:
    plain.faults["/agents/"] = [status] * 3
    assert [agent.name for agent in Backend(transport_to(plain)).agents()] == ["lab"]
    assert len(plain.of("GET", "/agents/")) == 4


def test_reading_is_not_repeated_for_ever(plain: PlainBackend) -> None:
    plain.faults["/agents/"] = [503] * 99
    with pytest.raises(RemoteError, match="is not available"):
        Backend(transport_to(plain)).agents()
    assert len(plain.of("GET", "/agents/")) == 4


def test_token_is_in_no_text(plain: PlainBackend, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    executor = RemoteExecutor(plain.url, TOKEN, plugin="digits", agent=7, timeouts=SHORT)
    executor.run("train")
    plain.run_faults = ["drop"]
    with pytest.raises(RemoteError) as dropped:
        executor.run("train")
    refused = RemoteExecutor("http://127.0.0.1:1", TOKEN, plugin="digits", agent=7, timeouts=SHORT)
    with pytest.raises(RemoteError) as caught:
        refused.run("train")
    shown = [repr(executor), repr(vars(executor)), repr(vars(executor._api.transport)), caplog.text]
    for error in (dropped.value, caught.value):
        shown += traceback.TracebackException.from_exception(error, capture_locals=True).format()
        assert error.__cause__ is None
        assert error.__context__ is None
    shown += [request.path + str(request.query) for request in plain.requests]
    assert TOKEN not in "".join(shown)
    assert caplog.text == ""  # requests are not among the records of a test


def test_v2_has_its_own_spelling_of_the_credentials(plain: PlainBackend) -> None:
    job_id = plain.start("train", {}).id
    transport = Transport(Settings(plain.url, Secret(TOKEN), tenant="acme"), timeouts=SHORT)
    Backend(transport).stop(job_id)
    Backend(transport).job(job_id)
    v2, v1 = plain.of("POST", "/stop/")[0].headers, plain.of("GET", f"/jobs/{job_id}/")[0].headers
    assert (v2["synapse-access-token"], v2["synapse-tenant"]) == (TOKEN, "acme")
    assert (v1["synapse-access-token"], v1["synapse-tenant"]) == (f"Token {TOKEN}", "Token acme")


def test_text_of_a_refusal_names_the_fields() -> None:
    def text(body: str, status: int = 422) -> str:
        return str(error_of(Answer("POST http://h/x", status, body, {}), "http://h"))

    assert "(422): body.params.epochs: too small" in text(
        '{"detail": [{"loc": ["body", "params", "epochs"], "msg": "too small", "type": "t"}]}'
    )
    assert "(400): params.epochs: A valid integer is required." in text(
        '{"params": {"epochs": ["A valid integer is required."]}}', 400
    )
    assert "(409): is over; status: no" in text(
        '{"error": {"code": "INVALID_STATE", "message": "is over", "details": [{"field": "status", "message": "no"}]}}',
        409,
    )
    assert "(502): '<html>'" in text("<html>", 502)
    assert len(text("[" * 100_000)) < 1000

"""Requests that no client of ours makes: none of them is an internal error."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from synapse_runtime.run_record import ExceptionRecord, RunRecord
from synapse_runtime.server import run_state
from synapse_runtime.server.run_state import RunState, params_problems
from synapse_runtime.server.store import Job
from tests.server.conftest import Client

TEXTS = (
    "",
    "0",
    "-1",
    "%00",
    "..%2F..",
    "a" * 5000,
    "%F0%9F%98%80",
    "%ED%A0%80",
    "9" * 30,
    "' OR 1=1 --",
    "lab",
    "1",
    "@",
    "lab@",
)
BODIES: tuple[Any, ...] = (
    b"",
    b"null",
    b"[]",
    b"{}",
    b"5",
    b'"text"',
    b"[[], {}]",
    b"\x00",
    b"\xff\xfe",
    b'{"status": {}}',
    b'{"event": null, "job": 5}',
    b'[{"event": "e", "job": "\\u0000"}]',
    b'{"code": "a\\u0000b", "name": "x"}',
    b'{"event": "e", "data": ' + b"[" * 150 + b"]" * 150 + b"}",
    b'{"plugin": "lab", "action": "echo", "params": {"$dict": 5}, "agent": 1e400}',
)


def paths(client: Client) -> list[tuple[str, str]]:
    found = client.json("/openapi.json")["paths"]
    # A reset would delete what other tests use.
    return [(method.upper(), path) for path, methods in found.items() for method in methods if "reset" not in path]


def test_no_request_is_an_internal_error(client: Client) -> None:
    requests = [(method, path, text, b"{}") for (method, path), text in itertools.product(paths(client), TEXTS)]
    requests += [(method, path, "1", body) for method, path in paths(client) if method != "GET" for body in BODIES]
    for method, path, text, body in requests:
        if "{" not in path and body == b"{}" and text:
            path = f"{path}?page={text}&status={text}&plugin={text}&cursor={text}&job={text}&code={text}&content={text}"
        answer = client.http.request(method, re.sub(r"\{\w+\}", lambda _, text=text: text, path), content=body)
        assert answer.status_code < 500, (method, path, text, body, answer.text)


@pytest.mark.parametrize("name", ["Idempotency-Key", "Authorization", "Content-Type", "Origin"])
def test_strange_headers_are_no_internal_error(client: Client, name: str) -> None:
    for value in (b"", b"\xff", b"a" * 5000, b"multipart/form-data", b"multipart/form-data; boundary="):
        for path in ("/runtime/jobs/", "/plugin_releases/"):
            answer = client.post(path, content=b"{}", headers={name: value})  # type: ignore[dict-item]
            assert 400 <= answer.status_code < 500


def new_job() -> Job:
    values = dict.fromkeys(Job.__dataclass_fields__)
    return Job(**{**values, "id": "j", "owner": "o", "action": "train", "status": "RUNNING", "meta": {}})  # type: ignore[arg-type]


@pytest.mark.parametrize("errors", [None, 5, {"$type": 5}, [{}], [{"loc": 5, "msg": "m", "type": "t"}]])
def test_errors_that_are_none_of_pydantic_are_no_problems_of_params(errors: Any) -> None:
    error = ExceptionRecord(type="ValidationError", attributes={"_errors": errors})
    assert params_problems(RunRecord(action="train", status="failed", mode="remote", error=[error])) == []


def test_log_of_a_job_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "MAX_LOG_BYTES", 100)
    state = RunState(new_job())
    for number in range(10):
        state.add_output("stdout", f"{number} {'x' * 17}\n")
    batch = state.take_batch()
    assert [line[0] for line in batch.lines[:5]] == ["0", "1", "2", "3", "4"]
    assert "the log was cut here" in batch.lines[-1]
    assert len(batch.events) == 6
    state.add_output("stderr", "dropped")
    assert not state.take_batch()


def test_line_that_never_ends_is_split() -> None:
    state = RunState(new_job())
    for _ in range(5):
        state.add_output("stdout", "x" * 5000)
    assert [len(line) for line in state.take_batch().lines] == [10_001, 10_001]

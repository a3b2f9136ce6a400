"""What needs a server's parts at hand: time limits, and a database that cannot be used."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import httpx

from synapse_runtime.server.backend import Backend


def test_slow_inference_is_deferred_and_can_be_polled(http: httpx.Client) -> None:
    body = {"action": "inference", "params": {"input": {"seconds": 1}}}
    answer = http.post("/plugins/lab/run/", json=body).json()
    ticket = answer["ticket"]
    polls = 0
    while answer.get("status") == "pending":
        assert answer == {"__synapse_deferred__": True, "status": "pending", "ticket": ticket}
        poll = {"action": "inference", "params": {"json": {"__synapse_poll__": ticket}}}
        answer = http.post("/plugins/lab/run/", json=poll).json()
        polls += 1
    assert polls > 1
    assert answer["answer"] == {"seconds": 1}
    unknown = {"action": "inference", "params": {"json": {"__synapse_poll__": "nothing"}}}
    assert http.post("/plugins/lab/run/", json=unknown).json()["status"] == "not_found"
    assert len(http.get("/jobs/").json()["results"]) == 1


def test_locked_database_is_503_and_nothing_is_accepted(http: httpx.Client, backend: Backend, tmp_path: Path) -> None:
    http.get("/plugins/")
    other = sqlite3.connect(tmp_path / "synapse.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        answer = http.post("/runtime/jobs/", json={"plugin": "lab", "action": "echo"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "locked" in answer.json()["detail"]
        assert http.get("/ready/").status_code == 200
    finally:
        other.execute("ROLLBACK")
        other.close()
    assert http.get("/jobs/").json()["count"] == 0
    assert http.post("/runtime/jobs/", json={"plugin": "lab", "action": "echo"}).status_code == 201


def test_database_that_is_gone_is_503(http: httpx.Client, backend: Backend, tmp_path: Path) -> None:
    backend.store.close()
    (tmp_path / "synapse.db").unlink()
    (tmp_path / "synapse.db").mkdir()
    answer = http.get("/ready/")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert http.get("/health/").json() == {"status": "ok"}
    (tmp_path / "synapse.db").rmdir()

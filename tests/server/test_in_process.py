"""What needs a server's parts at hand: time limits, and a database that cannot be used."""

from __future__ import annotations

import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from synapse_runtime.server.app import create_app
from synapse_runtime.server.auth import AllowedHosts, local_token
from synapse_runtime.server.backend import Backend
from synapse_runtime.server.changes import Changes
from synapse_runtime.server.releases import Releases
from synapse_runtime.server.runs import RunOptions, Runs
from synapse_runtime.server.store import Store


@pytest.fixture
def backend(tmp_path: Path, lab: Path) -> Iterator[Backend]:
    store = Store.in_directory(tmp_path)
    releases, changes = Releases(store, tmp_path, [lab]), Changes()
    runs = Runs(store, releases, changes, RunOptions(concurrency=1))
    yield Backend(store, releases, runs, changes, AllowedHosts("127.0.0.1"), "http://127.0.0.1", inference_seconds=0.3)
    runs.close()
    store.close()


@pytest.fixture
def http(backend: Backend) -> Iterator[httpx.Client]:
    token = local_token(backend.store, None)
    server = uvicorn.Server(uvicorn.Config(create_app(backend), log_level="critical"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        backend.runs.start(backend.host)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with httpx.Client(base_url=url, headers={"Authorization": token}, timeout=30) as client:
            yield client
        server.should_exit = True
        thread.join()


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

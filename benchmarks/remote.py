"""Remote mode: our server beside a bare FastAPI application, and a call beside what it cannot do without."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench import SYNAPSE, Bench, Benchmark
from benchmarks.measure import BenchmarkFailed, Measurement, Pairs, in_turn, per_call, run

_ANSWER_SECONDS = 60.0
_STOP_SECONDS = 20.0
# The least that a backend does: one route, which inserts a row.
_BARE = """\
import json, sqlite3, sys, threading
from typing import Any

import uvicorn
from fastapi import FastAPI

port, path = int(sys.argv[1]), sys.argv[2]
app = FastAPI()
lock = threading.Lock()
rows = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
rows.execute("pragma journal_mode = wal")
rows.execute("create table jobs (id integer primary key, action text, params text)")


@app.get("/health/")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/jobs/", status_code=201)
def submit(body: dict[str, Any]) -> dict[str, Any]:
    with lock:
        values = body["action"], json.dumps(body["params"])
        inserted = rows.execute("insert into jobs (action, params) values (?, ?)", values)
        return {"id": inserted.lastrowid}


uvicorn.run(app, port=port, log_level="warning", access_log=False)
"""


def server_ready(bench: Bench) -> Pairs:
    """Start a server, until it answers."""
    program = _bare_program(bench)

    def ours(port: int) -> Sequence[str]:
        return (*SYNAPSE, "serve", str(bench.plugin), "--port", str(port), "--ephemeral")

    def bare(port: int) -> Sequence[str]:
        return (sys.executable, str(program), str(port), str(bench.directory / f"ready-{port}.db"))

    def start(command: Any) -> Measurement:
        def measure() -> float:
            port = _free_port()
            started = time.perf_counter()
            with _process(bench, command(port), port):
                return time.perf_counter() - started

        return measure

    return in_turn(start(ours), start(bare), bench.rounds(9, 3))


def calls(bench: Bench) -> Mapping[str, Pairs]:
    """Submit a job, run one to its result, and watch one that logs a thousand events."""
    from synapse_runtime.executors.remote.config import Secret, Settings
    from synapse_runtime.executors.remote.embedded_server import serve_embedded
    from synapse_runtime.executors.remote.executor import RemoteExecutor
    from synapse_runtime.loggers import NullLogger

    port = _free_port()
    command = (sys.executable, str(_bare_program(bench)), str(port), str(bench.directory / "calls.db"))
    with (
        serve_embedded([bench.plugin]) as server,
        _process(bench, command, port),
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as bare,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", int(server.host.rpartition(":")[2]))) as raw,
        RemoteExecutor(
            plugin=bench.plugin, settings=Settings(server.host, Secret(server.token)), logger=NullLogger()
        ) as executor,
    ):
        headers = {"Authorization": f"Bearer {server.token}"}
        body = {"action": "echo", "params": {"number": 2}}

        def submit_ours() -> float:
            seconds, answer = _post(raw, "/runtime/jobs/", {"plugin": "benchmark", **body}, headers)
            executor.get_run(answer["id"])  # what runs must not slow the next request
            return seconds

        def submit_bare() -> float:
            return _post(bare, "/jobs/", body, {})[0]

        def least() -> float:
            started = time.perf_counter()
            _post(bare, "/jobs/", body, {})
            run((sys.executable, "-c", "import pydantic"), bench.env, bench.plugin)
            return time.perf_counter() - started

        params = {"events": 1000}

        def watched() -> None:
            seen: list[Any] = []
            executor.run("say", params, on_event=seen.append).unwrap()
            assert len(seen) == params["events"]

        return {
            "remote-submit": in_turn(submit_ours, submit_bare, bench.rounds(40, 10), warm_up=3),
            "remote-call": in_turn(
                per_call(lambda: executor.execute("echo", {"number": 2})), least, bench.rounds(20, 6), warm_up=2
            ),
            "remote-events": in_turn(
                per_call(watched), per_call(lambda: executor.run("say", params).unwrap()), bench.rounds(10, 3)
            ),
        }


def _bare_program(bench: Bench) -> Path:
    path = bench.directory / "bare.py"
    path.write_text(_BARE, encoding="utf-8")
    return path


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@contextlib.contextmanager
def _process(bench: Bench, command: Sequence[str], port: int) -> Iterator[None]:
    """Run a server in the block, which begins once it answers."""
    process = subprocess.Popen(
        command, env=bench.env, cwd=bench.directory, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _wait_for_answer(process, port)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _wait_for_answer(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _ANSWER_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            assert process.stderr is not None
            raise BenchmarkFailed(f"a server did not start: {process.stderr.read().decode(errors='replace')}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS)
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request("GET", "/health/")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.002)
    raise BenchmarkFailed(f"a server did not answer within {_ANSWER_SECONDS:g} s")


def _post(
    connection: http.client.HTTPConnection, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
) -> tuple[float, Any]:
    """Return the seconds that a request took, and its answer."""
    started = time.perf_counter()
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    data = response.read()
    seconds = time.perf_counter() - started
    if response.status != 201:
        raise BenchmarkFailed(f"POST {path} answered {response.status}: {data.decode(errors='replace')}")
    return seconds, json.loads(data)


BENCHMARKS = (
    Benchmark(("server-ready",), server_ready),
    Benchmark(("remote-submit", "remote-call", "remote-events"), calls),
)

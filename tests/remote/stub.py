"""Backends to test against: real servers on the loopback that do as they are told, and misbehave when they are told to.

`PlainBackend` has the v1 API and nothing else, `RuntimeBackend` also the extensions below `/runtime/`.
"""

from __future__ import annotations

import email
import email.policy
import hashlib
import io
import json
import socket
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from synapse_runtime.core.execution import ActionRun
from synapse_runtime.events import Event
from synapse_runtime.executors.ray.archive import content_hash
from synapse_runtime.run_record import RunRecord, encode_event, to_json
from tests.patience import patience

TOKEN = "syn_stub_token_1234567890"


@dataclass
class Request:
    """A request that the backend has got."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def form(self) -> dict[str, bytes]:
        """The fields of a form."""
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        message: Any = email.message_from_bytes(head + self.body, policy=email.policy.HTTP)
        parts = message.iter_parts()
        contents = {part.get_param("name", header="content-disposition"): part.get_content() for part in parts}
        return {name: text.encode() if isinstance(text, str) else text for name, text in contents.items()}


@dataclass
class Job:
    """A job; its methods change it while others follow it."""

    id: str
    action: str
    request: Any
    status: str = "PENDING"
    lines: list[str] = field(default_factory=list)
    events: list[tuple[str, Any]] = field(default_factory=list)
    progress: Any = field(default_factory=dict)
    metrics: Any = field(default_factory=dict)
    result: Any = None
    meta: Any = field(default_factory=dict)
    record: str | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def has_ended(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    def print(self, *lines: str, stream: str = "stdout") -> None:
        with self.changed:
            self.lines.extend(lines)
            self.events.extend(("log", {"stream": stream, "text": f"{line}\n"}) for line in lines)
            self.changed.notify_all()

    def emit(self, event: Event) -> None:
        kind = {"progress": "progress", "metrics": "metric"}.get(event.kind, "event")
        with self.changed:
            self.events.append((kind, json.loads(to_json(encode_event(event)[0]))))
            self.changed.notify_all()

    def set(self, **fields: Any) -> None:
        with self.changed:
            for name, value in fields.items():
                setattr(self, name, value)
            if "status" in fields:
                self.events.append(("status", {"status": self.status}))
            self.changed.notify_all()

    def end(self, status: str = "SUCCEEDED", *, run: ActionRun | None = None, **fields: Any) -> None:
        """End the job."""
        if run is not None:
            fields["record"] = RunRecord.from_run(run).dumps()
        with self.changed:
            for name, value in (fields | {"status": status}).items():
                setattr(self, name, value)
            self.events += [("status", {"status": status}), ("end", {"status": status})]
            self.changed.notify_all()


Script = Callable[[Job], object]


def succeed(job: Job) -> None:
    """Run a job that prints three lines."""
    job.set(status="RUNNING")
    job.print("one", "two", "three")
    run = ActionRun(job.action, result={"status": "done"}, mode="local", is_started=True)
    job.end(result={"status": "done"}, run=run)


class PlainBackend:
    """A backend with the v1 API.

    Attributes:
        script: What a job does, in a thread of its own.
        requests: The requests, in order.
        jobs: The jobs by id.
        run_faults: What goes wrong with the next requests to run an action, one each: a status, `drop`, `accept and
            drop`, `accept and 502`, `silence`, or bytes to answer with status 200.
        tail_faults: What goes wrong with the next tails, one each: `missing`, `silence`, or (number of lines, bytes
            that follow before the connection is closed).
        faults: Statuses of the next requests to these paths.
        redirect: Where to redirect every request.
        answers: Answers of served actions, in order.
    """

    def __init__(self) -> None:
        self.script: Script = succeed
        self.requests: list[Request] = []
        self.jobs: dict[str, Job] = {}
        self.run_faults: list[Any] = []
        self.tail_faults: list[Any] = []
        self.faults: dict[str, list[int]] = {}
        self.redirect = ""
        self.answers: list[Any] = []
        self.agents: list[dict[str, Any]] = [{"id": 7, "name": "lab", "status": "connected"}]
        self.releases: list[dict[str, Any]] = []
        self.contents: dict[str, dict[str, Any]] = {}
        self.retry_after: str | None = "0"
        self.plugin_codes = ("digits", "demo")
        self.closing = threading.Event()
        backend = self

        class Handler(_Handler):
            stub = backend

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def __enter__(self) -> PlainBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def of(self, method: str, path: str) -> list[Request]:
        """Return the requests of this method whose path ends so."""
        return [request for request in list(self.requests) if request.method == method and request.path.endswith(path)]

    def start(self, action: str, request: Any) -> Job:
        job = Job(str(uuid.uuid4()), action, request)
        self.jobs[job.id] = job
        threading.Thread(target=self.script, args=(job,), daemon=True).start()
        return job

    def only_job(self) -> Job:
        [job] = self.jobs.values()
        return job


class RuntimeBackend(PlainBackend):
    """A backend that has the extensions, too.

    Attributes:
        event_faults: What goes wrong with the next streams of events: the number of events after which it is cut in
            the middle of the next, or `silence`.
    """

    def __init__(self) -> None:
        self.event_faults: list[Any] = []
        self.keys: dict[str, str] = {}
        self.features = ["jobs", "releases"]
        super().__init__()

    def __enter__(self) -> RuntimeBackend:
        return self


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: clients may hang up."""


class _Drop(Exception):
    """Close the connection without an answer."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: PlainBackend

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _handle(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, unquote(url.path), dict(parse_qsl(url.query)), headers, body)
        self.stub.requests.append(request)
        try:
            self._answer(request)
        except _Drop:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, request: Request) -> None:
        stub = self.stub
        if stub.redirect:
            self.send_response(302)
            self.send_header("Location", stub.redirect + request.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if TOKEN not in request.headers.get("synapse-access-token", request.headers.get("authorization", "")):
            self._json({"detail": "Invalid token."}, 401)
            return
        statuses = stub.faults.get(request.path)
        if statuses:
            self._json({"detail": "as told"}, statuses.pop(0))
            return
        parts = request.path.strip("/").split("/")
        match request.method, *parts:
            case "GET", "agents":
                self._json(stub.agents)
            case "GET", "huge":
                self._huge()
            case "POST", "plugins", code, "run":
                self._run(code, request)
            case "GET", "jobs":
                self._json(
                    {"count": len(stub.jobs), "next": None, "results": [_state(job) for job in stub.jobs.values()]}
                )
            case "GET", "jobs", job_id if job_id in stub.jobs:
                self._json(_state(stub.jobs[job_id]))
            case "GET", "jobs", job_id, "console_logs" if job_id in stub.jobs:
                self._json([f"{line}\n" for line in stub.jobs[job_id].lines])
            case "GET", "jobs", job_id, "tail_console_logs" if job_id in stub.jobs:
                self._tail(stub.jobs[job_id])
            case "POST", "v2", "jobs", job_id, "stop" if job_id in stub.jobs:
                self._stop(stub.jobs[job_id])
            case "POST", "plugin_releases":
                self._publish(request)
            case _, "runtime", *rest if isinstance(stub, RuntimeBackend):
                self._runtime(stub, rest, request)
            case _:
                self._json({"detail": "Not found."}, 404)

    def _run(self, code: str, request: Request) -> None:
        stub = self.stub
        fault = stub.run_faults.pop(0) if stub.run_faults else None
        if fault == "drop":
            raise _Drop
        if fault == "silence":
            stub.closing.wait(patience(20))
            raise _Drop
        if isinstance(fault, int):
            self._json({"detail": "as told"}, fault)
            return
        if isinstance(fault, bytes):
            self._body(fault, "text/html")
            return
        if code not in stub.plugin_codes:
            self._json({"detail": f"no plugin {code}"}, 404)
            return
        if request.json["action"] == "inference":
            self._json(stub.answers.pop(0))
            return
        job = stub.start(request.json["action"], request.json)
        if fault == "accept and drop":
            raise _Drop
        if fault == "accept and 502":
            self._body(b"<html>Bad Gateway</html>", "text/html", 502)
            return
        self._json({"job_id": job.id})

    def _stop(self, job: Job) -> None:
        if job.has_ended:
            self._json({"error": {"code": "INVALID_STATE", "message": "over"}, "meta": {}}, 409)
            return
        job.end("STOPPED")
        self._json({"data": {"id": job.id, "status": "STOPPED"}, "meta": {}})

    def _publish(self, request: Request) -> None:
        form = request.form
        text = {name: value.decode() for name, value in form.items() if name != "file"}
        same = [one for one in self.stub.releases if one["version"] == text["version"]]
        if same and text["debug"] != "True":
            self._json({"detail": "exists"}, 409)
            return
        release = {"id": 100 + len(self.stub.releases), "version": text["version"], "plugin": 3}
        self.stub.contents[_content_of(form["file"])] = release
        self.stub.releases.insert(0, release)
        self._json(release, 201)

    def _runtime(self, stub: RuntimeBackend, parts: list[str], request: Request) -> None:
        match request.method, *parts:
            case ("GET",):
                self._json({"server": "stub", "version": "1", "features": stub.features})
            case "POST", "jobs":
                self._submit(stub, request)
            case "GET", "releases":
                content = request.query["content"]
                found = [stub.contents[content] | {"content": content}] if content in stub.contents else []
                self._json({"results": found})
            case "GET", "jobs", job_id, "events" if job_id in stub.jobs:
                self._events(stub, stub.jobs[job_id], int(request.headers.get("last-event-id", 0)))
            case "GET", "jobs", job_id, "run" if job_id in stub.jobs:
                job = stub.jobs[job_id]
                if not job.has_ended:
                    self._json({"detail": "it runs"}, 409)
                elif job.record is None:
                    self._json({"detail": "none"}, 404)
                else:
                    self._body(job.record.encode(), "application/json")
            case "DELETE", "jobs", job_id if job_id in stub.jobs:
                if stub.jobs[job_id].has_ended:
                    del stub.jobs[job_id]
                    self._body(b"", "application/json", 204)
                else:
                    self._json({"detail": "it runs"}, 409)
            case _:
                self._json({"detail": "Not found."}, 404)

    def _submit(self, stub: RuntimeBackend, request: Request) -> None:
        fault = stub.run_faults.pop(0) if stub.run_faults else None
        if fault == "drop":
            raise _Drop
        if isinstance(fault, int):
            self._json({"detail": "as told"}, fault)
            return
        key, data = request.headers["idempotency-key"], request.json
        is_new = key not in stub.keys
        if is_new:
            stub.keys[key] = stub.start(data.get("action") or data["entrypoint"], data).id
        job = stub.jobs[stub.keys[key]]
        if fault == "accept and drop":
            raise _Drop
        if fault == "accept and 502":
            self._body(b"<html>Bad Gateway</html>", "text/html", 502)
            return
        release = stub.releases[0]["id"] if stub.releases else None
        answer = {"id": job.id, "status": job.status, "plugin": data["plugin"], "version": "1.0.0", "release": release}
        self._json(answer, 201 if is_new else 200)

    def _tail(self, job: Job) -> None:
        stub = self.stub
        fault = stub.tail_faults.pop(0) if stub.tail_faults else None
        if fault == "missing":
            self._json({"detail": "no tail here"}, 405)
            return
        self._start_stream()
        self._write(_frame({"type": "connected", "job_id": job.id}))
        if fault == "silence":
            stub.closing.wait(patience(20))
            raise _Drop
        for number, line in enumerate(self._items_of(job, job.lines)):
            if line is None:
                self._write(_frame({"type": "heartbeat"}))
            else:
                if isinstance(fault, tuple) and number >= fault[0]:
                    self._write(fault[1])
                    raise _Drop
                self._write(_frame({"type": "log", "data": line}))
        if isinstance(fault, tuple):
            self._write(fault[1])
            raise _Drop
        self._write(_frame({"type": "complete", "message": job.status}))
        self.close_connection = True

    def _events(self, stub: RuntimeBackend, job: Job, after: int) -> None:
        fault = stub.event_faults.pop(0) if stub.event_faults else None
        self._start_stream()
        if fault == "silence":
            stub.closing.wait(patience(20))
            raise _Drop
        sent = 0
        for number, item in enumerate(self._items_of(job, job.events), start=1):
            if item is None:
                self._write(b": keep-alive\n\n")
                continue
            if number <= after:
                continue
            message = f"id: {number}\nevent: {item[0]}\ndata: {json.dumps(item[1])}\n\n".encode()
            if isinstance(fault, int) and sent >= fault:
                self._write(message[: len(message) // 2])
                raise _Drop
            self._write(message)
            sent += 1
        self.close_connection = True

    def _items_of(self, job: Job, items: list[Any]) -> Iterator[Any]:
        """Yield the items of a list while it grows, until the job has ended; None now and then while it does not."""
        number = 0
        while not self.stub.closing.is_set():
            with job.changed:
                if number >= len(items):
                    if job.has_ended:
                        return
                    job.changed.wait(0.2)
                new = items[number:]
            yield from new
            number += len(new)

    def _start_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()

    def _write(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def _huge(self) -> None:
        """Send a billion bytes, unless the client hangs up before."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        piece = b"[" + b"1," * 500_000
        for _ in range(1000):
            self._write(piece)

    def _json(self, data: Any, status: int = 200) -> None:
        self._body(json.dumps(data).encode(), "application/json", status)

    def _body(self, data: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if status in (429, 503) and self.stub.retry_after is not None:
            self.send_header("Retry-After", self.stub.retry_after)
        self.end_headers()
        self._write(data)


def _frame(data: Any) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def _state(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "status": job.status,
        "action": job.action,
        "agent": 7,
        "plugin_release": 12,
        "progress_record": job.progress,
        "metrics_record": job.metrics,
        "result": job.result,
        "meta": job.meta,
        "created": "2026-02-01T10:00:00.000000+09:00",
        "completed": "2026-02-01T10:00:02.500000+09:00" if job.has_ended else None,
    }


def pause(seconds: float) -> None:
    """Let time pass between two steps of a job, so that its followers see both."""
    time.sleep(seconds)


def _content_of(data: bytes) -> str:
    """Return the content hash of a zip file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        return content_hash(
            (each.filename, bool(each.external_attr >> 16 & 0o111), hashlib.sha256(archive.read(each)).hexdigest())
            for each in members
        )

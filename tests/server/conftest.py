"""A plugin, servers that run it, and a client of their APIs."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from synapse_runtime.executors.remote.embedded_server import EmbeddedServer, serve_embedded
from synapse_runtime.server.app import create_app
from synapse_runtime.server.auth import AllowedHosts, local_token
from synapse_runtime.server.backend import Backend
from synapse_runtime.server.changes import Changes
from synapse_runtime.server.releases import Releases
from synapse_runtime.server.runs import RunOptions, Runs
from synapse_runtime.server.store import Store
from tests.patience import patience, within

CONFIG = """
code: lab
name: Lab
version: 1.2.3
category: neural_net
description: Actions for tests.
env: {FROM_CONFIG: config}
actions:
  train: {entrypoint: "plugin.main:train", method: job}
  echo: {entrypoint: "plugin.main:echo"}
  fail: {entrypoint: "plugin.main:fail"}
  leave: {entrypoint: "plugin.main:leave"}
  sleep: {entrypoint: "plugin.main:sleep"}
  spawn: {entrypoint: "plugin.main:spawn"}
  environment: {entrypoint: "plugin.main:environment"}
  output: {entrypoint: "plugin.main:output"}
  inference: {entrypoint: "plugin.main:inference", method: serve}
  deploy: {entrypoint: "plugin.main:deploy"}
"""
MAIN = """
import os
import subprocess
import sys
import time
from enum import Enum
from pathlib import Path

from pydantic import BaseModel

from synapse_runtime.decorators import action


class TrainParams(BaseModel):
    epochs: int = 2


class TrainResult(BaseModel):
    accuracy: float
    weights: Path


@action(params=TrainParams)
def train(params, context):
    context.log_message("starting")
    for epoch in range(params.epochs):
        print("epoch", epoch)
        context.set_progress(epoch + 1, params.epochs, "train")
        context.set_metrics({"loss": float("nan") if epoch else 0.5}, "train")
    context.log("done", {"epochs": params.epochs})
    return TrainResult(accuracy=0.9, weights=Path("weights.npz"))


@action
def echo(params, context):
    return params


@action
def fail(params, context):
    print("before")
    raise ValueError("no weights")


@action
def leave(params, context):
    print("leaving", flush=True)
    os.kill(os.getpid(), 9) if params.get("killed") else os._exit(3)


class SleepParams(BaseModel):
    seconds: float = 60
    file: str = ""


@action(params=SleepParams)
def sleep(params, context):
    print("sleeping", flush=True)
    if params.file:
        Path(params.file).write_text(str(os.getpid()))
    time.sleep(params.seconds)
    return "slept"


@action
def spawn(params, context):
    child = subprocess.Popen(["sleep", "300"], start_new_session=True)
    print(child.pid, flush=True)
    time.sleep(300)


@action
def environment(params, context):
    return {"process": dict(os.environ), "context": context.env.to_dict(), "argv": sys.argv}


@action
def output(params, context):
    sys.stdout.write("half")
    sys.stdout.flush()
    time.sleep(0.1)
    print(" a line")
    print("to stderr", file=sys.stderr)
    print("no [bold] markup, caf\\u00e9 \\U0001f600")
    for number in range(params.get("lines", 0)):
        print("line", number)
    sys.stdout.write("no newline at the end")
    return None


class InferenceParams(BaseModel):
    input: dict
    path: str = "/"


@action(params=InferenceParams)
def inference(params, context):
    if "seconds" in params.input:
        time.sleep(params.input["seconds"])
    if params.input.get("fails"):
        raise RuntimeError("no model")
    return {"answer": params.input, "path": params.path}


@action
def deploy(params, context):
    return "deployed"


class Color(Enum):
    RED = 1


@action
def hidden(params, context):
    return {"types": sorted(f"{name}:{type(value).__name__}" for name, value in params.items()), "pair": (1, b"x")}
"""


def write_plugin(directory: Path, *, config: str = CONFIG, main: str = MAIN) -> Path:
    """Write the plugin into a directory, and return that."""
    (directory / "plugin").mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(textwrap.dedent(config))
    (directory / "plugin" / "__init__.py").write_text("")
    (directory / "plugin" / "main.py").write_text(main)
    return directory


def zipped(files: Mapping[str, str | bytes]) -> bytes:
    """Return a zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def plugin_zip(code: str = "uploaded", config: str = CONFIG, main: str = MAIN) -> bytes:
    """Return the zip file of the plugin, under another code."""
    text = config.replace("code: lab", f"code: {code}")
    return zipped({"config.yaml": text, "plugin/__init__.py": "", "plugin/main.py": main})


@dataclass
class Client:
    """A client of one server, which answers as the test sees it."""

    http: httpx.Client
    token: str = field(repr=False)
    others: list[Client] = field(default_factory=list, repr=False)

    def close(self) -> None:
        """Close its connections, and those of clients that were made by `with_token`."""
        for client in (self, *self.others):
            client.http.close()

    @property
    def host(self) -> str:
        return str(self.http.base_url).rstrip("/")

    def with_token(self, token: str) -> Client:
        client = Client(httpx.Client(base_url=self.host, headers={"Authorization": token}, timeout=30), token)
        self.others.append(client)
        return client

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.http.post(path, **options)

    def json(self, path: str, **options: Any) -> Any:
        answer = self.http.get(path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def start(self, action: str, params: Any = None, *, plugin: str = "lab", **fields: Any) -> str:
        """Start a job, and return its id."""
        body = {"plugin": plugin, "action": action, "params": params or {}, **fields}
        answer = self.post("/runtime/jobs/", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def finish(self, job_id: str) -> dict[str, Any]:
        """Wait until a job has ended, and return it as the v1 API does."""
        deadline = time.monotonic() + patience(30)
        while (job := self.json(f"/jobs/{job_id}/"))["status"] in ("PENDING", "RUNNING"):
            assert time.monotonic() < deadline, job
            time.sleep(0.03)
        return dict(job)

    def run(self, action: str, params: Any = None, **fields: Any) -> dict[str, Any]:
        return self.finish(self.start(action, params, **fields))

    def wait_for_output(self, job_id: str, count: int = 1) -> list[str]:
        """Wait until a job has printed lines, and return them."""
        lines: list[str] = []

        def has_printed() -> bool:
            lines[:] = self.json(f"/jobs/{job_id}/console_logs/")
            return len(lines) >= count

        assert within(20, has_printed)
        return lines

    def events(self, job_id: str, **options: Any) -> list[tuple[int, str, Any]]:
        """Return the numbered events of a job until its end."""
        text = self.get(f"/runtime/jobs/{job_id}/events/", **options).text
        found = []
        for block in text.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if fields:
                found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
        return found

    def publish(self, archive: bytes, **fields: Any) -> httpx.Response:
        data = {"plugin": "uploaded", "version": "1.0.0", "debug": "False", **fields}
        return self.post("/plugin_releases/", data=data, files={"file": ("plugin.zip", archive)})


def client_of(host: str, token: str) -> Client:
    headers = {"Synapse-Access-Token": f"Token {token}"}
    return Client(httpx.Client(base_url=host, headers=headers, timeout=30), token)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin's directory."""
    return write_plugin(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="session")
def embedded(lab: Path) -> Iterator[EmbeddedServer]:
    """The server that most tests share."""
    with serve_embedded([lab], concurrency=3) as server:
        yield server


@pytest.fixture(scope="session")
def client(embedded: EmbeddedServer) -> Iterator[Client]:
    """A client of that server, with its admin's token."""
    client = client_of(embedded.host, embedded.token)
    yield client
    client.close()


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of another plugin, which tests may edit."""
    return write_plugin(tmp_path_factory.mktemp("live"), config=CONFIG.replace("code: lab", "code: live"))


@pytest.fixture(scope="session")
def alone(lab: Path, live: Path) -> Iterator[Client]:
    """A client of a server that runs one job at a time, and whose environment has secrets."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SERVER_VARIABLES.items():
            patch.setenv(name, value)
        with serve_embedded([lab, live], concurrency=1) as server:
            client = client_of(server.host, server.token)
            yield client
            client.close()


SERVER_VARIABLES = {"MY_API_KEY": "sesame-open", "SYNAPSE_ACCESS_TOKEN": "of-the-user", "PLAIN": "kept"}


@pytest.fixture
def backend(tmp_path: Path, lab: Path) -> Iterator[Backend]:
    """The parts of a server, in this process."""
    store = Store.in_directory(tmp_path)
    releases, changes = Releases(store, tmp_path, [lab]), Changes()
    runs = Runs(store, releases, changes, RunOptions(concurrency=1))
    yield Backend(store, releases, runs, changes, AllowedHosts("127.0.0.1"), "http://127.0.0.1", inference_seconds=0.3)
    runs.close()
    store.close()


@pytest.fixture
def http(backend: Backend) -> Iterator[httpx.Client]:
    """A client of that server, with its admin's token."""
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


@dataclass
class Served:
    """A `synapse serve` process."""

    process: subprocess.Popen[bytes]
    client: Client
    printed: str


Serve = Callable[..., Any]


@pytest.fixture
def state(tmp_path: Path) -> dict[str, str]:
    """Variables of commands of this test alone."""
    return {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.fixture
def serve(tmp_path: Path, state: dict[str, str]) -> Serve:
    """Return a context manager that runs `synapse serve` with these arguments, on a free port."""
    return partial(serving, state)


@contextmanager
def serving(env: Mapping[str, str], *arguments: str | Path) -> Iterator[Served]:
    """Run `synapse serve` with these arguments, on a free port.

    Args:
        env: Its environment, with an XDG_STATE_HOME of its own.
        *arguments: The arguments.
    """
    process = command("serve", "--port", "0", *arguments, env=env)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        assert line.startswith("serving on "), (line, process.stderr and process.stderr.read())
        host = line.split()[-1]
        file = Path(env["XDG_STATE_HOME"], "synapse", "servers", f"{host.rpartition(':')[2]}.json")
        login = json.loads(file.read_text())
        client = client_of(host, login["token"])
        try:
            yield Served(process, client, line)
        finally:
            client.close()
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=patience(20))


def command(*arguments: str | Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a `synapse` command."""
    words: Sequence[str | Path] = [sys.executable, "-m", "synapse_runtime", *arguments]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(env))


@contextmanager
def served_on_terminal(*arguments: str | Path, env: Mapping[str, str]) -> Iterator[str]:
    """Run an ephemeral `synapse serve` on a terminal; yield the address that it shows there, with a code."""
    terminal, inside = os.openpty()
    words = [sys.executable, "-m", "synapse_runtime", "serve", "--port", "0", "--ephemeral", *arguments]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=inside, env=dict(env))
    os.close(inside)
    try:
        shown, deadline = "", time.monotonic() + patience(30)
        while "stop:" not in shown:
            assert time.monotonic() < deadline, shown
            shown += os.read(terminal, 4096).decode()
        found = re.search(r"page: +(http://127\.0\.0\.1:\d+/#code=[\w-]+)", shown)
        assert found, shown
        yield found[1]
    finally:
        process.terminate()
        process.wait(patience(20))
        os.close(terminal)

"""Secrets stay where they belong: canaries in every layer of the environment, and a search wherever others look."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import patience
from tests.ray.clusters import ROOT, Running, outer_environment, ray_cluster

MODES = pytest.mark.parametrize("mode", ["task", "job"])
# Each unlike the others in all its parts, so that what leaks is known by what is found.
CANARIES = {
    "config": "canary-of-the-config-7f3a91",
    "given": "canary-of-the-executor-c04be8",
    "marker": "canary-of-the-marker-19d5e2",
    "token": "ca4a27ca4a27" * 5,
}

CONFIG = f"""\
code: canary
env: {{FROM_CONFIG: {CANARIES["config"]}}}
actions:
  look: {{entrypoint: "canary.actions:Look"}}
  fail: {{entrypoint: "canary.actions:Fail"}}
  crash: {{entrypoint: "canary.actions:Crash"}}
  convert: {{entrypoint: "canary.actions:Convert"}}
  wait: {{entrypoint: "canary.actions:Wait"}}
"""

ACTIONS = """\
import os
import subprocess
import sys
import time
from pathlib import Path

from pydantic import BaseModel

from synapse_runtime.action import BaseAction

NAMES = ("FROM_CONFIG", "GIVEN")


def login(password, *rest, server="here"):
    raise PermissionError("the server said no")


class Look(BaseAction):
    def execute(self):
        seen = {name: os.environ[name] for name in NAMES}
        # How the secrets got here: not in what this process was started with, which others of its user can read.
        start = Path("/proc/self/environ").read_bytes().decode()
        return {"lengths": [len(value) for value in seen.values()], "started_with": [v in start for v in seen.values()]}


class Fail(BaseAction):
    def execute(self):
        secrets = [self.ctx.env[name] for name in NAMES]
        login(secrets[0], {"other": secrets[1]}, server=f"https://{secrets[1]}@here")


class Crash(BaseAction):
    def execute(self):
        secret = self.ctx.env["GIVEN"]
        os.kill(os.getpid(), 11)


class Convert(BaseAction):
    def execute(self):
        return self.ctx.env.get_int("GIVEN")


class Params(BaseModel):
    number: int = 0
    started: str = ""
    until: str = ""


class Wait(BaseAction[Params]):
    def execute(self):
        Path(self.params.started).touch()
        deadline = time.monotonic() + 60
        while not Path(self.params.until).exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
"""

TESTS = f"""\
import pytest
from synapse_runtime.errors import ExecutionError, ValidationError, WorkerCrashed

pytestmark = pytest.mark.synapse(env={{"GIVEN": "{CANARIES["marker"]}"}})


def test_it_sees_them(synapse_executor):
    lengths = [{len(CANARIES["config"])}, {len(CANARIES["marker"])}]
    assert synapse_executor.execute("look") == {{"lengths": lengths, "started_with": [False, False]}}


@pytest.mark.parametrize("action", ["fail", "crash", "convert"])
def test_it_fails(synapse_executor, action):
    synapse_executor.execute(action)


def test_its_params_are_bad(synapse_executor):
    synapse_executor.execute("wait", {{"number": "none"}})
"""


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    """A cluster that demands a token."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": CANARIES["token"]}
    with ray_cluster(variables=token) as running:
        yield running


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plugin")
    (root / "canary").mkdir()
    (root / "config.yaml").write_text(CONFIG)
    (root / "canary" / "__init__.py").touch()
    (root / "canary" / "actions.py").write_text(ACTIONS)
    (root / "pytest.ini").write_text("[pytest]\n")
    (root / "test_canary.py").write_text(TESTS)
    return root


SCRIPT = """
import json, os, sys
from synapse_runtime.errors import PluginError
from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor
from synapse_runtime.loggers import NullLogger

mode, address, plugin, started, until = sys.argv[1:]
given = json.loads(sys.stdin.read())
executor = {"task": RayActorExecutor, "job": RayJobsApiExecutor}[mode](
    {"GIVEN": given}, plugin=plugin, ray_address=address, logger=NullLogger()
)
print(executor.call("look"), executor)
for action in ("look", "fail", "crash", "convert"):
    run = executor.run(action)
    print(action, run, run.error, getattr(run.error, "details", ""), getattr(run.error, "__notes__", ""))
try:
    executor.execute("wait", {"number": "none"})
except PluginError as error:
    print(error)
executor.execute("wait", {"started": started, "until": until})  # meanwhile all is searched
"""


@MODES
def test_no_secret_shows_anywhere_that_others_look(locked, plugin, mode, tmp_path):
    started, until = tmp_path / "started", tmp_path / "until"
    address = locked.address if mode == "task" else locked.dashboard
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, mode, address, str(plugin), str(started), str(until)],
        env=outer_environment(PYTHONPATH=str(ROOT), **locked.variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        said: list[str] = []
        assert process.stdin is not None
        process.stdin.write(json.dumps(CANARIES["given"]))
        process.stdin.close()
        reader = threading.Thread(target=lambda: said.extend(process.stdout or ()))
        reader.start()
        try:
            while not started.exists():
                assert process.poll() is None, "".join(said)
            found = searched(locked)
        finally:
            until.touch()
            process.wait(patience(60))
            reader.join()
    output = "".join(said)
    assert process.returncode == 0, output
    assert "look ActionRun(" in output
    assert "'lengths': [27, 29], 'started_with': [False, False]" in output
    assert "environment value GIVEN, a str, is not an integer" in output
    assert leaks(output) == []
    assert any("job-driver" in place for place in found) == (mode == "job")
    assert {place: leaks(text) for place, text in found.items() if leaks(text)} == {}


@MODES
def test_no_secret_shows_in_the_report_of_pytest(locked, plugin, mode):
    address = locked.address if mode == "task" else locked.dashboard
    options = ["-p", "no:cacheprovider", "-vv", f"--synapse-mode={mode}", f"--synapse-ray-address={address}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(plugin)],
        env=outer_environment(PYTHONPATH=str(ROOT), **locked.variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience(120),
    )
    assert "1 passed" in done.stdout, done.stdout
    assert "4 failed" in done.stdout
    assert "password = '<FROM_CONFIG>'" in done.stdout
    assert leaks(done.stdout + done.stderr) == []
    assert {place: leaks(text) for place, text in searched(locked).items() if leaks(text)} == {}


def leaks(text: str) -> list[str]:
    return [name for name, canary in CANARIES.items() if canary in text]


def searched(cluster: Running) -> dict[str, str]:
    """Return all that others can see of a cluster: by place, as text, what is encoded in it decoded too."""
    places = {f"{kind} {name}": text for kind, name, text in (*told(cluster), *on_disk(cluster), *of_processes())}
    return {place: text + decoded(text) for place, text in places.items()}


def told(cluster: Running) -> Iterator[tuple[str, str, str]]:
    """Yield what the dashboard tells, and the command lines that are made of it."""
    kinds = ("actors", "jobs", "nodes", "objects", "placement_groups", "runtime_envs", "tasks", "workers")
    pages = [f"/api/v0/{kind}?detail=1&limit=1000" for kind in kinds]
    pages += ["/api/jobs/", "/logical/actors", "/nodes?view=summary", "/api/cluster_status", "/api/v0/cluster_metadata"]
    jobs = json.loads(page_of(cluster, "/api/jobs/"))
    pages += [
        f"/api/jobs/{job['submission_id']}{rest}" for job in jobs if job["submission_id"] for rest in ("", "/logs")
    ]
    for page in pages:
        yield "the page", page, page_of(cluster, page)
    for command in (["list", "--json"], ["list"]):
        done = subprocess.run(
            [sys.executable, "-m", "synapse_runtime", "job", *command, "--ray-address", cluster.dashboard],
            env=outer_environment(PYTHONPATH=str(ROOT), **cluster.variables),
            capture_output=True,
            text=True,
            timeout=patience(60),
        )
        assert done.returncode == 0, done.stderr
        yield "the command", " ".join(command), done.stdout + done.stderr


def page_of(cluster: Running, path: str) -> str:
    headers = {"Authorization": f"Bearer {cluster.variables['RAY_AUTH_TOKEN']}"}
    try:
        request = urllib.request.Request(cluster.dashboard + path, headers=headers)
        page = urllib.request.urlopen(request, timeout=patience(30))
    except urllib.error.HTTPError as error:  # some of Ray 2.52 fail, which is a page that others see too
        page = error
    with page:
        return page.read().decode()


def on_disk(cluster: Running) -> Iterator[tuple[str, str, str]]:
    """Yield every file that the cluster has written: its logs, and what jobs were sent."""
    for path in cluster.temp.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield "the file", str(path), path.read_bytes().decode("latin-1")


def of_processes() -> Iterator[tuple[str, str, str]]:
    """Yield the command line of every process here; and of workers, but for the token, what they were started with."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode("latin-1")
                environment = (entry / "environ").read_bytes().decode("latin-1")
            except OSError:
                continue
            yield "the command line", f"{entry.name}: {command[:60]}", command
            yield "the environment", f"{entry.name}: {command[:60]}", environment.replace(CANARIES["token"], "")


def decoded(text: str) -> str:
    """Return what of a text is base64, as our frames in a job's log are."""
    words = re.findall(r"(?:[A-Za-z0-9+/]{4}){8,}(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", text)
    return "\n".join(base64.b64decode(word).decode("latin-1") for word in words)

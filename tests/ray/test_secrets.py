"""Secrets do not leak: canary values in every layer of the environment, searched for wherever others have access."""

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
from tests.ray.clusters import ROOT, Running, outer_environment, ray_cluster, run_python

MODES = pytest.mark.parametrize("mode", ["task", "job"])
# The values differ in all parts, so that a match identifies the secret that leaks.
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
        # The secrets must not be in this process's initial environment, which other processes of the user can read.
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


def test_action_has_the_secrets(synapse_executor):
    lengths = [{len(CANARIES["config"])}, {len(CANARIES["marker"])}]
    assert synapse_executor.execute("look") == {{"lengths": lengths, "started_with": [False, False]}}


@pytest.mark.parametrize("action", ["fail", "crash", "convert"])
def test_action_fails(synapse_executor, action):
    synapse_executor.execute(action)


def test_params_are_invalid(synapse_executor):
    synapse_executor.execute("wait", {{"number": "none"}})
"""


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    """A cluster that requires a token."""
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

mode, address, plugin, started, until, *actions = sys.argv[1:]
given = json.loads(sys.stdin.read())
executor = {"task": RayActorExecutor, "job": RayJobsApiExecutor}[mode](
    {"GIVEN": given}, plugin=plugin, ray_address=address, logger=NullLogger()
)
print(executor.call("look"), executor)
for action in actions:
    run = executor.run(action)
    print(action, run, run.error, getattr(run.error, "details", ""), getattr(run.error, "__notes__", ""))
try:
    executor.execute("wait", {"number": "none"})
except PluginError as error:
    print(error)
executor.execute("wait", {"started": started, "until": until})  # until the test has searched for secrets
"""


@MODES
def test_no_secret_is_visible_to_others(locked, plugin, mode, tmp_path):
    started, until = tmp_path / "started", tmp_path / "until"
    address = locked.address if mode == "task" else locked.dashboard
    # As jobs, the others are run by the next test only.
    actions = ("look", "fail", "crash", "convert") if mode == "task" else ("look", "fail")
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, mode, address, str(plugin), str(started), str(until), *actions],
        env=outer_environment(PYTHONPATH=str(ROOT), **locked.variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        lines: list[str] = []
        assert process.stdin is not None
        process.stdin.write(json.dumps(CANARIES["given"]))
        process.stdin.close()
        reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
        reader.start()
        try:
            while not started.exists():
                assert process.poll() is None, "".join(lines)
            found = visible_texts(locked)
        finally:
            until.touch()
            process.wait(patience(60))
            reader.join()
    output = "".join(lines)
    assert process.returncode == 0, output
    assert "look ActionRun(" in output
    assert "'lengths': [27, 29], 'started_with': [False, False]" in output
    assert ("environment value GIVEN (of type str) is not a valid integer" in output) == (mode == "task")
    assert leaks(output) == []
    assert any("job-driver" in source for source in found) == (mode == "job")
    assert {source: leaks(text) for source, text in found.items() if leaks(text)} == {}


@MODES
def test_no_secret_is_in_the_report_of_pytest(locked, plugin, mode):
    address = locked.address if mode == "task" else locked.dashboard
    options = ["-p", "no:cacheprovider", "-vv", f"--synapse-mode={mode}", f"--synapse-ray-address={address}"]
    done = run_python(["-m", "pytest", *options, str(plugin)], **locked.variables)
    assert "1 passed" in done.stdout, done.stdout
    assert "4 failed" in done.stdout
    assert "password = '<FROM_CONFIG>'" in done.stdout
    assert leaks(done.stdout + done.stderr) == []
    assert {source: leaks(text) for source, text in visible_texts(locked).items() if leaks(text)} == {}


def leaks(text: str) -> list[str]:
    return [name for name, canary in CANARIES.items() if canary in text]


def visible_texts(cluster: Running) -> dict[str, str]:
    """Return everything about a cluster that others can read, by source, with base64 content decoded in addition."""
    sources = (*listings(cluster), *files(cluster), *processes())
    return {f"{kind} {name}": text + decoded(text) for kind, name, text in sources}


def listings(cluster: Running) -> Iterator[tuple[str, str, str]]:
    """Yield the pages of the dashboard, and the output of commands that list jobs."""
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
        done = run_python(
            ["-m", "synapse_runtime", "job", *command, "--ray-address", cluster.dashboard], **cluster.variables
        )
        assert done.returncode == 0, done.stderr
        yield "the command", " ".join(command), done.stdout + done.stderr


def page_of(cluster: Running, path: str) -> str:
    headers = {"Authorization": f"Bearer {cluster.variables['RAY_AUTH_TOKEN']}"}
    try:
        request = urllib.request.Request(cluster.dashboard + path, headers=headers)
        page = urllib.request.urlopen(request, timeout=patience(30))
    except urllib.error.HTTPError as error:  # some pages fail with Ray 2.52; others can read the error too
        page = error
    with page:
        return page.read().decode()


def files(cluster: Running) -> Iterator[tuple[str, str, str]]:
    """Yield every file that the cluster has written: its logs, and uploads of jobs."""
    for path in cluster.temp.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield "the file", str(path), path.read_bytes().decode("latin-1")


def processes() -> Iterator[tuple[str, str, str]]:
    """Yield the command line and the initial environment, without the token, of every process on this machine."""
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
    """Return the decoded base64 parts of a text, such as frames in a job's log."""
    words = re.findall(r"(?:[A-Za-z0-9+/]{4}){8,}(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", text)
    return "\n".join(base64.b64decode(word).decode("latin-1") for word in words)

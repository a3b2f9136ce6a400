"""What a session inherits, such as `uv run`, hooks of Ray, a proxy or `PYTHONWARNINGS`, does not break its cluster."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.ray import RayJobsApiExecutor
from synapse_runtime.executors.ray.cluster.preflight import require_dashboard
from synapse_runtime.loggers import NullLogger
from tests.patience import patience
from tests.pytest_synapse.conftest import session_environment
from tests.ray.conftest import PLUGIN

ACTIONS = """\
import os
import signal
import subprocess
import warnings

import ray

from synapse_runtime.decorators import action


def hook(runtime_env):
    with open(os.environ["HOOK_LOG"], "a") as log:
        log.write("called")
    return {"env_vars": {"DERIVED": "by the hook"}}


def derived():
    return dict(ray.get_runtime_context().runtime_env), os.environ.get("DERIVED")


@action
def inherited(params, context):
    print("\\u00e9\\u2603 \\udc80")
    found = [derived()] if ray.is_initialized() else []
    if not found:
        ray.init(log_to_driver=False, logging_level="error")
        found = [derived(), ray.get(ray.remote(derived).options(num_cpus=0).remote())]
    child = subprocess.Popen(["sleep", "60"])
    child.send_signal(signal.SIGINT)
    return {
        "derived": found,
        "interrupted child": child.wait(timeout=20),
        "variables": [os.environ.get(name) for name in ("PYTHONWARNINGS", "PYTHONINSPECT", "PYTHONSTARTUP")],
        "optimized": not __debug__,
    }
"""

TEST = """\
import signal

def test_it(synapse_executor, capfd):
    found = synapse_executor.execute("inherited")
    assert [tuple(one) for one in found.pop("derived")] in ([({}, None)], [({}, None)] * 2)
    assert found == {
        "interrupted child": -signal.SIGINT,
        "variables": ["error", "1", "/nowhere.py"],
        "optimized": not __debug__,
    }
    assert "\\u00e9\\u2603 ?" in capfd.readouterr().out
"""
# Of Python, in all processes that a session starts.
OF_PYTHON = {
    "PYTHONWARNINGS": "error",
    "PYTHONINSPECT": "1",
    "PYTHONSTARTUP": "/nowhere.py",
    "PYTHONSAFEPATH": "1",
    "PYTHONOPTIMIZE": "1",
    "PYTHONPROFILEIMPORTTIME": "1",
    "PYTHONUTF8": "0",
    "LC_ALL": "C",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "demo"\nversion = "1"\n')
    (tmp_path / "config.yaml").write_text("code: demo\nactions:\n  inherited: {entrypoint: 'acts:inherited'}\n")
    (tmp_path / "acts.py").write_text(ACTIONS)
    (tmp_path / "test_it.py").write_text(TEST)
    return tmp_path


@pytest.fixture
def closed_address() -> Iterator[str]:
    """The address of a proxy that is not there."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # without `listen`
        yield f"127.0.0.1:{unused.getsockname()[1]}"


def uv_run_pytest(project: Path, *arguments: str, **env: str) -> str:
    """Run pytest with `uv run`, ignoring interrupts, and with all from which Ray derives a runtime environment.

    Return its output.
    """
    job = {"runtime_env": {"working_dir": str(project), "env_vars": {"DERIVED": "by the job"}}}
    variables = {
        "VIRTUAL_ENV": sys.prefix,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(project), os.getcwd(), os.environ.get("PYTHONPATH")])),
        "HOOK_LOG": str(project / "hook.log"),
        "RAY_RUNTIME_ENV_HOOK": "acts.hook",
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job),
    }
    uv = shutil.which("uv", path=Path(sys.executable).parent) or "uv"
    process = subprocess.Popen(
        [uv, "run", "--active", "--no-sync", "--offline", sys.executable, "-m", "pytest", *arguments],
        cwd=project,
        env=session_environment() | variables | OF_PYTHON | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        output, _ = process.communicate(timeout=patience(120))
    finally:
        process.terminate()  # which uv passes on
        process.wait()
    assert not (project / "hook.log").exists()
    return output  # the exit status is not that of pytest, because of PYTHONINSPECT


def test_ephemeral_cluster_starts_and_works_whatever_the_session_inherits(project, closed_address):
    proxy = f"http://{closed_address}"
    output = uv_run_pytest(project, "--synapse-mode=task,job", "-n2", "--synapse-num-cpus=3", http_proxy=proxy)
    assert "2 passed" in output, output


def test_workers_of_a_running_cluster_get_no_runtime_environment_of_uv_run_and_hooks(project, reached):
    (project / "test_it.py").write_text(TEST.partition("    assert found ==")[0])
    output = uv_run_pytest(project, "--synapse-mode=task", **reached, RAY_JOB_CONFIG_JSON_ENV_VAR="{}")
    assert "1 passed" in output, output


def test_job_is_not_submitted_to_the_loopback_address_through_a_proxy(reached, closed_address, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://{closed_address}")
    with RayJobsApiExecutor(plugin=PLUGIN, logger=NullLogger()) as executor:
        assert executor.execute("echo", {"value": 1}) == 1


class Refusing(http.server.BaseHTTPRequestHandler):
    """A proxy that refuses all requests."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_error_of_a_dashboard_behind_a_proxy_names_the_proxy(closed_address, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://user:word@{closed_address}")
    named = rf"the proxy {closed_address} \(HTTP_PROXY\): if that does not serve ray\.example\.com, add this name to "
    with pytest.raises(ClusterError, match=rf"no cluster answers at http://ray\.example\.com:8265: .* {named}"):
        require_dashboard("http://ray.example.com:8265", {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{server.server_port}")
        with pytest.raises(ClusterError, match=rf"requires a token.*the proxy 127\.0\.0\.1:{server.server_port}"):
            require_dashboard("http://ray.example.com:8265", {})
        server.shutdown()

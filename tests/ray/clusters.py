"""External clusters for tests, started with `ray start`, with configurable nodes, tokens, certificates and versions."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.forks import fork_server
from tests.patience import patience

_NOT_INHERITED = (
    *("RAY_", "SYNAPSE_", "PYTEST_", "COV_CORE_", "TMPDIR", "VIRTUAL_ENV"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_"),
)
# Of TLS, by Ray and aiohttp.
_READ_AT_IMPORT = ("RAY_USE_TLS", "RAY_TLS_", "SSL_CERT_", "REQUESTS_CA_BUNDLE")
_START_SECONDS = patience(120)
ROOT = Path(__file__).parents[2]


# `ray start` that waits as long as a busy machine needs, as the clusters do that synapse starts. Ray itself gives up if
# a node takes 30 s to start, or if its agent takes 15 s to announce a port that was not given. Its first arguments are
# the seconds and that port.
RAY_START = """\
import sys, time
from ray._private import services

seconds, port = float(sys.argv.pop(1)), sys.argv.pop(1)
get_node, start_ray_process = services.get_node, services.start_ray_process

def wait_for_node(*args, **options):
    until = time.monotonic() + seconds
    while True:
        try:
            return get_node(*args, **options)
        except RuntimeError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)

def start_with_port(command, process_type, *args, **options):
    if process_type == "raylet":
        option = "dashboard_agent_listen_port"
        command = [*command, f"--{option}={port}", f"--undefok={option}"]
    return start_ray_process(command, process_type, *args, **options)

services.get_node, services.start_ray_process = wait_for_node, start_with_port
from ray.scripts.scripts import main
main()
"""
PATIENT = {
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
    "RAY_gcs_server_port_wait_time_s": "300",
}


def ray_start(python: str, *arguments: str, ports: Sequence[int]) -> list[str]:
    """Return a command that runs `ray start --block` with these arguments, and four ports for the node's agents."""
    names = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
    given = [f"--{name}-port={port}" for name, port in zip(names, ports, strict=True)]
    return [python, "-c", RAY_START, f"{patience(120):g}", str(ports[0]), "start", "--block", *given, *arguments]


@dataclass
class Running:
    """A running cluster.

    Attributes:
        port: The cluster's own port.
        client_port: The port of Ray Client's server.
        dashboard_port: The dashboard's port.
        temp: The directory that the cluster writes to.
        variables: Environment variables that a process needs to access the cluster.
        nodes: The `ray start` processes of its nodes, each the leader of a process group.
    """

    port: int
    client_port: int
    dashboard_port: int
    temp: Path
    variables: dict[str, str]
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def client(self) -> str:
        return f"ray://127.0.0.1:{self.client_port}"

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"


@contextlib.contextmanager
def ray_cluster(
    *nodes: dict[str, Any], python: str = sys.executable, variables: dict[str, str] | None = None
) -> Iterator[Running]:
    """Run a cluster.

    Args:
        *nodes: Options of `ray start` without their dashes for each node, such as `{"num-cpus": 2}`; the head first.
        python: The Python that it runs with; Ray must be installed in the same environment.
        variables: Environment variables; by default authentication is disabled.
    """
    variables = {"RAY_AUTH_MODE": "disabled"} if variables is None else variables
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as temp:
        head, *others = nodes or ({"num-cpus": 2},)
        running = _started_head(python, head, Path(temp), variables)
        try:
            for options in others:
                _start(running, python, {"address": running.address} | options)
            yield running
        finally:
            for node in reversed(running.nodes):
                _stop(node)


def _started_head(python: str, options: dict[str, Any], temp: Path, variables: dict[str, str]) -> Running:
    """Start a head; if it fails, retry once on other ports, as another process may have bound one in the meantime."""
    for attempt in (1, 2):
        running = Running(*(free_port() for _ in range(3)), temp, variables)
        head = {
            "head": None,
            "port": running.port,
            "ray-client-server-port": running.client_port,
            "dashboard-port": running.dashboard_port,
            "temp-dir": f"{temp}/r{attempt}",
        }
        try:
            _start(running, python, head | options)
        except AssertionError:
            for node in running.nodes:
                _stop(node)
            if attempt == 2:
                raise
        else:
            break
    return running


def _start(running: Running, python: str, options: dict[str, Any]) -> None:
    """Start a node and wait until it has started."""
    options = {"disable-usage-stats": None} | options
    arguments = [f"--{name}" if value is None else f"--{name}={value}" for name, value in options.items()]
    log = running.temp / f"node-{len(running.nodes)}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ray_start(python, *arguments, ports=[free_port() for _ in range(4)]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=running.temp,
            env=outer_environment(TMPDIR=str(running.temp), **PATIENT, **running.variables),
            start_new_session=True,
        )
    running.nodes.append(process)
    deadline = time.monotonic() + _START_SECONDS
    while not re.search("Ray runtime started", log.read_text(errors="replace")):
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.1)


def _stop(node: subprocess.Popen[bytes]) -> None:
    """Stop a node: first `ray start`, which stops the others, then the rest of its process group."""
    node.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        node.wait(timeout=patience(10))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(node.pid, signal.SIGKILL)
    node.wait()


# Calls of actions by an executor in a separate process, whose environment has the credentials for the cluster.
_ATTEMPT = """
import json, sys, time, warnings
from synapse_runtime.errors import PluginError
from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor
from synapse_runtime.loggers import NullLogger

request = json.loads(sys.argv[1])
report, started = {}, time.monotonic()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    executor_class = {"task": RayActorExecutor, "job": RayJobsApiExecutor}[request["mode"]]
    executor = executor_class(ray_address=request["address"], logger=NullLogger(), **request["options"])
    for action, params in request["calls"]:
        try:
            report["result"] = executor.execute(action, params)
        except PluginError as error:
            report["error"] = f"{type(error).__name__}: {error}"
    report["seconds"] = time.monotonic() - started
    executor.close()
report["warnings"] = [f"{warning.category.__name__}: {warning.message}" for warning in caught]
print(json.dumps(report))
"""


@dataclass
class Attempt:
    """The outcome of calls.

    Attributes:
        result: The last result.
        error: The last error.
        seconds: How long the calls took.
        warnings: All warnings.
    """

    result: Any = None
    error: str = ""
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)


def attempt(
    mode: str,
    address: str,
    *calls: tuple[str, dict[str, Any]],
    variables: dict[str, str] | None = None,
    python: str = sys.executable,
    **options: Any,
) -> Attempt:
    """Call actions of the tests' plugin on a cluster, in a separate process.

    Args:
        mode: `task` or `job`.
        address: The cluster's address.
        *calls: Actions and their params. The executor makes all of them.
        variables: Additional environment variables of the process.
        python: The Python to run.
        **options: Options of the executor.
    """
    command = _attempt_command(mode, address, calls, python, options)
    done = run_python(command[1:], python=python, **(variables or {}))
    assert done.returncode == 0, done.stdout + done.stderr
    return Attempt(**json.loads(done.stdout.splitlines()[-1]))


def run_python(
    arguments: Sequence[str], *, python: str = sys.executable, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a Python program that uses Ray, with these environment variables, independently of this test run.

    It is a fork, in a tenth of the time of a new process, unless it needs another Python or variables that libraries
    read when they are imported.
    """
    env = outer_environment(PYTHONPATH=str(ROOT), **variables)
    if python == sys.executable and not any(name.startswith(_READ_AT_IMPORT) for name in variables):
        return fork_server(env, ray=True).run(arguments, cwd=os.getcwd(), env=env, timeout=patience(120))
    return subprocess.run(
        [python, *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience(120),
    )


@contextlib.contextmanager
def holding(running: Running, *, seconds: float = 60.0, **options: Any) -> Iterator[Callable[[], None]]:
    """Hold resources of a cluster in a worker.

    Args:
        running: The cluster.
        seconds: How long to hold them, unless the block ends before.
        **options: Options of the executor.

    Yields:
        A function that releases them.
    """
    mark = running.temp / f"held-{free_port()}"
    sleep = ("sleep", {"seconds": seconds, "touch": str(mark)})
    with subprocess.Popen(
        _attempt_command("task", running.address, [sleep], sys.executable, options),
        env=outer_environment(PYTHONPATH=str(ROOT), **running.variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as holder:
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not mark.exists():
                assert holder.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield holder.kill
        finally:
            holder.kill()


def _attempt_command(
    mode: str, address: str, calls: Sequence[Any], python: str, options: Mapping[str, Any]
) -> list[str]:
    request = {
        "mode": mode,
        "address": address,
        "calls": calls or [("echo", {"value": 1})],
        "options": {"plugin": str(Path(__file__).parent / "worker_plugin"), **options},
    }
    return [python, "-c", _ATTEMPT, json.dumps(request)]


def outer_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without variables of this test run or of a cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
    return kept | {"RAY_USAGE_STATS_ENABLED": "0"} | more


def free_port() -> int:
    """Return a port that is currently free."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])

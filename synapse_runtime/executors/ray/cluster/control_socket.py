"""The control socket of a managed cluster, a Unix socket in the cluster's directory that only its user can access.

The cluster daemon (`daemon.py`) listens on it. Each client of the cluster connects and keeps its connection open, so
that the daemon knows its clients and notices when one ends, even if it is killed. The token is also sent over this
socket, so that no file and no command line contains it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from synapse_runtime.core.changed_variables import inherited_environment
from synapse_runtime.core.withheld_variables import withhold
from synapse_runtime.errors import ClusterError

if TYPE_CHECKING:
    import psutil

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines

SOCKET_NAME = "control.sock"
LOG = "cluster.log"
# Ray's own directory, below the cluster's: Ray makes its directory accessible to everyone.
RAY_DIRECTORY = "r"
# Makes the daemon and all Ray processes bind to the loopback address only.
LOOPBACK_ENV = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# On a busy machine Ray's processes need longer than Ray allows by default, and then end each other.
_PATIENT_ENV = {
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
    "RAY_gcs_server_port_wait_time_s": "300",
}
# What Ray would derive a runtime environment from: `uv run` among the ancestors of a driver, whose working directory it
# would then upload; a function of the user; and the job that this process belongs to, if it is a job's.
NO_UV_ENV = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
RUNTIME_ENV_HOOK = "RAY_RUNTIME_ENV_HOOK"
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# An agent's server for metrics would answer anybody, without a token.
_NO_METRICS_ENV = {"RAY_enable_metrics_collection": "0"}
# How long a cluster may take to start on an idle machine, and at most on a busy one.
_START_SECONDS = 90.0
_MAX_START_SECONDS = 450.0
# Variables of the current test, while workers serve many tests; and those that make every Python process write its own
# coverage data, while workers return theirs with each run.
_NOT_FOR_WORKERS = ("PYTEST_", "COV_CORE_", "COVERAGE_PROCESS_", "RAY_ADDRESS", RUNTIME_ENV_HOOK, JOB_CONFIG)
# The names that `session_scope.new_directory` creates.
_NAME = re.compile(r"synapse-[0-9a-f]{8}")
_RESPONSE_SECONDS = 5.0
_SHUTDOWN_SECONDS = 15.0
# How long its last processes may take to exit after the daemon.
_EXIT_SECONDS = 3.0


@dataclass(frozen=True)
class ClusterOptions:
    """Options of a managed cluster.

    Attributes:
        jobs: Whether to offer the Jobs API, which adds 1.5 s to the start.
        num_cpus: Number of CPUs; None for those of this machine.
        num_gpus: Number of GPUs, which need not be real; None for those of this machine.
        memory: Memory in bytes; None for what Ray detects.
        parent_pid: Process that the cluster ends with; None for a warm cluster.
        idle_seconds: Seconds after which a warm cluster without clients shuts down; None for never.
        state: State file in which a warm cluster is registered.
    """

    jobs: bool = True
    num_cpus: int | None = None
    num_gpus: int | None = None
    memory: int | None = None
    parent_pid: int | None = None
    idle_seconds: float | None = None
    state: str | None = None


class ControlClosed(Exception):
    """No daemon listens on the control socket: the cluster has ended, or was never started."""


class ControlClient:
    """A connection to a cluster daemon. While it is open, the cluster is in use.

    Args:
        directory: The cluster's directory.

    Raises:
        ControlClosed: No daemon listens on the socket.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()  # a response belongs to the request before it
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(directory / SOCKET_NAME))
        except OSError as error:
            self._socket.close()
            raise ControlClosed(f"{directory}: {error.strerror or error}") from error
        self._buffer = b""

    def request(self, name: str, *, timeout: float = _RESPONSE_SECONDS, **arguments: Any) -> dict[str, Any]:
        """Send a request to the daemon and return its response.

        Args:
            name: `cluster`, `dashboard`, `status`, `persist` or `shutdown`.
            timeout: Seconds to wait for the response.
            **arguments: Arguments of the request.

        Raises:
            ControlClosed: The daemon has ended.
            TimeoutError: It does not respond in time.
        """
        deadline = time.monotonic() + timeout
        if not self._lock.acquire(timeout=timeout):
            raise TimeoutError
        try:
            return self._request({"request": name} | arguments, deadline)
        except BaseException as error:
            self.close()  # the response to this request may still come
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                raise ControlClosed(f"{self._directory}: {error.strerror or error}") from error
            raise
        finally:
            self._lock.release()

    def _request(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while b"\n" not in self._buffer:
            self._receive(deadline)
        line, _, self._buffer = self._buffer.partition(b"\n")
        response: dict[str, Any] = json.loads(line)
        return response

    def wait_until_closed(self, timeout: float) -> bool:
        """Wait until the daemon has ended; return whether it ended in time."""
        deadline = time.monotonic() + timeout
        try:
            while True:
                self._receive(deadline)
        except TimeoutError:
            return False
        except (OSError, ControlClosed):
            return True

    def _receive(self, deadline: float) -> None:
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        received = self._socket.recv(65536)
        if not received:
            raise ControlClosed(f"{self._directory}: the cluster daemon has ended")
        self._buffer += received

    def is_open(self) -> bool:
        """Return whether the daemon is still running. Cheap enough to call often."""
        if self._socket.fileno() < 0:
            return False
        watch = select.poll()
        watch.register(self._socket, select.POLLRDHUP if hasattr(select, "POLLRDHUP") else select.POLLIN)
        return not watch.poll(0)

    def close(self) -> None:
        """Disconnect, so that the daemon no longer counts this client."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_seconds() -> float:
    """Return how long a cluster may take to start on this machine, given its load."""
    return min(_START_SECONDS * max(_load() / (os.cpu_count() or 1), 1.0), _MAX_START_SECONDS)


def describe_load() -> str:
    """Return the load and the available memory of this machine, as text."""
    import psutil

    memory = psutil.virtual_memory()
    available = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB of memory available"
    return f"load average {_load():.1f} on {os.cpu_count()} CPUs, {available}"


def _load() -> float:
    try:
        return os.getloadavg()[0]
    except OSError:
        return 0.0


@contextlib.contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Create the directory if needed and lock it for the block, so that two processes do not start two clusters.

    Raises:
        ClusterError: The directory belongs to another user, or other users can access it.
    """
    while True:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # removed in the meantime
            continue
        except OSError as error:
            raise ClusterError(f"cannot use {directory} as a cluster's directory: {error.strerror}") from error
        try:
            found = os.fstat(descriptor)
            if found.st_uid != os.getuid() or found.st_mode & 0o077:
                raise ClusterError(
                    f"{directory} must belong to this user and be inaccessible to others: delete it, or run "
                    "`chmod 700` on it if it is yours"
                )
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_same_directory(found, directory):
                continue
            yield
            return
        finally:
            os.close(descriptor)


def start_daemon(directory: Path, options: ClusterOptions, token: str) -> None:
    """Start a cluster daemon in an existing directory, without waiting for the cluster.

    Args:
        directory: The cluster's directory.
        options: Options of the cluster.
        token: Token that the cluster requires from all clients.
    """
    path = directory / SOCKET_NAME
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, (directory / LOG).open("wb") as log:
        listener.bind(str(path))
        listener.listen(128)
        process = subprocess.Popen(
            [sys.executable, "-m", "synapse_runtime.executors.ray.cluster.daemon", json.dumps(asdict(options))],
            stdin=listener.fileno(),
            stdout=log,
            stderr=log,
            cwd=directory,
            env=_environment(token, directory),
            start_new_session=True,
        )
    _children.append(process)


def stop_cluster(directory: Path) -> None:
    """Shut down the cluster of a directory, if it has one, and delete the directory."""
    if not directory.exists():
        _reap_children(0)
        return
    ended = False
    with contextlib.suppress(ControlClosed, TimeoutError), ControlClient(directory) as control:
        control.request("shutdown")
        ended = control.wait_until_closed(_SHUTDOWN_SECONDS)
    if ended:  # children of the dashboard exit only after it
        _wait_for_processes(directory)
    kill_processes(directory)  # if the daemon was killed or hangs, or some do not exit
    remove_directory(directory)
    _reap_children()


def abandoned_directories(root: Path) -> list[Path]:
    """Return directories of clusters whose daemon ended without deleting them, such as by `kill -9`.

    Args:
        root: The parent directory of the clusters' directories.
    """
    named = filter(lambda path: _NAME.fullmatch(path.name), sorted(root.glob("synapse-*")))
    return [directory for directory in named if _is_abandoned(directory)]


def _is_abandoned(directory: Path) -> bool:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # not a directory, another user's, or removed in the meantime
        return False
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ControlClient(directory).close()
    except OSError:  # another process is starting a cluster there, or the state is unknown
        return False
    except ControlClosed:
        return directory.exists()
    finally:
        os.close(descriptor)
    return False


def remove_directory(directory: Path) -> None:
    """Delete a directory that remaining processes of a cluster may still write to."""
    deadline = time.monotonic() + _SHUTDOWN_SECONDS
    while directory.exists() and time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)
        if directory.exists():
            time.sleep(0.05)


def log_tail(directory: Path, count: int = 12) -> str:
    """Return the last lines of a cluster daemon's log, each indented on a line of its own."""
    with contextlib.suppress(OSError):
        lines = (directory / LOG).read_text(errors="replace").splitlines()[-count:]
        return "\n  " + "\n  ".join(lines) if lines else ""
    return ""


def kill_processes(directory: Path) -> None:
    """Kill the remaining processes of a directory's cluster, except this process."""
    import psutil

    for process in processes_of(directory):
        with contextlib.suppress(psutil.Error):  # it has ended
            process.kill()


def _wait_for_processes(directory: Path) -> None:
    """Wait until the remaining processes of a directory's cluster have exited, a few seconds at most."""
    import psutil

    deadline = time.monotonic() + _EXIT_SECONDS
    while (remaining := list(processes_of(directory))) and time.monotonic() < deadline:
        psutil.wait_procs(remaining, timeout=max(deadline - time.monotonic(), 0))


def processes_of(directory: Path) -> Iterator[psutil.Process]:
    """Yield the processes of a directory's cluster, except this process.

    They are identified by the directory: it is their working directory, or, for processes that run jobs, TMPDIR in
    their environment, which other Ray processes overwrite with their titles. A process with a terminal is skipped: it
    is a user's shell in that directory.
    """
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended, or belongs to another user
            if process.pid == os.getpid():
                continue
            works_there = Path(process.cwd()).is_relative_to(directory)
            if process.terminal() is None and (works_there or process.environ().get("TMPDIR") == str(directory)):
                yield process


# Daemons that this process has started, reaped so that they do not remain as zombies.
_children: list[subprocess.Popen[bytes]] = []


def _reap_children(seconds: float = 1) -> None:
    for process in list(_children):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=seconds)
            _children.remove(process)


def _is_same_directory(found: os.stat_result, path: Path) -> bool:
    try:
        return os.path.samestat(found, path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _environment(token: str, directory: Path) -> Mapping[str, str]:
    kept = {name: value for name, value in inherited_environment().items() if not name.startswith(_NOT_FOR_WORKERS)}
    kept.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "PYTHONPATH" in kept:  # workers have other working directories
        paths = kept["PYTHONPATH"].split(os.pathsep)
        kept["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths if path)
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    required = {"TMPDIR": str(directory)} | access | LOOPBACK_ENV | NO_UV_ENV
    return _PATIENT_ENV | _NO_METRICS_ENV | withhold(kept) | required

"""The cluster daemon: starts a managed cluster, and shuts it down with its parent process or, if warm, once it is idle.

Started by `control_socket.start_daemon` in the cluster's directory, with the options as JSON on its command line, the
token in its environment and the listening control socket as its standard input. Each connection to the socket is a
client of the cluster; a request is one line of JSON, and so is its response. The daemon also ends if one of Ray's own
processes ends, so that clients notice immediately that the cluster is broken.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import socketserver
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from synapse_runtime.executors.ray.cluster.control_socket import (
    RAY_DIRECTORY,
    ClusterOptions,
    kill_processes,
    remove_directory,
)
from synapse_runtime.executors.ray.cluster.head_node import HeadNode, is_zombie, required_process_exited

_CHECK_SECONDS = 0.25
# How long Ray may take to shut down before all its processes are killed.
_SHUTDOWN_SECONDS = 5.0
# How long waiting clients have to read the error if the cluster does not start.
_FAILURE_NOTICE_SECONDS = 2.0


def main() -> None:
    """Run a cluster until it is no longer needed, then delete its files."""
    daemon = ClusterDaemon(Path.cwd(), ClusterOptions(**json.loads(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, daemon.stop)
    try:
        daemon.run(socket.socket(fileno=0))
    finally:
        daemon.clean_up()


class ClusterDaemon:
    """Runs one cluster and serves its control socket.

    Args:
        directory: The cluster's directory.
        options: Options of the cluster.
    """

    def __init__(self, directory: Path, options: ClusterOptions) -> None:
        self._directory = directory
        self._identity = directory.stat()
        self._options = options
        self._parent = None if options.parent_pid is None else _process(options.parent_pid)
        self._has_parent = options.parent_pid is not None
        self._idle_seconds = options.idle_seconds
        self._state = None if options.state is None else Path(options.state)
        self._clients: dict[int, psutil.Process | None] = {}  # by the file descriptors of their connections
        self._used_at = self._started_at = time.time()
        self._facts: dict[str, Any] = {}
        self._head = HeadNode(directory, options)
        self._is_ready = threading.Event()  # for drivers
        self._is_complete = threading.Event()  # including the dashboard
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    def run(self, listener: socket.socket) -> None:
        """Start the cluster and wait until it has to shut down."""
        self._startup_monitor = StartupMonitor(self._kill_everything, listener)
        server = ControlServer(listener, self)
        threading.Thread(target=server.serve_forever, name="synapse-control-socket", daemon=True).start()
        threading.Thread(target=self._watch, name="synapse-watch", daemon=True).start()
        try:
            self._start()
        except Exception as error:
            self._report_failure(error)
            raise
        try:
            threading.Thread(target=self._complete, name="synapse-complete", daemon=True).start()
            if not self._has_parent:
                self._write_state()
            self._stopping.wait()
        finally:
            import ray

            ray.shutdown()
            # Ray may not have registered all processes that it started, and children of the dashboard exit only after
            # this process. They would write files again.
            self._kill_everything()

    def handle(self, connection: int, request: dict[str, Any]) -> dict[str, Any]:
        """Return the response to a client's request."""
        name = request["request"]
        if name == "cluster":
            self._is_ready.wait()
            return self._facts
        if name == "dashboard":
            self._is_complete.wait()
            return self._facts
        if name == "status":
            return self._status(exclude=connection)
        if name == "persist":
            self._is_complete.wait()
            self._idle_seconds, self._state = request["idle_seconds"], Path(request["state"])
            self._write_state()
            self._has_parent, self._parent = False, None
            return {"persisted": True}
        assert name == "shutdown", name
        self._stopping.set()
        return {"stopping": True}

    def add_client(self, connection: socket.socket) -> None:
        """Register a client."""
        with self._lock:
            self._clients[connection.fileno()] = _process(_peer_of(connection))

    def remove_client(self, descriptor: int) -> None:
        """Unregister a client."""
        with self._lock:
            if self._clients.pop(descriptor, None) is not None:
                self._used_at = time.time()

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """Shut the cluster down; the handler of SIGTERM."""
        self._stopping.set()

    def clean_up(self) -> None:
        """Delete the cluster's directory, and its state file if it has one."""
        if self._state is not None:
            with contextlib.suppress(OSError, ValueError):
                if json.loads(self._state.read_text(encoding="utf-8"))["pid"] == os.getpid():
                    self._state.unlink()
        remove_directory(self._directory)

    def _start(self) -> None:
        resources = self._head.start(self._accept_drivers)
        signal.signal(signal.SIGTERM, self.stop)  # Ray has replaced it by its own handler
        self._facts = self._facts | {"resources": resources}

    def _accept_drivers(self, address: str) -> None:
        """Mark the cluster as ready for drivers."""
        self._facts = {"address": address, "jobs": self._options.jobs, "token": os.environ["RAY_AUTH_TOKEN"]}
        self._startup_monitor.start()
        self._is_ready.set()

    def _complete(self) -> None:
        """Wait for the dashboard. The cluster can be used before."""
        try:
            self._facts = self._facts | {"dashboard": self._head.dashboard()}
            self._startup_monitor.stop()
            self._is_complete.set()
        except Exception as error:  # noqa: BLE001 - reported to waiting clients and in the log
            traceback.print_exc()
            self._report_failure(error)
            self._stopping.set()

    def _report_failure(self, error: Exception) -> None:
        """Report to waiting clients why the cluster did not start, and give them time to read it."""
        self._startup_monitor.stop()
        self._facts = {"failed": f"{type(error).__name__}: {error}"}
        self._is_ready.set()
        self._is_complete.set()
        time.sleep(_FAILURE_NOTICE_SECONDS)

    def _watch(self) -> None:
        """Shut the cluster down when it is no longer needed, even while it is starting or if Ray hangs."""
        try:
            while not self._should_stop():
                time.sleep(_CHECK_SECONDS)
        except Exception:  # noqa: BLE001 - without this thread, the cluster would run forever
            traceback.print_exc()
            print("the cluster shuts down because it cannot be watched", file=sys.stderr, flush=True)
        if self._is_ready.is_set():
            self._stopping.set()
            time.sleep(_SHUTDOWN_SECONDS)
        self._kill_everything()

    def _should_stop(self) -> bool:
        if self._is_complete.is_set() and _child_exited():
            self._kill_everything()  # Ray would wait a long time for the lost process
        if self._stopping.is_set() or not self._directory_exists():
            return True
        with self._lock:
            for descriptor, process in list(self._clients.items()):
                if not _is_alive(process):  # a forked child of it may hold the connection open
                    del self._clients[descriptor]
                    self._used_at = time.time()
        if self._has_parent:
            return not _is_alive(self._parent)
        if self._clients or not self._is_complete.is_set() or self._idle_seconds is None:
            return False
        if time.time() - self._used_at < self._idle_seconds:
            return False
        if self._runs_jobs():
            self._used_at = time.time()
            return False
        return True

    def _runs_jobs(self) -> bool:
        """Return whether the cluster is used by anything else than clients: a detached job, or a plain Ray driver."""
        if not self._options.jobs:
            return False
        import ray
        from ray.util.state import list_jobs

        own = ray.get_runtime_context().get_job_id()
        try:
            jobs = list_jobs(address=self._facts["dashboard"], limit=1000, raise_on_missing_output=False)
        except Exception as error:  # noqa: BLE001 - assume that jobs run, and check again later
            print(f"cannot list the cluster's jobs: {error}", flush=True)
            return True
        return any(job.status in ("PENDING", "RUNNING") and job.job_id != own for job in jobs)

    def _kill_everything(self) -> None:
        # A worker that is just starting is in its own process group, and tries to reach its cluster for a minute.
        kill_processes(self._directory)
        self.clean_up()
        os.killpg(0, signal.SIGKILL)

    def _directory_exists(self) -> bool:
        try:
            return os.path.samestat(self._directory.stat(), self._identity)
        except OSError:
            return False

    def _status(self, exclude: int) -> dict[str, Any]:
        import importlib.metadata

        with self._lock:
            clients = self._clients.items()
            users = sorted({client.pid for at, client in clients if client is not None and at != exclude})
        known = {name: value for name, value in self._facts.items() if name not in ("token", "jobs")}
        return known | {
            "pid": os.getpid(),
            "began": self._started_at,
            "ready": self._is_complete.is_set(),
            "users": users,
            "idle": 0.0 if users else time.time() - self._used_at,
            "idle_seconds": self._idle_seconds,
            "python": sys.executable,
            "ray": importlib.metadata.version("ray"),
            "logs": str(self._directory / RAY_DIRECTORY / "session_latest" / "logs"),
        }

    def _write_state(self) -> None:
        """Register the warm cluster in its state file, which only this user can access."""
        assert self._state is not None
        state = {"pid": os.getpid(), "directory": str(self._directory)}
        draft = self._state.with_name(f"{self._state.name}.{os.getpid()}")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(state, file)
        draft.replace(self._state)


class ControlServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Accepts connections to the control socket, each in its own thread."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, daemon: ClusterDaemon) -> None:
        super().__init__(listener.getsockname(), ControlHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.daemon = daemon


class ControlHandler(socketserver.StreamRequestHandler):
    """Answers the requests of one client."""

    server: ControlServer

    def handle(self) -> None:
        """Answer requests until the client disconnects."""
        daemon, descriptor = self.server.daemon, self.connection.fileno()
        daemon.add_client(self.connection)
        try:
            with contextlib.suppress(OSError):
                for line in self.rfile:
                    response = daemon.handle(descriptor, json.loads(line))
                    self.wfile.write(json.dumps(response).encode() + b"\n")
        finally:
            daemon.remove_client(descriptor)


def _peer_of(connection: socket.socket) -> int:
    """Return the pid of the process at the other end."""
    if sys.platform == "darwin":
        local, peer_pid = 0, 2  # SOL_LOCAL, LOCAL_PEERPID
        return int(connection.getsockopt(local, peer_pid))
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _is_alive(process: psutil.Process | None) -> bool:
    try:
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _child_exited() -> bool:
    """Return whether one of the cluster's own processes has ended: the others then respond late or never."""
    if hasattr(os, "waitid"):
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return any(map(is_zombie, psutil.Process().children()))  # macOS before Python 3.13


class StartupMonitor:
    """Kills a starting cluster if a Ray process ends that drivers, which may already connect, depend on.

    It runs in a child process: while Ray connects the daemon to the cluster it holds the GIL, and without the lost
    process it waits for a minute.

    Args:
        kill: Kills the cluster.
        listener: The control socket, which the child process closes.
    """

    def __init__(self, kill: Callable[[], object], listener: socket.socket) -> None:
        read, self._write = os.pipe()
        daemon = os.getpid()
        self._pid: int | None = os.fork()
        if self._pid == 0:
            try:
                listener.close()
                os.close(self._write)
                if os.read(read, 1):
                    self._run(daemon, kill)
            except BaseException:  # noqa: BLE001 - for the cluster's log
                traceback.print_exc()
            finally:
                os._exit(0)  # never return into the caller's code: its cleanup is the daemon's job
        os.close(read)

    @staticmethod
    def _run(daemon: int, kill: Callable[[], object]) -> None:
        while os.getppid() == daemon:
            if required_process_exited(daemon):
                kill()
            time.sleep(_CHECK_SECONDS)

    def start(self) -> None:
        """Start monitoring."""
        os.write(self._write, b"!")

    def stop(self) -> None:
        """Stop monitoring and end the child process."""
        pid, self._pid = self._pid, None
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(self._write)


if __name__ == "__main__":
    main()

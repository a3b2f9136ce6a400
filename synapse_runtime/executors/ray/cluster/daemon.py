"""The process that owns a cluster of ours, and ends it: with its holder, or, kept warm, when nobody uses it any more.

Started by `door.start` in the cluster's own directory, with the options as JSON on its command line, the token in its
environment and the door, a listening socket, as its standard input. Each connection there is a user of the cluster; one
line of JSON asks, one answers. It also ends when one of Ray's own processes does, so that its users notice at once that
the cluster is broken.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
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

from synapse_runtime.executors.ray.cluster.control_socket import RAY_DIRECTORY, ClusterOptions, kill_processes
from synapse_runtime.executors.ray.cluster.head_node import HeadNode

_CHECK_SECONDS = 0.25
# Names of the processes that a driver needs.
_REQUIRED_PROCESSES = ("gcs_server", "raylet")
# How long Ray has to end by itself, before all its processes are killed.
_SHUTDOWN_SECONDS = 5.0
# How long those who wait for a cluster have to read why it did not start.
_FAILURE_NOTICE_SECONDS = 2.0


def main() -> None:
    """Start the cluster, answer at its door, wait for the end of its use, leave nothing behind."""
    owner = ClusterDaemon(Path.cwd(), ClusterOptions(**json.loads(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, owner.stop)
    try:
        owner.run(socket.socket(fileno=0))
    finally:
        owner.clean_up()


class ClusterDaemon:
    """Owns one cluster.

    Args:
        directory: The cluster's directory.
        options: What the cluster is to be.
    """

    def __init__(self, directory: Path, options: ClusterOptions) -> None:
        self._directory = directory
        self._identity = directory.stat()
        self._options = options
        self._holder = None if options.holder is None else _process(options.holder)
        self._has_holder = options.holder is not None
        self._idle_seconds = options.idle_seconds
        self._state = None if options.state is None else Path(options.state)
        self._users: dict[int, psutil.Process | None] = {}  # by the descriptors of their connections
        self._used_at = self._began_at = time.time()
        self._facts: dict[str, Any] = {}
        self._head = HeadNode(directory, options)
        self._is_ready = threading.Event()  # for drivers
        self._is_complete = threading.Event()
        self._ending = threading.Event()
        self._lock = threading.Lock()

    def run(self, listener: socket.socket) -> None:
        """Start the cluster and stay until it has to end."""
        self._guard = StartupMonitor(self._kill_everything, listener)
        door = ControlServer(listener, self)
        threading.Thread(target=door.serve_forever, name="door", daemon=True).start()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        try:
            self._start()
        except Exception as error:
            self._report_failure(error)
            raise
        try:
            threading.Thread(target=self._complete, name="complete", daemon=True).start()
            if not self._has_holder:
                self._write_state()
            self._ending.wait()
        finally:
            import ray

            ray.shutdown()
            if not self._is_complete.is_set():  # Ray does not know yet of all that was started
                self._kill_everything()

    def handle(self, connection: int, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer what a user asks."""
        question = asked["question"]
        if question == "cluster":
            self._is_ready.wait()
            return self._facts
        if question == "dashboard":
            self._is_complete.wait()
            return self._facts
        if question == "status":
            return self._status(but=connection)
        if question == "keep":
            self._is_complete.wait()
            self._idle_seconds, self._state = asked["idle_seconds"], Path(asked["state"])
            self._write_state()
            self._has_holder, self._holder = False, None
            return {"kept": True}
        assert question == "end", question
        self._ending.set()
        return {"ending": True}

    def add_client(self, connection: socket.socket) -> None:
        """Take note of a user."""
        with self._lock:
            self._users[connection.fileno()] = _process(_peer_of(connection))

    def remove_client(self, descriptor: int) -> None:
        """Take note that a user has left."""
        with self._lock:
            if self._users.pop(descriptor, None) is not None:
                self._used_at = time.time()

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """End the cluster, as the handler of SIGTERM."""
        self._ending.set()

    def clean_up(self) -> None:
        """Delete the cluster's directory, and its state file if it has one."""
        if self._state is not None:
            with contextlib.suppress(OSError, ValueError):
                if json.loads(self._state.read_text(encoding="utf-8"))["pid"] == os.getpid():
                    self._state.unlink()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self) -> None:
        resources = self._head.start(self._accept_drivers)
        signal.signal(signal.SIGTERM, self.stop)  # Ray has put a handler of its own there
        self._facts = self._facts | {"resources": resources}

    def _accept_drivers(self, address: str) -> None:
        """Let drivers in."""
        self._facts = {"address": address, "jobs": self._options.jobs, "token": os.environ["RAY_AUTH_TOKEN"]}
        self._guard.start()
        self._is_ready.set()

    def _complete(self) -> None:
        """Wait for the dashboard, without which the cluster can be used already."""
        try:
            self._facts = self._facts | {"dashboard": self._head.dashboard()}
            self._guard.stop()
            self._is_complete.set()
        except Exception as error:  # noqa: BLE001 - told to those who wait, and by the log
            traceback.print_exc()
            self._report_failure(error)
            self._ending.set()

    def _report_failure(self, error: Exception) -> None:
        """Tell those who wait why there will be no cluster, and let them hear it."""
        self._guard.stop()
        self._facts = {"failed": f"{type(error).__name__}: {error}"}
        self._is_ready.set()
        self._is_complete.set()
        time.sleep(_FAILURE_NOTICE_SECONDS)

    def _watch(self) -> None:
        """See to it that the cluster ends in time: also while it is still starting, and where Ray is stuck."""
        while not self._should_stop():
            time.sleep(_CHECK_SECONDS)
        if self._is_ready.is_set():
            self._ending.set()
            time.sleep(_SHUTDOWN_SECONDS)
        self._kill_everything()

    def _should_stop(self) -> bool:
        if self._is_complete.is_set() and _child_exited():
            self._kill_everything()  # Ray would wait for the lost part for long
        if self._ending.is_set() or not self._directory_exists():
            return True
        with self._lock:
            for descriptor, process in list(self._users.items()):
                if not _is_alive(process):  # a fork of it may hold the connection open
                    del self._users[descriptor]
                    self._used_at = time.time()
        if self._has_holder:
            return not _is_alive(self._holder)
        if self._users or not self._is_complete.is_set() or self._idle_seconds is None:
            return False
        if time.time() - self._used_at < self._idle_seconds:
            return False
        if self._runs_jobs():
            self._used_at = time.time()
            return False
        return True

    def _runs_jobs(self) -> bool:
        """Tell whether somebody who did not come by the door uses the cluster: a detached job, a plain Ray driver."""
        if not self._options.jobs:
            return False
        import ray
        from ray.util.state import list_jobs

        own = ray.get_runtime_context().get_job_id()
        try:
            jobs = list_jobs(address=self._facts["dashboard"], limit=1000, raise_on_missing_output=False)
        except Exception as error:  # noqa: BLE001 - who cannot be asked may be busy: asked again later
            print(f"the cluster does not tell its jobs: {error}", flush=True)
            return True
        return any(job.status in ("PENDING", "RUNNING") and job.job_id != own for job in jobs)

    def _kill_everything(self) -> None:
        # A worker that is just starting is in a group of its own, and looks for its cluster for a minute.
        kill_processes(self._directory)
        self.clean_up()
        os.killpg(0, signal.SIGKILL)

    def _directory_exists(self) -> bool:
        try:
            return os.path.samestat(self._directory.stat(), self._identity)
        except OSError:
            return False

    def _status(self, but: int) -> dict[str, Any]:
        import importlib.metadata

        with self._lock:
            users = sorted({user.pid for at, user in self._users.items() if user is not None and at != but})
        known = {name: value for name, value in self._facts.items() if name not in ("token", "jobs")}
        return known | {
            "pid": os.getpid(),
            "began": self._began_at,
            "ready": self._is_complete.is_set(),
            "users": users,
            "idle": 0.0 if users else time.time() - self._used_at,
            "idle_seconds": self._idle_seconds,
            "python": sys.executable,
            "ray": importlib.metadata.version("ray"),
            "logs": str(self._directory / RAY_DIRECTORY / "session_latest" / "logs"),
        }

    def _write_state(self) -> None:
        """Say that the cluster is there, to its owner's user alone."""
        assert self._state is not None
        state = {"pid": os.getpid(), "directory": str(self._directory)}
        draft = self._state.with_name(f"{self._state.name}.{os.getpid()}")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(state, file)
        draft.replace(self._state)


class ControlServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Accepts connections to the control socket, each in a thread of its own."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, owner: ClusterDaemon) -> None:
        super().__init__(listener.getsockname(), ControlHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.owner = owner


class ControlHandler(socketserver.StreamRequestHandler):
    """Answers the requests of one client."""

    server: ControlServer

    def handle(self) -> None:
        """Answer requests until the client disconnects."""
        owner, descriptor = self.server.owner, self.connection.fileno()
        owner.add_client(self.connection)
        try:
            with contextlib.suppress(OSError):
                for line in self.rfile:
                    answer = owner.handle(descriptor, json.loads(line))
                    self.wfile.write(json.dumps(answer).encode() + b"\n")
        finally:
            owner.remove_client(descriptor)


def _peer_of(connection: socket.socket) -> int:
    """Return the process at the other end."""
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
    """Tell whether one of the cluster's own processes is gone: what is left of it answers late or never."""
    return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


class StartupMonitor:
    """Ends a cluster whose drivers are let in already, where a part that they need ends while the rest is starting.

    In a process of its own: while Ray connects this one to the cluster it keeps Python's lock, and without that part
    it waits for a minute.

    Args:
        end_at_once: Ends it.
        listener: The door's, which is not this process's business.
    """

    def __init__(self, end_at_once: Callable[[], object], listener: socket.socket) -> None:
        read, self._write = os.pipe()
        owner = os.getpid()
        self._pid: int | None = os.fork()
        if self._pid == 0:
            try:
                listener.close()
                os.close(self._write)
                if os.read(read, 1):
                    self._run(owner, end_at_once)
            except BaseException:  # noqa: BLE001 - for the cluster's log
                traceback.print_exc()
            finally:
                os._exit(0)  # not back to where it came from: what is done there at the end is the owner's to do
        os.close(read)

    @staticmethod
    def _run(owner: int, end_at_once: Callable[[], object]) -> None:
        while os.getppid() == owner:
            if _required_process_exited(owner):
                end_at_once()
            time.sleep(_CHECK_SECONDS)

    def start(self) -> None:
        """Look after the parts from now on."""
        os.write(self._write, b"!")

    def stop(self) -> None:
        """Look after nothing any more."""
        pid, self._pid = self._pid, None
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(self._write)


def _required_process_exited(owner: int) -> bool:
    """Tell whether a process is gone that drivers need; its owner, busy with the start, has not buried it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(owner).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.status() == psutil.STATUS_ZOMBIE and child.name() in _REQUIRED_PROCESSES:
                    return True
    return False


if __name__ == "__main__":
    main()

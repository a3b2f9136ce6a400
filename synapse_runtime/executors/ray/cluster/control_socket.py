"""The way to a cluster of ours: a socket that only its owner's user can reach, in the cluster's own directory.

Behind it is the process that owns the cluster, `cluster_main`. Whoever uses the cluster comes in here and keeps the
connection open; so the owner knows its users, and learns of the end of each, however that comes. The token, too, comes
this way: it stands in no file and in no command line.
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
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from synapse_runtime.core.tempdirs import CALLERS_TMPDIR
from synapse_runtime.errors import ClusterError

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help

SOCKET_NAME = "door"
LOG = "cluster.log"
# Ray's own directory, below ours: Ray opens its to everyone.
RAY_DIRECTORY = "r"
# By this the owner and all of Ray's processes take the loopback address, and no other.
LOOPBACK_ENV = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Variables that speak of the test that runs now, not of the workers that will run many; and those by which each Python
# process measures coverage into files of its own: workers bring theirs home.
_NOT_FOR_WORKERS = ("PYTEST_", "COV_CORE_", "COVERAGE_PROCESS_", "RAY_ADDRESS")
# What `site.new_directory` names.
_NAME = re.compile(r"synapse-[0-9a-f]{8}")
_ANSWER_SECONDS = 5.0
_END_SECONDS = 15.0


@dataclass(frozen=True)
class ClusterOptions:
    """What a cluster of ours is to be.

    Attributes:
        jobs: Whether it offers the Jobs API, which takes it 1.5 s longer to start.
        num_cpus: CPUs that it gives; None for those of this machine.
        num_gpus: GPUs that it gives, real or not; None for those of this machine.
        memory: Bytes of memory that it gives; None for what Ray finds.
        holder: Process that it ends with; None if it is kept warm from the start.
        idle_seconds: How long it stays, kept warm, while nobody uses it; None for ever.
        state: File in which a cluster that is kept warm says that it is there.
    """

    jobs: bool = True
    num_cpus: int | None = None
    num_gpus: int | None = None
    memory: int | None = None
    holder: int | None = None
    idle_seconds: float | None = None
    state: str | None = None


class ControlClosed(Exception):
    """Nobody answers at the door: the cluster has ended, or never began."""


class ControlClient:
    """A connection to the owner of a cluster. While it is open, the cluster has a user.

    Args:
        directory: The cluster's directory.

    Raises:
        ControlClosed: Nobody answers.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(directory / SOCKET_NAME))
        except OSError as error:
            self._socket.close()
            raise ControlClosed(f"{directory}: {error.strerror or error}") from error
        self._buffer = b""

    def request(self, question: str, *, timeout: float = _ANSWER_SECONDS, **details: Any) -> dict[str, Any]:
        """Ask the owner something and return its answer.

        Args:
            question: `cluster`, `dashboard`, `status`, `keep` or `end`.
            timeout: Seconds to wait for the answer.
            **details: What goes with the question.

        Raises:
            ControlClosed: The owner has ended.
            TimeoutError: It does not answer in time.
        """
        deadline = time.monotonic() + timeout
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(json.dumps({"question": question} | details).encode() + b"\n")
            while b"\n" not in self._buffer:
                self._receive(deadline)
        except TimeoutError:
            raise
        except OSError as error:
            raise ControlClosed(f"{self._directory}: {error.strerror or error}") from error
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def wait_until_closed(self, timeout: float) -> bool:
        """Wait until the owner has ended; return whether it has, in time."""
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
        heard = self._socket.recv(65536)
        if not heard:
            raise ControlClosed(f"{self._directory}: the owner has ended")
        self._buffer += heard

    def is_open(self) -> bool:
        """Tell whether the owner is still there. Costs nearly nothing."""
        if self._socket.fileno() < 0:
            return False
        watch = select.poll()
        watch.register(self._socket, select.POLLRDHUP if hasattr(select, "POLLRDHUP") else select.POLLIN)
        return not watch.poll(0)

    def close(self) -> None:
        """Leave; the cluster has a user less."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Make the directory where need be, and be the only one in here for the block: two would start two clusters.

    Raises:
        ClusterError: Somebody else's directory is there, or one that others may enter.
    """
    while True:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # removed meanwhile
            continue
        except OSError as error:
            raise ClusterError(f"{directory} is in the way of a cluster's directory: {error.strerror}") from error
        try:
            found = os.fstat(descriptor)
            if found.st_uid != os.getuid() or found.st_mode & 0o077:
                raise ClusterError(f"{directory} is not this user's alone: delete it, or `chmod 700` it if it is yours")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_same_directory(found, directory):
                continue
            yield
            return
        finally:
            os.close(descriptor)


def start_daemon(directory: Path, options: ClusterOptions, token: str) -> None:
    """Start the owner of a cluster in a directory, which exists, and do not wait for the cluster.

    Args:
        directory: The cluster's directory.
        options: What the cluster is to be.
        token: What it demands of everyone who comes.
    """
    door = directory / SOCKET_NAME
    door.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, (directory / LOG).open("wb") as log:
        listener.bind(str(door))
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
    """End the cluster of a directory, if one is there, and delete the directory."""
    if not directory.exists():
        _reap_children(0)
        return
    ended = False
    with contextlib.suppress(ControlClosed, TimeoutError), ControlClient(directory) as door:
        door.request("end")
        ended = door.wait_until_closed(_END_SECONDS)
    if not ended:  # the owner is gone without a word, or stuck
        kill_processes(directory)
    remove_directory(directory)
    _reap_children()


def abandoned_directories(root: Path) -> list[Path]:
    """Return the directories below this one of clusters whose owner ended without deleting them, as by `kill -9`.

    Args:
        root: The directory that clusters' directories are in.
    """
    named = filter(lambda path: _NAME.fullmatch(path.name), sorted(root.glob("synapse-*")))
    return [directory for directory in named if _is_abandoned(directory)]


def _is_abandoned(directory: Path) -> bool:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # not a directory, somebody else's, or removed meanwhile
        return False
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ControlClient(directory).close()
    except OSError:  # somebody starts a cluster there, or nobody can tell
        return False
    except ControlClosed:
        return directory.exists()
    finally:
        os.close(descriptor)
    return False


def remove_directory(directory: Path) -> None:
    """Delete a directory that a cluster's last processes may still write to."""
    deadline = time.monotonic() + _END_SECONDS
    while directory.exists() and time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)
        if directory.exists():
            time.sleep(0.05)


def log_tail(directory: Path, count: int = 12) -> str:
    """Return the last lines of what the owner of a cluster has said, indented, each on a line of its own."""
    with contextlib.suppress(OSError):
        lines = (directory / LOG).read_text(errors="replace").splitlines()[-count:]
        return "\n  " + "\n  ".join(lines) if lines else ""
    return ""


def kill_processes(directory: Path) -> None:
    """Kill what is left of the cluster of a directory, but this process: its processes are known by it.

    They have it as their working directory, or, those that run jobs, in their environment, where others write their
    titles. One with a terminal is somebody who looks around there.
    """
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended, or is somebody else's
            if process.pid == os.getpid():
                continue
            works_there = Path(process.cwd()).is_relative_to(directory)
            if process.terminal() is None and (works_there or process.environ().get("TMPDIR") == str(directory)):
                process.kill()


# Owners that this process has started: so that no zombie of theirs stays.
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
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_WORKERS)}
    kept.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "PYTHONPATH" in kept:  # the workers have other working directories
        paths = kept["PYTHONPATH"].split(os.pathsep)
        kept["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths if path)
    # Ray's own processes leave temporary files when they are killed; workers get the caller's directory back.
    kept[CALLERS_TMPDIR] = kept.get("TMPDIR", "")
    kept["TMPDIR"] = str(directory)
    return kept | LOOPBACK_ENV | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}

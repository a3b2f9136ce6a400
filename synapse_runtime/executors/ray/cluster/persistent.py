"""The warm cluster: started by `synapse cluster up` or kept by a run, and used by all runs until it is idle for long.

It is registered in a state file that only its user can access. There is at most one warm cluster per Python environment
and machine, because workers run in the environment that started the cluster.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from synapse_runtime.errors import ClusterError, ClusterWarning
from synapse_runtime.executors.ray.cluster.control_socket import (
    ClusterOptions,
    ControlClient,
    ControlClosed,
    directory_lock,
    start_daemon,
    stop_cluster,
)
from synapse_runtime.executors.ray.cluster.driver import Cluster
from synapse_runtime.executors.ray.cluster.ephemeral import ephemeral
from synapse_runtime.executors.ray.cluster.handle import ManagedCluster
from synapse_runtime.executors.ray.cluster.session_scope import ClusterSpec, new_directory

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines
IDLE_SECONDS = 30 * 60.0


def state_file() -> Path:
    """Return the path of the state file of the warm cluster, which need not exist."""
    root = os.environ.get("XDG_STATE_HOME")
    base = Path(root) if root and os.path.isabs(root) else Path.home() / ".local" / "state"
    environment = hashlib.sha256(os.path.realpath(sys.prefix).encode()).hexdigest()[:8]
    return base / "synapse-clusters" / f"{socket.gethostname()}-{environment}.json"


def status() -> dict[str, Any] | None:
    """Return the status of the warm cluster, or None if there is none.

    If the cluster has ended without cleaning up, its state file and directory are deleted.

    Returns:
        `pid` of the daemon, `address`, `dashboard`, `resources` by Ray's names, `users` (pids), `began` (seconds since
        the epoch), `idle` and `idle_seconds` (seconds; None for no limit), `python`, `ray` (version), `logs` (path).

    Raises:
        ClusterError: The state file cannot be read, belongs to another user, or others can access it.
    """
    directory = _directory()
    if directory is None:
        return None
    try:
        with ControlClient(directory) as control:
            return control.request("status") | {"directory": str(directory)}
    except TimeoutError:
        return None  # the daemon hangs; `down` kills it
    except ControlClosed:
        _delete_state(directory)
        return None


def status_or_problem() -> tuple[dict[str, Any] | None, str | None]:
    """Return the status of the warm cluster, and why it is unknown; a run can go on without one."""
    try:
        return status(), None
    except ClusterError as error:
        return None, str(error)


def up(options: ClusterOptions) -> tuple[dict[str, Any], bool]:
    """Start the warm cluster if there is none, and wait until it is ready.

    Args:
        options: Options of the cluster.

    Returns:
        Its status, and whether this call started it.

    Raises:
        ClusterError: It did not start.
    """
    with _state_file_lock() as state:
        running = status()
        if running is not None:
            return running, False
        directory = Path(new_directory())
        try:
            with directory_lock(directory):
                start_daemon(directory, replace(options, state=str(state)), secrets.token_hex(32))
            cluster = ManagedCluster(directory, "warm")
            cluster.wait_until_ready()
            cluster.dashboard()
            facts = cluster.status()
            cluster.close()
            return facts, True
        except BaseException:  # including Ctrl-C
            stop_cluster(directory)
            raise


def down() -> bool:
    """Shut down the warm cluster and wait until it has ended. Returns whether there was one.

    Raises:
        ClusterError: As for `status`.
    """
    directory = _directory()
    if directory is None:
        return False
    try:
        ControlClient(directory).close()
        is_running = True
    except ControlClosed:
        is_running = False
    _delete_state(directory)
    return is_running


def persist(idle_seconds: float | None = IDLE_SECONDS) -> bool:
    """Turn this run's cluster into the warm cluster, unless there is one already. Returns whether it is kept.

    Raises:
        ClusterError: The state file cannot be used.
    """
    with _state_file_lock() as state:
        return status() is None and ephemeral.persist(state, idle_seconds)


def require_state_file() -> None:
    """Raise `ClusterError` if no cluster can be registered in the state file."""
    with _state_file_lock() as state:
        _directory()
        if not os.access(state.parent, os.W_OK):
            raise _unusable(state.parent, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def unmet_requirement(
    facts: dict[str, Any], *, num_cpus: int | None = None, num_gpus: int | None = None, memory: int | None = None
) -> str | None:
    """Return which requirement a warm cluster does not meet, as text; None if it meets all.

    Args:
        facts: Its status.
        num_cpus: Required number of CPUs.
        num_gpus: Required number of GPUs.
        memory: Required memory in bytes.
    """
    import importlib.metadata

    if facts["ray"] != importlib.metadata.version("ray"):
        return f"it runs Ray {facts['ray']}, this process Ray {importlib.metadata.version('ray')}"
    for name, unit, requested in (
        ("CPU", "CPUs", num_cpus),
        ("GPU", "GPUs", num_gpus),
        ("memory", "bytes of memory", memory),
    ):
        found = facts.get("resources", {}).get(name, 0)
        if requested is not None and found < requested:
            return f"it has {found:,.0f} {name if found == 1 else unit}, {requested:,} requested"
    return None


def unmet_requirement_of_run(spec: ClusterSpec, facts: dict[str, Any]) -> str | None:
    """Return which requirement of a run a warm cluster does not meet, as text; None if it meets all."""
    return unmet_requirement(facts, num_cpus=spec.num_cpus, num_gpus=spec.num_gpus)


class PersistentCluster:
    """This process's connection to the warm cluster."""

    def __init__(self) -> None:
        self._has_warned = False
        self.reset()

    def reset(self) -> None:
        """Forget the connection: after a fork, it belongs to the parent process."""
        self._cluster: ManagedCluster | None = None
        self._lock = threading.Lock()

    def cluster(self, spec: ClusterSpec) -> Cluster | None:
        """Connect to the warm cluster and return it; None if there is none that meets the run's requirements.

        Warns:
            ClusterWarning: Whether there is one is unknown. Issued once per process.
        """
        with self._lock:
            if self._cluster is not None and self._cluster.is_alive:
                return self._cluster.wait_until_ready()
            self._release()
            facts, problem = status_or_problem()
            if problem is not None and not self._has_warned:
                self._has_warned = True
                warnings.warn(f"no warm cluster is used: {problem}", ClusterWarning, stacklevel=2)
            if facts is None or unmet_requirement_of_run(spec, facts) is not None:
                return None
            try:
                self._cluster = ManagedCluster(Path(facts["directory"]), "warm")
                return self._cluster.wait_until_ready()
            except (ControlClosed, ClusterError):  # it has just ended
                self._release()
                return None

    def release(self) -> None:
        """Disconnect from the warm cluster."""
        with self._lock:
            self._release()

    def _release(self) -> None:
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None


persistent = PersistentCluster()
os.register_at_fork(after_in_child=persistent.reset)


@contextlib.contextmanager
def _state_file_lock() -> Iterator[Path]:
    """Lock the state file, so that no other process of this user starts or keeps a warm cluster at the same time."""
    state = state_file()
    try:
        state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(state.parent, error) from error
    with directory_lock(state.parent):
        yield state


def _directory() -> Path | None:
    """Return the directory that the state file names; None if there is no state file.

    Raises:
        ClusterError: The state file cannot be read, belongs to another user, or others can access it.
    """
    state = state_file()
    try:
        found = os.stat(state, follow_symlinks=False)
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ClusterError(
                f"{state} must belong to this user and be inaccessible to others: delete it, unless it belongs to "
                "another user's cluster"
            )
        return Path(json.loads(state.read_text(encoding="utf-8"))["directory"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(state, error) from error
    except (ValueError, KeyError, TypeError):
        _delete_state_file()
        return None


def _unusable(path: Path, error: OSError) -> ClusterError:
    return ClusterError(
        f"{path}, the state of the warm cluster, cannot be used: {error.strerror}; make it accessible to this user, or "
        "set XDG_STATE_HOME to another directory"
    )


def _delete_state_file() -> None:
    with contextlib.suppress(OSError):  # its directory is read-only: the file remains, and counts as none again
        state_file().unlink()


def _delete_state(directory: Path) -> None:
    """Shut down the cluster of a directory, if it is running, and delete the directory and the state file."""
    with contextlib.suppress(OSError):
        if directory.stat().st_uid == os.getuid() and directory.name.startswith("synapse-"):
            stop_cluster(directory)
    _delete_state_file()

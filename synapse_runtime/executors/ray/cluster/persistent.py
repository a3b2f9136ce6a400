"""The warm cluster: started by `synapse cluster up`, or kept by a run; found by all runs until it is idle for long.

A state file of its owner's user alone says where it is. There is at most one for each Python environment on each
machine: workers run with the environment that started them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from synapse_runtime.errors import ClusterError
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

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help
IDLE_SECONDS = 30 * 60.0


def state_file() -> Path:
    """Return the file that tells of the warm cluster; there need not be one."""
    root = os.environ.get("XDG_STATE_HOME")
    base = Path(root) if root and os.path.isabs(root) else Path.home() / ".local" / "state"
    environment = hashlib.sha256(os.path.realpath(sys.prefix).encode()).hexdigest()[:8]
    return base / "synapse-clusters" / f"{socket.gethostname()}-{environment}.json"


def status() -> dict[str, Any] | None:
    """Return what the owner of the warm cluster tells, or None where there is none.

    A state file that tells of one that is gone is deleted, with what that left.

    Returns:
        `pid` of the owner, `address`, `dashboard`, `resources` by Ray's names, `users` (pids), `began` (seconds since
        the epoch), `idle` and `idle_seconds` (seconds; None for no limit), `python`, `ray` (version), `logs` (path).
    """
    directory = _directory()
    if directory is None:
        return None
    try:
        with ControlClient(directory) as door:
            return door.request("status") | {"directory": str(directory)}
    except TimeoutError:
        return None  # it is stuck: whoever ends it will see
    except ControlClosed:
        _delete_state(directory)
        return None


def up(options: ClusterOptions) -> tuple[dict[str, Any], bool]:
    """Start the warm cluster, if there is none, and wait until it is ready.

    Args:
        options: What it is to be.

    Returns:
        Its status, and whether it was started now.

    Raises:
        ClusterError: It did not start.
    """
    with _state_file_lock() as state:
        there = status()
        if there is not None:
            return there, False
        directory = Path(new_directory())
        try:
            with directory_lock(directory):
                start_daemon(directory, replace(options, state=str(state)), secrets.token_hex(32))
            own = ManagedCluster(directory, "warm")
            own.wait_until_ready()
            own.dashboard()
            facts = own.status()
            own.close()
            return facts, True
        except BaseException:  # Ctrl-C too
            stop_cluster(directory)
            raise


def down() -> bool:
    """End the warm cluster and wait until it is gone. Returns whether there was one."""
    directory = _directory()
    if directory is None:
        return False
    try:
        ControlClient(directory).close()
        there = True
    except ControlClosed:
        there = False
    _delete_state(directory)
    return there


def persist(idle_seconds: float | None = IDLE_SECONDS) -> bool:
    """Keep the cluster of this run warm, if it has one and no other is warm already. Returns whether it is kept."""
    with _state_file_lock() as state:
        return status() is None and ephemeral.persist(state, idle_seconds)


def unfit(
    facts: dict[str, Any], *, num_cpus: int | None = None, num_gpus: int | None = None, memory: int | None = None
) -> str | None:
    """Return why a warm cluster will not do; None where it does.

    Args:
        facts: Its status.
        num_cpus: CPUs that it must have.
        num_gpus: GPUs that it must have.
        memory: Bytes of memory that it must have.
    """
    import importlib.metadata

    if facts["ray"] != importlib.metadata.version("ray"):
        return f"it runs Ray {facts['ray']}, here is {importlib.metadata.version('ray')}"
    for name, wanted in (("CPU", num_cpus), ("GPU", num_gpus), ("memory", memory)):
        found = facts.get("resources", {}).get(name, 0)
        if wanted is not None and found < wanted:
            return f"it has {name} {found:,.0f}, wanted are {wanted:,}"
    return None


def unfit_for(site: ClusterSpec, facts: dict[str, Any]) -> str | None:
    """Return why a warm cluster will not do for a run; None where it does."""
    return unfit(facts, num_cpus=site.num_cpus, num_gpus=site.num_gpus)


class PersistentCluster:
    """This process's use of the warm cluster."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Know of no use: in a fork of ours it is the parent's, not this process's."""
        self._own: ManagedCluster | None = None
        self._lock = threading.Lock()

    def cluster(self, site: ClusterSpec) -> Cluster | None:
        """Return the warm cluster, and use it from now on; None where there is none that will do for the run."""
        with self._lock:
            if self._own is not None and self._own.is_alive:
                return self._own.wait_until_ready()
            self._release()
            facts = status()
            if facts is None or unfit_for(site, facts) is not None:
                return None
            try:
                self._own = ManagedCluster(Path(facts["directory"]), "warm")
                return self._own.wait_until_ready()
            except (ControlClosed, ClusterError):  # it has ended in this moment
                self._release()
                return None

    def release(self) -> None:
        """Use it no longer."""
        with self._lock:
            self._release()

    def _release(self) -> None:
        if self._own is not None:
            self._own.close()
            self._own = None


persistent = PersistentCluster()
os.register_at_fork(after_in_child=persistent.reset)


@contextlib.contextmanager
def _state_file_lock() -> Iterator[Path]:
    """Let no other process of this user start or keep a warm cluster meanwhile."""
    state = state_file()
    state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with directory_lock(state.parent):
        yield state


def _directory() -> Path | None:
    """Return the directory that the state file names."""
    state = state_file()
    try:
        found = os.stat(state, follow_symlinks=False)
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ClusterError(f"{state} is not this user's alone: delete it, if nobody else's cluster is meant")
        return Path(json.loads(state.read_text(encoding="utf-8"))["directory"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        state.unlink(missing_ok=True)
        return None


def _delete_state(directory: Path) -> None:
    """End what is in the directory of a warm cluster, if anything is, and delete directory and state file."""
    with contextlib.suppress(OSError):
        if directory.stat().st_uid == os.getuid() and directory.name.startswith("synapse-"):
            stop_cluster(directory)
    state_file().unlink(missing_ok=True)

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
from synapse_runtime.executors.ray.connection import Cluster
from synapse_runtime.executors.ray.door import Door, DoorClosed, Options, alone_in, reap, start
from synapse_runtime.executors.ray.ephemeral import ephemeral
from synapse_runtime.executors.ray.owned import OwnCluster
from synapse_runtime.site import Site, new_directory

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
        with Door(directory) as door:
            return door.ask("status") | {"directory": str(directory)}
    except TimeoutError:
        return None  # it is stuck: whoever ends it will see
    except DoorClosed:
        _forget(directory)
        return None


def up(options: Options) -> tuple[dict[str, Any], bool]:
    """Start the warm cluster, if there is none, and wait until it is ready.

    Args:
        options: What it is to be.

    Returns:
        Its status, and whether it was started now.

    Raises:
        ClusterError: It did not start.
    """
    with _alone_with_state_file() as state:
        there = status()
        if there is not None:
            return there, False
        directory = Path(new_directory())
        try:
            with alone_in(directory):
                start(directory, replace(options, state=str(state)), secrets.token_hex(32))
            own = OwnCluster(directory, "warm")
            own.ready()
            own.dashboard()
            facts = own.status()
            own.leave()
            return facts, True
        except BaseException:  # Ctrl-C too
            reap(directory)
            raise


def down() -> bool:
    """End the warm cluster and wait until it is gone. Returns whether there was one."""
    directory = _directory()
    if directory is None:
        return False
    try:
        Door(directory).close()
        there = True
    except DoorClosed:
        there = False
    _forget(directory)
    return there


def keep(idle_seconds: float | None = IDLE_SECONDS) -> bool:
    """Keep the cluster of this run warm, if it has one and no other is warm already. Returns whether it is kept."""
    with _alone_with_state_file() as state:
        return status() is None and ephemeral.keep(state, idle_seconds)


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


def unfit_for(site: Site, facts: dict[str, Any]) -> str | None:
    """Return why a warm cluster will not do for a run; None where it does."""
    return unfit(facts, num_cpus=site.num_cpus, num_gpus=site.num_gpus)


class Warm:
    """This process's use of the warm cluster."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Know of no use: in a fork of ours it is the parent's, not this process's."""
        self._own: OwnCluster | None = None
        self._lock = threading.Lock()

    def cluster(self, site: Site) -> Cluster | None:
        """Return the warm cluster, and use it from now on; None where there is none that will do for the run."""
        with self._lock:
            if self._own is not None and self._own.is_there:
                return self._own.ready()
            self._leave()
            facts = status()
            if facts is None or unfit_for(site, facts) is not None:
                return None
            try:
                self._own = OwnCluster(Path(facts["directory"]), "warm")
                return self._own.ready()
            except (DoorClosed, ClusterError):  # it has ended in this moment
                self._leave()
                return None

    def leave(self) -> None:
        """Use it no longer."""
        with self._lock:
            self._leave()

    def _leave(self) -> None:
        if self._own is not None:
            self._own.leave()
            self._own = None


warm = Warm()
os.register_at_fork(after_in_child=warm.forget)


@contextlib.contextmanager
def _alone_with_state_file() -> Iterator[Path]:
    """Let no other process of this user start or keep a warm cluster meanwhile."""
    state = state_file()
    state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with alone_in(state.parent):
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


def _forget(directory: Path) -> None:
    """End what is in the directory of a warm cluster, if anything is, and delete directory and state file."""
    with contextlib.suppress(OSError):
        if directory.stat().st_uid == os.getuid() and directory.name.startswith("synapse-"):
            reap(directory)
    state_file().unlink(missing_ok=True)

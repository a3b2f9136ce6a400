"""Specification of a run's cluster, fixed before it starts.

Only the standard library is imported here, because pytest imports this module in every session.

A run is one process, or pytest-xdist's controller and its workers, which receive the controller's `ClusterSpec`.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

# Ray's socket paths are up to 64 characters longer than its directory, whose path is 19 longer than this root; the path
# of a Unix socket has at most 107. The control socket's path is 30 longer than the root.
MAX_ROOT_LENGTH = 24


def new_directory() -> str:
    """Return an unpredictable path for a cluster's directory, without creating it."""
    root = tempfile.gettempdir()
    if len(root) > MAX_ROOT_LENGTH and os.path.isdir("/tmp"):
        root = "/tmp"
    return os.path.join(root, f"synapse-{os.urandom(4).hex()}")


@dataclass(frozen=True)
class ClusterSpec:
    """Location and resources of a run's cluster.

    Attributes:
        directory: The cluster's directory, created once the cluster is needed.
        parent_pid: Process that the cluster ends with.
        token: Token that the cluster requires. The same for all clusters of a run, one after another.
        num_cpus: Number of CPUs; None for those of this machine.
        num_gpus: Number of GPUs, which need not be real; None for those of this machine.
        keep: Whether the cluster outlives the run.
    """

    directory: str = field(default_factory=new_directory)
    parent_pid: int = field(default_factory=os.getpid)
    token: str = field(default_factory=lambda: os.urandom(32).hex(), repr=False)
    num_cpus: int | None = None
    num_gpus: int | None = None
    keep: bool = False

    @property
    def path(self) -> Path:
        """The directory, as a path."""
        return Path(self.directory)


class _CurrentSpec:
    """The `ClusterSpec` of the run that this process belongs to."""

    def __init__(self) -> None:
        self._spec: ClusterSpec | None = None

    @property
    def is_set(self) -> bool:
        """Whether this process belongs to a run."""
        return self._spec is not None

    def get(self) -> ClusterSpec:
        """Return the spec; start a new run if there is none."""
        if self._spec is None:
            self._spec = ClusterSpec()
        return self._spec

    def set(self, spec: ClusterSpec) -> None:
        """Join the run with this spec."""
        self._spec = spec

    def clear(self) -> None:
        """Leave the run; the next `get` starts a new one."""
        self._spec = None


current_spec = _CurrentSpec()
os.register_at_fork(after_in_child=current_spec.clear)  # a forked child is a run of its own

"""Where the one cluster of a run is to be, once it is needed. Standard library only: pytest asks this in every session.

A run is one process, or pytest-xdist's controller and its workers, which are told the controller's site.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

# Ray puts sockets 64 characters below its directory, which is 19 below this; a socket's path has room for 107.
LONGEST_ROOT = 24


def new_directory() -> str:
    """Return a path for a cluster's directory, which nobody can guess. Nothing is made there."""
    root = tempfile.gettempdir()
    if len(root) > LONGEST_ROOT and os.path.isdir("/tmp"):
        root = "/tmp"
    return os.path.join(root, f"synapse-{os.urandom(4).hex()}")


@dataclass(frozen=True)
class ClusterSpec:
    """Where a run's cluster is to be, and what it is to give.

    Attributes:
        directory: The cluster's directory; nothing is there before the cluster is needed.
        holder: The process that the cluster ends with.
        token: What the cluster demands of everyone who comes. One for all clusters of a run, one after another.
        num_cpus: CPUs that it gives; None for those of this machine.
        num_gpus: GPUs that it gives, real or not; None for those of this machine.
        keep: Whether it is to outlive the run.
    """

    directory: str = field(default_factory=new_directory)
    holder: int = field(default_factory=os.getpid)
    token: str = field(default_factory=lambda: os.urandom(32).hex(), repr=False)
    num_cpus: int | None = None
    num_gpus: int | None = None
    keep: bool = False

    @property
    def path(self) -> Path:
        """The directory, as a path."""
        return Path(self.directory)


class _CurrentSpec:
    """The site of the run that this process takes part in."""

    def __init__(self) -> None:
        self._site: ClusterSpec | None = None

    @property
    def is_set(self) -> bool:
        """Whether it is known."""
        return self._site is not None

    def get(self) -> ClusterSpec:
        """Return it; where none is settled this process begins a run."""
        if self._site is None:
            self._site = ClusterSpec()
        return self._site

    def set(self, site: ClusterSpec) -> None:
        """Take part in the run of this site."""
        self._site = site

    def clear(self) -> None:
        """End this process's part in the run; what comes next is another run."""
        self._site = None


current_spec = _CurrentSpec()
os.register_at_fork(after_in_child=current_spec.clear)  # a fork of ours is a run of its own

"""Clusters of ours that this process uses, by the door: an ephemeral one, or one that is kept warm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.ray.connection import Cluster, connected_address, disconnect
from synapse_runtime.executors.ray.door import Door, DoorClosed, last_lines

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help
_START_SECONDS = 90.0


class OwnCluster:
    """A cluster of ours that this process uses until it leaves.

    Args:
        directory: The cluster's directory.
        origin: Where it came from, for people: `ephemeral` or `warm`.

    Raises:
        DoorClosed: Its owner has ended.
    """

    def __init__(self, directory: Path, origin: str) -> None:
        self.directory = directory
        self._origin = origin
        self._door = Door(directory)
        self._cluster: Cluster | None = None
        self._takes_jobs = False
        self._dashboard: str | None = None

    @property
    def is_there(self) -> bool:
        """Whether the cluster has not ended. Costs nearly nothing."""
        return self._door.is_open()

    @property
    def address(self) -> str | None:
        """The cluster's own address, once it is ready."""
        return None if self._cluster is None else self._cluster.address

    def ready(self) -> Cluster:
        """Wait until the cluster is ready, and return it.

        Raises:
            ClusterError: It did not start.
        """
        if self._cluster is None:
            facts = self._facts("cluster")
            self._takes_jobs = facts["jobs"]
            self._cluster = Cluster(facts["address"], None, facts["token"], origin=self._origin, shares_disk=True)
            _used[self._cluster.address] = self
        return self._cluster

    @property
    def takes_jobs(self) -> bool:
        """Whether it has, or will have, a dashboard, where the Jobs API is. Known once the cluster is ready."""
        return self._takes_jobs

    def dashboard(self) -> str | None:
        """Wait until the dashboard answers too, which is later than the cluster, and return its URL; None without one.

        Raises:
            ClusterError: It did not start.
        """
        if self._dashboard is None and self._takes_jobs:
            self._dashboard = self._facts("dashboard")["dashboard"]
        return self._dashboard

    def status(self) -> dict[str, Any]:
        """Return what its owner tells of it, but for this use."""
        return self._door.ask("status") | {"directory": str(self.directory)}

    def leave(self) -> None:
        """Use it no longer."""
        if self.address is not None and connected_address() == self.address:
            disconnect()
        self._door.close()

    def _facts(self, question: str) -> dict[str, Any]:
        reason = "it ended"
        try:
            facts = self._door.ask(question, timeout=_START_SECONDS)
        except TimeoutError:
            reason = f"not ready within {_START_SECONDS:g} s"
        except DoorClosed:
            pass
        else:
            if "failed" not in facts:
                return facts
            reason = facts["failed"]
        raise ClusterError(f"the local Ray cluster did not start: {reason}{last_lines(self.directory)}")


# All that this process has used, by their addresses: a connection may outlive its cluster.
_used: dict[str, OwnCluster] = {}


def is_ours(address: str) -> bool:
    """Tell whether this address is, or was, that of a cluster of ours."""
    return address in _used


def dashboard_at(address: str) -> str | None:
    """Wait until the dashboard of a cluster of ours answers, and return its URL; None where it has none.

    Raises:
        ClusterError: It did not start.
    """
    return _used[address].dashboard()


def has_ended(address: str) -> bool:
    """Tell whether this address is that of a cluster of ours that has ended, or was left. Costs nearly nothing."""
    return address in _used and not _used[address].is_there

"""Clusters of ours that this process uses, by the door: an ephemeral one, or one that is kept warm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.ray.cluster.control_socket import ControlClient, ControlClosed, log_tail
from synapse_runtime.executors.ray.cluster.driver import Cluster, connected_address, disconnect

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help
_START_SECONDS = 90.0


class ManagedCluster:
    """A cluster of ours that this process uses until it leaves.

    Args:
        directory: The cluster's directory.
        origin: Where it came from, for people: `ephemeral` or `warm`.

    Raises:
        ControlClosed: Its owner has ended.
    """

    def __init__(self, directory: Path, origin: str) -> None:
        self.directory = directory
        self._origin = origin
        self._control = ControlClient(directory)
        self._cluster: Cluster | None = None
        self._has_jobs_api = False
        self._dashboard: str | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the cluster has not ended. Costs nearly nothing."""
        return self._control.is_open()

    @property
    def address(self) -> str | None:
        """The cluster's own address, once it is ready."""
        return None if self._cluster is None else self._cluster.address

    def wait_until_ready(self) -> Cluster:
        """Wait until the cluster is ready, and return it.

        Raises:
            ClusterError: It did not start.
        """
        if self._cluster is None:
            facts = self._request("cluster")
            self._has_jobs_api = facts["jobs"]
            self._cluster = Cluster(facts["address"], None, facts["token"], origin=self._origin, shares_disk=True)
            _used[self._cluster.address] = self
        return self._cluster

    @property
    def has_jobs_api(self) -> bool:
        """Whether it has, or will have, a dashboard, where the Jobs API is. Known once the cluster is ready."""
        return self._has_jobs_api

    def dashboard(self) -> str | None:
        """Wait until the dashboard answers too, which is later than the cluster, and return its URL; None without one.

        Raises:
            ClusterError: It did not start.
        """
        if self._dashboard is None and self._has_jobs_api:
            self._dashboard = self._request("dashboard")["dashboard"]
        return self._dashboard

    def status(self) -> dict[str, Any]:
        """Return what its owner tells of it, but for this use."""
        return self._control.request("status") | {"directory": str(self.directory)}

    def close(self) -> None:
        """Use it no longer."""
        if self.address is not None and connected_address() == self.address:
            disconnect()
        self._control.close()

    def _request(self, question: str) -> dict[str, Any]:
        reason = "it ended"
        try:
            facts = self._control.request(question, timeout=_START_SECONDS)
        except TimeoutError:
            reason = f"not ready within {_START_SECONDS:g} s"
        except ControlClosed:
            pass
        else:
            if "failed" not in facts:
                return facts
            reason = facts["failed"]
        raise ClusterError(f"the local Ray cluster did not start: {reason}{log_tail(self.directory)}")


# All that this process has used, by their addresses: a connection may outlive its cluster.
_used: dict[str, ManagedCluster] = {}


def is_managed(address: str) -> bool:
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
    return address in _used and not _used[address].is_alive

"""Handles of the managed clusters, ephemeral or warm, that this process uses through their control sockets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.ray.cluster.control_socket import (
    ControlClient,
    ControlClosed,
    describe_load,
    log_tail,
    start_seconds,
)
from synapse_runtime.executors.ray.cluster.driver import Cluster, connected_address, disconnect

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines


class ManagedCluster:
    """A cluster started by synapse, in use by this process until `close`.

    Args:
        directory: The cluster's directory.
        origin: How it was chosen, for display: `ephemeral` or `warm`.

    Raises:
        ControlClosed: The cluster's daemon has ended.
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
        """Whether the cluster is running. Cheap enough to call often."""
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
        """Whether it has, or will have, a dashboard, which serves the Jobs API. Known once the cluster is ready."""
        return self._has_jobs_api

    def dashboard(self) -> str | None:
        """Wait for the dashboard, which is ready later than the cluster, and return its URL; None if there is none.

        Raises:
            ClusterError: It did not start.
        """
        if self._dashboard is None and self._has_jobs_api:
            self._dashboard = self._request("dashboard")["dashboard"]
        return self._dashboard

    def status(self) -> dict[str, Any]:
        """Return the cluster's status as its daemon reports it, not counting this client."""
        return self._control.request("status") | {"directory": str(self.directory)}

    def close(self) -> None:
        """Disconnect from the cluster."""
        if self.address is not None and connected_address() == self.address:
            disconnect()
        self._control.close()

    def _request(self, name: str) -> dict[str, Any]:
        reason, seconds = "it ended", start_seconds()
        try:
            facts = self._control.request(name, timeout=seconds)
        except TimeoutError:
            reason = f"not ready within {seconds:.0f} s"
        except ControlClosed:
            pass
        else:
            if "failed" not in facts:
                return facts
            reason = facts["failed"]
        raise ClusterError(
            f"the local Ray cluster did not start: {reason} ({describe_load()}){log_tail(self.directory)}"
        )


# All managed clusters that this process has used, by address: a driver's connection may outlive its cluster.
_used: dict[str, ManagedCluster] = {}


def is_managed(address: str) -> bool:
    """Return whether this is, or was, the address of a cluster started by synapse."""
    return address in _used


def dashboard_at(address: str) -> str | None:
    """Wait for the dashboard of a managed cluster and return its URL; None if it has none.

    Raises:
        ClusterError: It did not start.
    """
    return _used[address].dashboard()


def has_ended(address: str) -> bool:
    """Return whether this address is that of a managed cluster that has ended or was closed. Cheap to call often."""
    return address in _used and not _used[address].is_alive

"""The ephemeral cluster of a run: started on first need, shared by the run's processes, gone when the run is.

The first process of the run that needs the cluster starts it, at the run's site (`site.py`); the others join. It ends
with the process that holds the site, however that ends.
"""

from __future__ import annotations

import atexit
import os
import threading
from pathlib import Path

from synapse_runtime.executors.ray.cluster.control_socket import (
    ClusterOptions,
    ControlClient,
    ControlClosed,
    directory_lock,
    start_daemon,
    stop_cluster,
)
from synapse_runtime.executors.ray.cluster.driver import Cluster
from synapse_runtime.executors.ray.cluster.handle import ManagedCluster
from synapse_runtime.executors.ray.cluster.session_scope import current_spec

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help


class EphemeralCluster:
    """This process's part in the ephemeral cluster of its run."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Know of no cluster: in a fork of ours it is the parent's, not this process's."""
        self._cluster: ManagedCluster | None = None
        self._lock = threading.RLock()

    def start(self, *, jobs: bool) -> None:
        """Start the cluster, if the run has none; do not wait until it is ready.

        Args:
            jobs: Whether the Jobs API is needed.
        """
        with self._lock:
            if self._cluster is not None and self._cluster.is_alive:
                return
            if self._cluster is not None:
                self._cluster.close()
            site = current_spec.get()
            atexit.register(self.release)
            with directory_lock(site.path):
                try:
                    self._cluster = ManagedCluster(site.path, "ephemeral")
                except ControlClosed:
                    # Where others may use it, it cannot be started anew for the Jobs API.
                    jobs = jobs or site.keep or not self._is_alone
                    options = ClusterOptions(
                        jobs=jobs, num_cpus=site.num_cpus, num_gpus=site.num_gpus, holder=site.holder
                    )
                    start_daemon(site.path, options, site.token)
                    self._cluster = ManagedCluster(site.path, "ephemeral")

    def acquire(self, *, jobs: bool) -> Cluster:
        """Return the cluster; start it, or start it anew with the Jobs API, where need be.

        Raises:
            ClusterError: It did not start.
        """
        with self._lock:
            self.start(jobs=jobs)
            assert self._cluster is not None
            cluster = self._ready(self._cluster)
            if jobs and not self._cluster.has_jobs_api:
                self.stop()
                self.start(jobs=True)
                cluster = self._ready(self._cluster)
            return cluster

    def owns(self, address: str) -> bool:
        """Tell whether this address is that of the run's cluster, and it is there."""
        return self._cluster is not None and self._cluster.is_alive and self._cluster.address == address

    def persist(self, state: Path, idle_seconds: float | None) -> bool:
        """Let the run's cluster outlive the run, if there is one; return whether it does.

        Args:
            state: The file that will tell of it.
            idle_seconds: How long it stays while nobody uses it; None for ever.
        """
        with self._lock:
            try:
                with ControlClient(current_spec.get().path) as door:
                    door.request("keep", state=str(state), idle_seconds=idle_seconds)
            except (ControlClosed, TimeoutError):
                return False
            if self._cluster is not None:
                self._cluster.close()
                self._cluster = None
            current_spec.clear()
            return True

    def release(self) -> None:
        """Use the cluster no longer; end it if this process holds it, and wait until it is gone."""
        self.stop()
        atexit.unregister(self.release)

    def stop(self) -> None:
        """Use the cluster no longer, as it does not answer or lacks something; end it, unless others use it too."""
        with self._lock:
            if self._cluster is not None:
                self._cluster.close()
                self._cluster = None
            if self._is_alone:
                stop_cluster(current_spec.get().path)

    @property
    def _is_alone(self) -> bool:
        """Whether the run is this process alone, as far as we know."""
        return current_spec.get().holder == os.getpid()

    def _ready(self, own: ManagedCluster) -> Cluster:
        try:
            return own.wait_until_ready()
        except BaseException:
            self.stop()
            raise


ephemeral = EphemeralCluster()
os.register_at_fork(after_in_child=ephemeral.reset)

"""The ephemeral cluster of a run: started when first needed, shared by the run's processes, torn down with the run.

The first process of the run that needs the cluster starts it as the run's spec says (`session_scope.py`); the others
connect to it. It shuts down when the spec's parent process ends, even if that is killed.
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

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines


class EphemeralCluster:
    """This process's connection to the ephemeral cluster of its run."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the cluster: after a fork, it belongs to the parent process."""
        self._cluster: ManagedCluster | None = None
        self._lock = threading.RLock()

    def start(self, *, jobs: bool) -> None:
        """Start the cluster if the run has none, without waiting until it is ready.

        Args:
            jobs: Whether the Jobs API is needed.
        """
        with self._lock:
            if self._cluster is not None and self._cluster.is_alive:
                return
            if self._cluster is not None:
                self._cluster.close()
            spec = current_spec.get()
            atexit.register(self.release)
            with directory_lock(spec.path):
                try:
                    self._cluster = ManagedCluster(spec.path, "ephemeral")
                except ControlClosed:
                    # If other processes may use it, it cannot be restarted later to add the Jobs API.
                    jobs = jobs or spec.keep or not self._is_alone
                    options = ClusterOptions(
                        jobs=jobs, num_cpus=spec.num_cpus, num_gpus=spec.num_gpus, parent_pid=spec.parent_pid
                    )
                    start_daemon(spec.path, options, spec.token)
                    self._cluster = ManagedCluster(spec.path, "ephemeral")

    def acquire(self, *, jobs: bool) -> Cluster:
        """Return the cluster; start it, or restart it with the Jobs API, if needed.

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
        """Return whether this is the address of the run's cluster, and that cluster is running."""
        return self._cluster is not None and self._cluster.is_alive and self._cluster.address == address

    def persist(self, state: Path, idle_seconds: float | None) -> bool:
        """Keep the run's cluster running after the run, if there is one; return whether it is kept.

        Args:
            state: The state file that registers it.
            idle_seconds: Seconds after which it shuts down if it has no clients; None for never.
        """
        with self._lock:
            try:
                with ControlClient(current_spec.get().path) as control:
                    control.request("persist", state=str(state), idle_seconds=idle_seconds)
            except (ControlClosed, TimeoutError):
                return False
            if self._cluster is not None:
                self._cluster.close()
                self._cluster = None
            current_spec.clear()
            return True

    def release(self) -> None:
        """Disconnect from the cluster; if this process is its parent, shut it down and wait until it has ended."""
        self.stop()
        atexit.unregister(self.release)

    def stop(self) -> None:
        """Disconnect from a cluster that does not respond or lacks something; shut it down unless others may use it."""
        with self._lock:
            if self._cluster is not None:
                self._cluster.close()
                self._cluster = None
            if self._is_alone:
                stop_cluster(current_spec.get().path)

    @property
    def _is_alone(self) -> bool:
        """Whether this process started the run, so that it may be the only one that uses the cluster."""
        return current_spec.get().parent_pid == os.getpid()

    def _ready(self, cluster: ManagedCluster) -> Cluster:
        try:
            return cluster.wait_until_ready()
        except BaseException:
            self.stop()
            raise


ephemeral = EphemeralCluster()
os.register_at_fork(after_in_child=ephemeral.reset)

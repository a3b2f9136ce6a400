"""The ephemeral cluster of a run: started when first needed, shared by the run's processes, torn down with the run.

The first process of the run that needs the cluster starts it as the run's spec says (`session_scope.py`); the others
connect to it. It shuts down when the spec's parent process ends, even if that is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from synapse_runtime.core.threads import POLL_SECONDS
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
from synapse_runtime.executors.ray.cluster.handle import ManagedCluster
from synapse_runtime.executors.ray.cluster.session_scope import current_spec

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines


@dataclass(eq=False)
class ClusterUse:
    """A call that uses the cluster.

    Attributes:
        thread_id: The thread that makes it.
        is_running: Whether it has been sent.
        waits_for_restart: Whether it waits for a restart of the cluster, and so does not use it now.
    """

    thread_id: int
    is_running: bool = False
    waits_for_restart: bool = False


class EphemeralCluster:
    """This process's connection to the ephemeral cluster of its run."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the cluster: after a fork, it belongs to the parent process."""
        self._cluster: ManagedCluster | None = None
        self._lock = threading.RLock()
        self._uses: list[ClusterUse] = []
        self._is_restarting = False
        self._uses_changed = threading.Condition()

    @contextlib.contextmanager
    def used_by_call(self) -> Iterator[ClusterUse]:
        """Keep other threads from restarting the cluster inside the block, in which a call may use it."""
        use = ClusterUse(threading.get_ident())
        with self._uses_changed:
            while self._is_restarting:
                self._uses_changed.wait(POLL_SECONDS)
            self._uses.append(use)
        try:
            yield use
        finally:
            with self._uses_changed:
                self._uses.remove(use)
                self._uses_changed.notify_all()

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
            cluster = self._ready(self._cluster, jobs=jobs)
            if not jobs or self._cluster.has_jobs_api:
                return cluster
        with self._restarting(), self._lock:
            if self._cluster is None or not self._cluster.has_jobs_api:  # another thread may have restarted it
                self.stop()
            self.start(jobs=True)
            assert self._cluster is not None
            return self._ready(self._cluster, jobs=True)

    @contextlib.contextmanager
    def _restarting(self) -> Iterator[None]:
        """Wait until no call of another thread uses the cluster, and let none begin inside the block."""
        thread = threading.get_ident()
        own = [use for use in self._uses if use.thread_id == thread]
        if any(use.is_running for use in own):
            raise ClusterError(
                "the run's cluster was started without the Jobs API and is used by the call that waits for this one; "
                "make a call in job mode first, or start a cluster with `synapse cluster up`"
            )
        with self._uses_changed:
            for use in own:
                use.waits_for_restart = True
            self._uses_changed.notify_all()
            while self._is_restarting or not all(use.waits_for_restart for use in self._uses):
                self._uses_changed.wait(POLL_SECONDS)
            self._is_restarting = True
        try:
            yield
        finally:
            with self._uses_changed:
                for use in own:
                    use.waits_for_restart = False
                self._is_restarting = False
                self._uses_changed.notify_all()

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

    def _ready(self, cluster: ManagedCluster, *, jobs: bool, tries: int = 2) -> Cluster:
        """Wait until the cluster is ready; if it does not start, try once more, as the machine may have been busy."""
        try:
            return cluster.wait_until_ready()
        except BaseException as error:
            self.stop()
            if tries == 1 or not isinstance(error, ClusterError):
                raise
        self.start(jobs=jobs)
        assert self._cluster is not None
        return self._ready(self._cluster, jobs=jobs, tries=tries - 1)


ephemeral = EphemeralCluster()
os.register_at_fork(after_in_child=ephemeral.reset)

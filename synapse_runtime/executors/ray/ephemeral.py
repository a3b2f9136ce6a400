"""The ephemeral cluster of a run: started on first need, shared by the run's processes, gone when the run is.

The first process of the run that needs the cluster starts it, at the run's site (`site.py`); the others join. It ends
with the process that holds the site, however that ends.
"""

from __future__ import annotations

import atexit
import os
import threading
from pathlib import Path

from synapse_runtime.executors.ray.connection import Cluster
from synapse_runtime.executors.ray.door import Door, DoorClosed, Options, alone_in, reap, start
from synapse_runtime.executors.ray.owned import OwnCluster
from synapse_runtime.site import of_this_process

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help


class Ephemeral:
    """This process's part in the ephemeral cluster of its run."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Know of no cluster: in a fork of ours it is the parent's, not this process's."""
        self._own: OwnCluster | None = None
        self._lock = threading.RLock()

    def begin(self, *, jobs: bool) -> None:
        """Start the cluster, if the run has none; do not wait until it is ready.

        Args:
            jobs: Whether the Jobs API is needed.
        """
        with self._lock:
            if self._own is not None and self._own.is_there:
                return
            if self._own is not None:
                self._own.leave()
            site = of_this_process.get()
            atexit.register(self.leave)
            with alone_in(site.path):
                try:
                    self._own = OwnCluster(site.path, "ephemeral")
                except DoorClosed:
                    # Where others may use it, it cannot be started anew for the Jobs API.
                    jobs = jobs or site.keep or not self._is_alone
                    options = Options(jobs=jobs, num_cpus=site.num_cpus, num_gpus=site.num_gpus, holder=site.holder)
                    start(site.path, options, site.token)
                    self._own = OwnCluster(site.path, "ephemeral")

    def ensure(self, *, jobs: bool) -> Cluster:
        """Return the cluster; start it, or start it anew with the Jobs API, where need be.

        Raises:
            ClusterError: It did not start.
        """
        with self._lock:
            self.begin(jobs=jobs)
            assert self._own is not None
            cluster = self._ready(self._own)
            if jobs and not self._own.takes_jobs:
                self.end()
                self.begin(jobs=True)
                cluster = self._ready(self._own)
            return cluster

    def owns(self, address: str) -> bool:
        """Tell whether this address is that of the run's cluster, and it is there."""
        return self._own is not None and self._own.is_there and self._own.address == address

    def keep(self, state: Path, idle_seconds: float | None) -> bool:
        """Let the run's cluster outlive the run, if there is one; return whether it does.

        Args:
            state: The file that will tell of it.
            idle_seconds: How long it stays while nobody uses it; None for ever.
        """
        with self._lock:
            try:
                with Door(of_this_process.get().path) as door:
                    door.ask("keep", state=str(state), idle_seconds=idle_seconds)
            except (DoorClosed, TimeoutError):
                return False
            if self._own is not None:
                self._own.leave()
                self._own = None
            of_this_process.forget()
            return True

    def leave(self) -> None:
        """Use the cluster no longer; end it if this process holds it, and wait until it is gone."""
        self.end()
        atexit.unregister(self.leave)

    def end(self) -> None:
        """Use the cluster no longer, as it does not answer or lacks something; end it, unless others use it too."""
        with self._lock:
            if self._own is not None:
                self._own.leave()
                self._own = None
            if self._is_alone:
                reap(of_this_process.get().path)

    @property
    def _is_alone(self) -> bool:
        """Whether the run is this process alone, as far as we know."""
        return of_this_process.get().holder == os.getpid()

    def _ready(self, own: OwnCluster) -> Cluster:
        try:
            return own.ready()
        except BaseException:
            self.end()
            raise


ephemeral = Ephemeral()
os.register_at_fork(after_in_child=ephemeral.forget)

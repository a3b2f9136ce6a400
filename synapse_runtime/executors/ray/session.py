"""State shared by the Ray executors of a test session: the cluster of the run, warm workers, jobs to close at the end.

Only the standard library is imported here, because pytest imports this module in every session, even without Ray.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from synapse_runtime.executors.ray.cluster.session_scope import ClusterSpec, current_spec

if TYPE_CHECKING:
    from synapse_runtime.executors.base import Executor
    from synapse_runtime.executors.ray.task import WarmWorker

# Options that apply only to a cluster that the run starts.
_CLUSTER_OPTIONS = ("num_cpus", "num_gpus", "keep_cluster")


class RaySession:
    """State shared by the Ray executors of one pytest process.

    Args:
        options: The session's options: `ray_address`, `num_cpus`, `num_gpus`, `keep_cluster`, `debug_sdk`.
        shared: What `share` returned in the process that started this one; None in a process that starts a run.

    Raises:
        ValueError: Options contradict each other.
    """

    def __init__(self, options: Mapping[str, Any], shared: Mapping[str, Any] | None = None) -> None:
        self._address: str | None = options["ray_address"]
        self._debug_sdk: bool = options["debug_sdk"]
        self._is_distributed = shared is not None  # one of several processes that use the run's cluster
        self._workers: dict[tuple[Any, ...], WarmWorker] = {}
        self._held: dict[tuple[Any, ...], set[str]] = {}  # the kinds of resources of these workers
        self._cleanup = contextlib.ExitStack()
        self._needs_jobs = False
        self._check(options)
        # A session inside another session belongs to the run of the outer one.
        self._started_run = not current_spec.is_set
        if self._started_run:
            spec = ClusterSpec(num_cpus=options["num_cpus"], num_gpus=options["num_gpus"], keep=options["keep_cluster"])
            current_spec.set(spec if shared is None else ClusterSpec(**shared))

    def share(self) -> dict[str, Any]:
        """Return, as plain data, what another process of this run needs to use the same cluster."""
        return asdict(current_spec.get())

    @staticmethod
    def check_resources(resources: Mapping[str, Any]) -> None:
        """Raise `ValueError` if a worker cannot request these resources."""
        from synapse_runtime.executors.ray.resources import checked_resources

        checked_resources(**resources)

    def describe(self) -> str:
        """Describe in a few words which cluster will be used, without connecting to it."""
        from synapse_runtime.executors.ray.cluster.resolve import describe

        return f"cluster: {describe(self._address)}"

    def max_processes(self) -> int | None:
        """Return how many pytest processes the run's cluster can serve; None if Ray is not installed."""
        if importlib.util.find_spec("ray") is None:
            return None
        from synapse_runtime.executors.ray.cluster.resolve import max_test_processes

        return max_test_processes()

    def start_in_background(self, modes: set[str]) -> None:
        """Start the run's cluster if one is needed and not running, without waiting for it.

        Args:
            modes: The modes that will be used.
        """
        from synapse_runtime.executors.ray.cluster.resolve import start_in_background

        self._needs_jobs = "job" in modes
        start_in_background(self._address, jobs=self._needs_jobs)

    @contextlib.contextmanager
    def executor(
        self, mode: str, resources: Mapping[str, Any], *, fresh: bool, strict: bool, **options: Any
    ) -> Iterator[Executor]:
        """Yield the executor of one test. A worker that only this test uses is closed after the block.

        Args:
            mode: `task` or `job`.
            resources: Resources that a worker requests of the cluster.
            fresh: Whether the test gets its own worker.
            strict: Ignored: only local mode has a choice.
            **options: Further arguments of the executor.
        """
        from synapse_runtime.executors.ray.cluster.resolve import import_ray

        import_ray()
        if mode == "task":
            from synapse_runtime.executors.ray.task import RayActorExecutor

            # A warm worker would hold its resources while other processes of the run wait for them.
            is_dedicated = fresh or (self._is_distributed and any(resources.values()))
            self._close_idle(resources, but=None if is_dedicated else _key(resources))
            worker = self._new_worker(resources) if is_dedicated else self._worker(resources)
            try:
                yield RayActorExecutor(worker=worker, debug_sdk=self._debug_sdk, **options)
            finally:
                if is_dedicated:
                    worker.close()
            return
        from synapse_runtime.executors.ray.job import RayJobsApiExecutor

        self._close_idle(resources)
        executor = RayJobsApiExecutor(ray_address=self._address, debug_sdk=self._debug_sdk, **resources, **options)
        yield self._cleanup.enter_context(executor)

    def close(self) -> None:
        """Stop jobs, then workers, then the cluster if this run started it."""
        self._cleanup.close()
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        self._held.clear()
        if not self._started_run:
            return
        spec = current_spec.get()
        if spec.path.exists() or "synapse_runtime.executors.ray.cluster.persistent" in sys.modules:
            self._release_cluster(spec)
        current_spec.clear()

    def _release_cluster(self, spec: ClusterSpec) -> None:
        from synapse_runtime.executors.ray.cluster.ephemeral import ephemeral
        from synapse_runtime.executors.ray.cluster.persistent import persist, persistent

        try:
            if spec.keep and not self._is_distributed:
                persist()
        finally:
            persistent.release()
            ephemeral.release()

    def _check(self, options: Mapping[str, Any]) -> None:
        if options["keep_cluster"] and not self._is_distributed:
            self._check_state_file()
        if self._address is None and not os.environ.get("RAY_ADDRESS"):
            return
        named = "--synapse-ray-address" if self._address is not None else "RAY_ADDRESS"
        for name in _CLUSTER_OPTIONS:
            if options[name] not in (None, False):
                raise ValueError(
                    f"--synapse-{name.replace('_', '-')} applies to a cluster that this run starts, but {named} names "
                    "another: give only one"
                )

    @staticmethod
    def _check_state_file() -> None:
        from synapse_runtime.errors import ClusterError
        from synapse_runtime.executors.ray.cluster.persistent import require_state_file

        try:
            require_state_file()
        except ClusterError as error:
            raise ValueError(f"--synapse-keep-cluster: {error}") from error

    def _worker(self, resources: Mapping[str, Any]) -> WarmWorker:
        key = _key(resources)
        if key not in self._workers:
            self._workers[key] = self._new_worker(resources)
            self._held[key] = _kinds(resources)
        return self._workers[key]

    def _close_idle(self, resources: Mapping[str, Any], *, but: Any = None) -> None:
        """Close workers that wait for further tests and hold resources of a kind that a test is about to request.

        Args:
            resources: What the test requests.
            but: The key of the worker that it will use.
        """
        needed = _kinds(resources)
        for key in [key for key, held in self._held.items() if key != but and not needed.isdisjoint(held)]:
            del self._held[key]
            self._workers.pop(key).close()

    def _new_worker(self, resources: Mapping[str, Any]) -> WarmWorker:
        from synapse_runtime.executors.ray.task import WarmWorker

        return WarmWorker(self._address, jobs=self._needs_jobs, **resources)


def _key(resources: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*sorted((name, repr(requested)) for name, requested in resources.items()),)


def _kinds(resources: Mapping[str, Any]) -> set[str]:
    """Return the kinds of resources that are requested: names of options, and of a cluster's own resources."""
    own = resources.get("resources") or {}
    return {name for name, amount in {**resources, **own}.items() if amount and name != "resources"}

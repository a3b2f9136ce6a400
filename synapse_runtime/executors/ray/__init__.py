"""Ray: task mode on actors, job mode through the Jobs API, and the cluster under both.

Importing this package does not import Ray, which is imported once a cluster is needed, nor the executors, which the
cluster daemon does not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synapse_runtime.executors.ray.job import RayJobsApiExecutor
    from synapse_runtime.executors.ray.task import RayActorExecutor

__all__ = ["RayActorExecutor", "RayJobsApiExecutor"]

_MODULES = {"RayActorExecutor": "task", "RayJobsApiExecutor": "job"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

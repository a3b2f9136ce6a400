"""Ray: task mode on actors, job mode through the Jobs API, and the cluster under both.

Importing this needs no Ray, which is imported when a cluster is. Nor does it import the executors, which the process
that owns a cluster does not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synapse_runtime.executors.ray.job import RayJobsApiExecutor
    from synapse_runtime.executors.ray.task import RayActorExecutor

__all__ = ["RayActorExecutor", "RayJobsApiExecutor"]

_HOMES = {"RayActorExecutor": "task", "RayJobsApiExecutor": "job"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

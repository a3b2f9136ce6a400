"""Executors: each runs actions in one place. Importing this package imports none of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synapse_runtime.executors.base import Executor
    from synapse_runtime.executors.local import LocalExecutor
    from synapse_runtime.executors.ray.job import RayJobsApiExecutor
    from synapse_runtime.executors.ray.task import RayActorExecutor
    from synapse_runtime.executors.remote.executor import RemoteExecutor

__all__ = ["Executor", "LocalExecutor", "RayActorExecutor", "RayJobsApiExecutor", "RemoteExecutor"]

# Public names and the modules that define them.
_LAZY_IMPORTS = {
    "Executor": "base",
    "LocalExecutor": "local",
    "RayActorExecutor": "ray.task",
    "RayJobsApiExecutor": "ray.job",
    "RemoteExecutor": "remote.executor",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY_IMPORTS[name]}"), name)

"""Ray: task mode on actors, job mode through the Jobs API, and the cluster under both.

Importing this needs no Ray; it is imported when a cluster is.
"""

from synapse_runtime.executors.ray.job import RayJobsApiExecutor
from synapse_runtime.executors.ray.task import RayActorExecutor

__all__ = ["RayActorExecutor", "RayJobsApiExecutor"]

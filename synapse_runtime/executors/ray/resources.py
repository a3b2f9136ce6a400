"""What a call asks of a cluster, and whether the cluster can ever give it."""

from __future__ import annotations

from collections.abc import Mapping

from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.ray.cluster import only_this_dashboard

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help


def checked_resources(num_cpus: float | None, num_gpus: float | None) -> dict[str, float]:
    """Return what was asked for as Ray's options.

    Raises:
        ValueError: A number is negative.
    """
    asked = {"num_cpus": num_cpus, "num_gpus": num_gpus}
    for name, number in asked.items():
        if number is not None and not (isinstance(number, int | float) and number >= 0):
            raise ValueError(f"{name} must be a number of at least 0, not {number!r}")
    return {name: number for name, number in asked.items() if number is not None}


def require_resources(asked: Mapping[str, float], total: Mapping[str, float]) -> None:
    """Raise `ClusterError` where the whole cluster has less than was asked for: nobody would ever answer.

    Args:
        asked: Ray's options `num_cpus` and `num_gpus`.
        total: The cluster's resources by Ray's names.
    """
    for option, name in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        if asked.get(option, 0) > total.get(name, 0):
            raise ClusterError(
                f"asked for {option}={asked[option]:g}, but the cluster has {total.get(name, 0):g} {name} in all "
                f"({readable(total)})"
            )


def total_resources(dashboard: str, headers: dict[str, str] | None) -> dict[str, float]:
    """Ask a cluster, over HTTP alone, for the resources of all its nodes.

    Args:
        dashboard: The dashboard's URL.
        headers: HTTP headers that the dashboard demands.

    Raises:
        ClusterError: It does not answer.
    """
    from ray.util.state import StateApiClient
    from ray.util.state.common import ListApiOptions, StateResource

    try:
        with only_this_dashboard(dashboard):
            client = StateApiClient(address=dashboard, headers=headers)
        nodes = client.list(StateResource.NODES, ListApiOptions(detail=True), raise_on_missing_output=False)
    except Exception as error:
        raise ClusterError(f"the cluster at {dashboard} does not tell its resources: {error}") from error
    total: dict[str, float] = {}
    for node in nodes:
        for name, amount in (node.resources_total or {}).items():
            total[name] = total.get(name, 0) + amount
    return total


def readable(resources: Mapping[str, float]) -> str:
    """Return CPUs and GPUs as text for people."""
    named = {name: resources.get(name, 0) for name in ("CPU", "GPU")}
    return ", ".join(f"{name} {number:g}" for name, number in named.items())

"""What `synapse doctor` looks at of the cluster that task and job mode would use."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_runtime.cli.doctor.findings import Finding, ok, problem, warning
from synapse_runtime.errors import ClusterError

if TYPE_CHECKING:
    from synapse_runtime.executors.ray.cluster.driver import Cluster

_INSTALL = "pip install 'pytest-synapse-harness[ray]'"


def ray() -> Iterator[Finding]:
    """Tell whether Ray can be imported."""
    if importlib.util.find_spec("ray") is None:
        yield warning("task and job mode", "Ray is not installed: local mode only", _INSTALL)
        return
    from synapse_runtime.executors.ray.cluster.preflight import Versions
    from synapse_runtime.executors.ray.log_suppression import suppress_ray_output

    with suppress_ray_output():
        try:
            yield ok("task and job mode", f"Ray {Versions.here().ray} can be imported")
        except ImportError as error:
            yield problem("task and job mode", f"Ray cannot be imported: {error}", f"{_INSTALL} --force-reinstall")


def cluster() -> Iterator[Finding]:
    """Tell which cluster would be used, whether it answers, what it runs and what it has."""
    if importlib.util.find_spec("ray") is None:
        return
    from synapse_runtime.executors.ray.cluster.persistent import status
    from synapse_runtime.executors.ray.cluster.resolve import describe, find_cluster

    warm = status()
    yield ok("cluster", describe())
    yield from _token()
    address = os.environ.get("RAY_ADDRESS")
    if address == "auto":
        yield from _auto()
    elif address:
        try:
            yield from _of_somebody_else(find_cluster())
        except ClusterError as error:
            yield problem("cluster", str(error), "set RAY_ADDRESS to a cluster that answers, or unset it")
    elif warm is not None:
        yield from _warm(warm)


def _auto() -> Iterator[Finding]:
    from synapse_runtime.executors.ray.cluster.resolve import find_cluster

    try:
        found = find_cluster(start=False)
    except ClusterError:
        yield ok("cluster", "none runs on this machine: ephemeral, started on first need")
        return
    yield ok("cluster", f"{found.address} ({found.origin})")
    if not found.is_managed:
        yield from _of_somebody_else(found)


def _of_somebody_else(found: Cluster) -> Iterator[Finding]:
    from synapse_runtime.executors.ray.cluster.preflight import (
        Versions,
        nodes_at,
        nodes_of,
        require_cluster,
        require_dashboard,
    )
    from synapse_runtime.executors.ray.log_suppression import suppress_ray_output

    here = Versions.here()
    with suppress_ray_output():
        if found.dashboard is not None:
            theirs, nodes = require_dashboard(found.dashboard), nodes_of(found.dashboard)
            yield warning("task mode", "a dashboard's address is for job mode", "give host:port for task mode")
        else:
            require_cluster(found.address)
            if found.address.startswith("ray://"):
                yield ok("cluster", "it answers; Ray Client tells its versions and resources once one is connected")
                yield warning("job mode", "Ray Client's address is for task mode", "give http://host:8265 for job mode")
                return
            theirs, nodes = here, nodes_at(found.address)
    if theirs.ray in ("", here.ray) and theirs.same_python():
        yield ok("versions", f"{theirs} there, {here} here")
    else:
        fix = "use the same: what is pickled here may not be read there"
        yield warning("versions", f"{theirs} there, {here} here", fix)
    yield ok("resources", f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}: {_in_all(nodes)}")


def _warm(facts: Mapping[str, Any]) -> Iterator[Finding]:
    from synapse_runtime.executors.ray.cluster.persistent import unfit

    reason = unfit(dict(facts))
    if reason is not None:
        fix = "synapse cluster down, then up"
        yield warning("warm cluster", f"it is not used: {reason}", fix)
    elif not facts["ready"]:
        yield ok("warm cluster", "it is starting")
    else:
        users = len(facts["users"])
        used = f"used by {users} {'process' if users == 1 else 'processes'}" if users else "used by nobody"
        yield ok("warm cluster", f"it answers; {_in_all([facts['resources']])}; {used}")


def _in_all(nodes: list[dict[str, float]]) -> str:
    from synapse_runtime.executors.ray.resources import readable

    names = {name for node in nodes for name in node}
    return readable({name: sum(node.get(name, 0) for node in nodes) for name in names}, {"memory": 0})


def _token() -> Iterator[Finding]:
    """Tell where Ray takes its token from; clusters of our own bring theirs."""
    demanded = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    sources = {
        "RAY_AUTH_TOKEN": bool(os.environ.get("RAY_AUTH_TOKEN")),
        "RAY_AUTH_TOKEN_PATH": bool(path),
        "~/.ray/auth_token": Path.home().joinpath(".ray", "auth_token").is_file(),
    }
    source = next((name for name, is_there in sources.items() if is_there), None)
    if source == "RAY_AUTH_TOKEN_PATH" and not Path(path or "").is_file():
        yield problem("token", "RAY_AUTH_TOKEN_PATH names no file", "set it to the file that holds the token")
    elif demanded and source is not None:
        yield ok("token", f"from {source}")
    elif demanded and os.environ.get("RAY_ADDRESS"):
        fix = "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or unset RAY_AUTH_MODE"
        yield problem("token", "RAY_AUTH_MODE demands one, and there is none", fix)
    elif not demanded and source in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        yield warning("token", f"Ray takes no notice of {source}", "set RAY_AUTH_MODE=token")

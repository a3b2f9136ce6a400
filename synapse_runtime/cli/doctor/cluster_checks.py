"""Checks of `synapse doctor` for the modes that require Ray, and for the cluster that they would use."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_runtime.cli.doctor.findings import Finding, ok, problem, warning
from synapse_runtime.cli.modes import describe_modes
from synapse_runtime.errors import ClusterError
from synapse_runtime.modes import MODES, modes_requiring

if TYPE_CHECKING:
    from synapse_runtime.executors.ray.cluster.driver import Cluster

_INSTALL = "pip install 'pytest-synapse-harness[ray]'"


def ray() -> Iterator[Finding]:
    """Check that Ray can be imported, which some modes require."""
    modes = describe_modes(modes_requiring("ray"))
    if importlib.util.find_spec("ray") is None:
        others = describe_modes(name for name, mode in MODES.items() if not mode.requires)
        yield warning(modes, f"Ray is not installed; only {others} is available", _INSTALL)
        return
    from synapse_runtime.executors.ray.cluster.preflight import Versions
    from synapse_runtime.executors.ray.log_suppression import suppress_ray_output

    with suppress_ray_output():
        try:
            yield ok(modes, f"Ray {Versions.here().ray} can be imported")
        except ImportError as error:
            yield problem(modes, f"Ray cannot be imported: {error}", f"{_INSTALL} --force-reinstall")


def cluster() -> Iterator[Finding]:
    """Check which cluster would be used, whether it is reachable, its versions and its resources."""
    if importlib.util.find_spec("ray") is None:
        return
    from synapse_runtime.executors.ray.cluster.persistent import status_or_problem
    from synapse_runtime.executors.ray.cluster.resolve import describe, find_cluster

    warm, unknown = status_or_problem()
    yield ok("cluster", describe())
    if unknown is not None:
        yield warning("warm cluster", f"not used: {unknown}", "make its state file usable, as above")
    yield from _token()
    address = os.environ.get("RAY_ADDRESS")
    if address == "auto":
        yield from _auto()
    elif address:
        yield from _proxy(address)
        try:
            yield from _external(find_cluster())
        except ClusterError as error:
            yield problem("cluster", str(error), "set RAY_ADDRESS to a reachable cluster, or unset it")
    elif warm is not None:
        yield from _warm(warm)


def _proxy(address: str) -> Iterator[Finding]:
    """Check that the proxy for a dashboard, if there is one, can be reached."""
    from synapse_runtime.executors.ray.cluster.preflight import proxy_of, require_listener

    proxy = proxy_of(address) if address.startswith(("http://", "https://")) else None
    if proxy is None:
        return
    try:
        require_listener(str(proxy), proxy.host, proxy.port)
        yield ok("proxy", f"requests to the cluster are sent through {proxy}")
    except ClusterError:
        fix = f"unset {proxy.variable}, or add the cluster's host name to no_proxy"
        yield problem("proxy", f"nothing answers at {proxy}, through which requests to the cluster are sent", fix)


def _auto() -> Iterator[Finding]:
    from synapse_runtime.executors.ray.cluster.resolve import find_cluster

    try:
        found = find_cluster(start=False)
    except ClusterError:
        yield ok("cluster", "none is running on this machine: ephemeral, started when first needed")
        return
    yield ok("cluster", f"{found.address} ({found.origin})")
    if not found.is_managed:
        yield from _external(found)


def _external(found: Cluster) -> Iterator[Finding]:
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
            yield warning("task mode", "a dashboard address only works in job mode", "use host:port for task mode")
        else:
            require_cluster(found.address)
            if found.address.startswith("ray://"):
                yield ok("cluster", "reachable; Ray Client shows its versions and resources only when connected")
                yield warning(
                    "job mode", "a Ray Client address only works in task mode", "use http://host:8265 for job mode"
                )
                return
            theirs, nodes = here, nodes_at(found.address)
    if theirs.ray in ("", here.ray) and theirs.same_python():
        yield ok("versions", f"{theirs} on the cluster, {here} here")
    else:
        fix = "use the same versions: objects pickled here may not load on the cluster"
        yield warning("versions", f"{theirs} on the cluster, {here} here", fix)
    yield ok("resources", f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}: {_total(nodes)}")


def _warm(facts: Mapping[str, Any]) -> Iterator[Finding]:
    from synapse_runtime.executors.ray.cluster.persistent import unmet_requirement

    reason = unmet_requirement(dict(facts))
    if reason is not None:
        fix = "run `synapse cluster down`, then `synapse cluster up`"
        yield warning("warm cluster", f"not used: {reason}", fix)
    elif not facts["ready"]:
        yield ok("warm cluster", "starting")
    else:
        users = len(facts["users"])
        used = f"used by {users} {'process' if users == 1 else 'processes'}" if users else "idle"
        yield ok("warm cluster", f"running; {_total([facts['resources']])}; {used}")


def _total(nodes: list[dict[str, float]]) -> str:
    from synapse_runtime.executors.ray.resources import readable

    names = {name for node in nodes for name in node}
    return readable({name: sum(node.get(name, 0) for node in nodes) for name in names}, {"memory": 0})


def _token() -> Iterator[Finding]:
    """Check where Ray reads its token; clusters that synapse starts have their own."""
    required = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    sources = {
        "RAY_AUTH_TOKEN": bool(os.environ.get("RAY_AUTH_TOKEN")),
        "RAY_AUTH_TOKEN_PATH": bool(path),
        "~/.ray/auth_token": Path.home().joinpath(".ray", "auth_token").is_file(),
    }
    source = next((name for name, is_set in sources.items() if is_set), None)
    if source == "RAY_AUTH_TOKEN_PATH" and not Path(path or "").is_file():
        yield problem("token", "RAY_AUTH_TOKEN_PATH does not point to a file", "set it to the file with the token")
    elif required and source is not None:
        yield ok("token", f"from {source}")
    elif required and os.environ.get("RAY_ADDRESS"):
        fix = "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or unset RAY_AUTH_MODE"
        yield problem("token", "RAY_AUTH_MODE=token requires a token, and there is none", fix)
    elif not required and source in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        yield warning("token", f"Ray ignores {source}", "set RAY_AUTH_MODE=token")

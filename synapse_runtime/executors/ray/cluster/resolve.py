"""Which cluster to use, how to reach it, and the ephemeral one that is started where there is no other.

The order: an address that was given, `RAY_ADDRESS`, the cluster that this process is connected to already, the warm
one of `synapse cluster up`, an ephemeral one. An ephemeral cluster belongs to a run: it is started on first need,
demands a token, and ends when the run ends, however it ends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from synapse_runtime.core.process_state import process_state
from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.ray.cluster.control_socket import LOOPBACK_ENV
from synapse_runtime.executors.ray.cluster.driver import (
    Cluster,
    background_shutdown,
    connected_address,
    connected_through_client,
    disconnect,
)
from synapse_runtime.executors.ray.cluster.ephemeral import ephemeral
from synapse_runtime.executors.ray.cluster.handle import dashboard_at, has_ended, is_managed
from synapse_runtime.executors.ray.cluster.persistent import persistent, status, unfit_for
from synapse_runtime.executors.ray.cluster.preflight import (
    Versions,
    require_cluster,
    require_http_listener,
    require_listener,
    version_problem,
)
from synapse_runtime.executors.ray.cluster.session_scope import current_spec
from synapse_runtime.executors.ray.log_suppression import suppress_ray_output

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help
# What a pytest process and its worker take, bytes; a cluster of ours as much again.
_MEMORY_OF_A_PROCESS = 10**9
# What Ray Client's server says when it stumbles over a process of its own: now and then it refuses the first caller
# after its start, after half a minute, and one that comes as such a process ends. Not the same caller twice.
_SERVER_STUMBLED = ("Starting Ray client server failed", "psutil.NoSuchProcess", "psutil.ZombieProcess")
_NO_LASTING_CLUSTER = (
    "there is no cluster that outlives this process: `synapse cluster up` starts one; or name one with --ray-address "
    "(ray_address in code) or RAY_ADDRESS, as host:port or http://dashboard; --ray-address auto takes the one that "
    "`ray start` runs on this machine"
)


def require_ray() -> None:
    """Raise `ClusterError` with the fix where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ClusterError(
            "task and job mode need Ray, which is not installed: pip install 'pytest-synapse-harness[ray]'"
        )


def find_cluster(address: str | None = None, *, jobs: bool = True, start: bool = True) -> Cluster:
    """Return the cluster to use, and start an ephemeral one if there is no other that will do.

    Args:
        address: `host:port`, `ray://host:port`, `http(s)://dashboard`, or `auto` for any that runs on this machine.
        jobs: Whether the Jobs API is needed; without it an ephemeral cluster starts faster.
        start: Whether an ephemeral cluster will do. Without it only one that outlives this process does.

    Raises:
        ClusterError: Ray is not installed, the address is wrong or does not answer, starting failed, or there is
            only the ephemeral cluster, which will not do.
    """
    require_ray()
    origin = "given"
    if address in (None, "auto") and os.environ.get("RAY_ADDRESS"):
        address, origin = os.environ["RAY_ADDRESS"], "RAY_ADDRESS"
    if address not in (None, "auto"):
        assert address is not None
        return _given(address, origin)
    connected = connected_address()
    if connected is not None and not is_managed(connected):
        return Cluster(connected, origin="this process's", shares_disk=True)
    if address == "auto" and connected is None:
        running = _running_here()
        if running is not None:
            return Cluster(running, origin="running here", shares_disk=True)
    if connected is None or not ephemeral.owns(connected):
        kept = persistent.cluster(current_spec.get())
        if kept is not None:
            return kept
    if not start:
        raise ClusterError(_NO_LASTING_CLUSTER)
    ephemeral.start(jobs=jobs)
    _import_ray_meanwhile(current_spec.get().token)
    return ephemeral.acquire(jobs=jobs)


def start_in_background(address: str | None = None, *, jobs: bool) -> None:
    """Begin to start an ephemeral cluster if one will be needed, without waiting for it."""
    taken = address is not None or os.environ.get("RAY_ADDRESS") or importlib.util.find_spec("ray") is None
    if not taken and connected_address() is None and _warm_that_fits() is None:
        ephemeral.start(jobs=jobs)


def describe(address: str | None = None) -> str:
    """Say in a few words which cluster `find_cluster` would use, without touching it."""
    if address in (None, "auto") and os.environ.get("RAY_ADDRESS"):
        return f"{os.environ['RAY_ADDRESS']} (RAY_ADDRESS)"
    if address not in (None, "auto"):
        return f"{address} (given)"
    if importlib.util.find_spec("ray") is None:
        return "none: Ray is not installed"
    there = status()
    if there is None:
        return "ephemeral, started on first need"
    reason = unfit_for(current_spec.get(), there)
    if reason is not None:
        return f"ephemeral, started on first need (the warm one will not do: {reason})"
    return f"warm, {there.get('address', 'starting')} (synapse cluster status)"


def max_test_processes() -> int:
    """Return how many processes of a run may use a cluster of ours at once: one for each CPU, if memory bears them."""
    import psutil

    there = _warm_that_fits()
    cpus = current_spec.get().num_cpus or (int(there["resources"]["CPU"]) if there else _cpus_here())
    with_workers = psutil.virtual_memory().available // _MEMORY_OF_A_PROCESS
    return max(min(cpus, with_workers - (0 if there else 1)), 1)


def _warm_that_fits() -> Mapping[str, Any] | None:
    there = status()
    fits = there is not None and there["ready"] and unfit_for(current_spec.get(), there) is None
    return there if fits else None


def _cpus_here() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def connect(cluster: Cluster) -> str:
    """Connect this process to the cluster as a Ray driver, once.

    Returns:
        The address that it is connected to.

    Raises:
        ClusterError: The cluster does not answer, refuses, or this process is connected to another.
    """
    if not cluster.address:
        raise ClusterError(
            f"task mode needs a cluster's own address, host:port or ray://host:port, not only its dashboard "
            f"({cluster.dashboard})"
        )
    background_shutdown.wait()
    connected = connected_address()
    through_client = cluster.address.startswith("ray://") and connected_through_client()
    if connected is not None and (through_client or _same_address(connected, cluster.address)):
        return connected
    if connected is not None:
        if not is_managed(connected):
            raise ClusterError(f"this process is connected to {connected} already, not to {cluster.address}")
        disconnect()
    try:
        with _untouched_process(), _authentication(cluster.token):
            with suppress_ray_output():
                _import_ray_with(cluster.token)
            with suppress_ray_output():  # once more: on import Ray sets the levels of its loggers
                if not is_managed(cluster.address):
                    require_cluster(cluster.address)
                with _no_error_printer(), _reachable(cluster):
                    _become_driver(cluster.address)
    except ClusterError:
        raise
    except Exception as error:
        raise _no_connection(cluster.address, error) from error
    return connected_address() or cluster.address


def _become_driver(address: str, *, tries: int = 2) -> None:
    import ray

    try:
        ray.init(
            address=address,
            namespace=f"synapse-{os.getpid()}-{secrets.token_hex(4)}",
            log_to_driver=False,
            logging_level="error",
            configure_logging=False,
        )
    except ConnectionError as error:
        if tries == 1 or not any(words in str(error) for words in _SERVER_STUMBLED):
            raise
        _become_driver(address, tries=tries - 1)


def dashboard_of(cluster: Cluster) -> str:
    """Return the URL of the cluster's dashboard, asking the cluster where need be; one of ours may still start it.

    Raises:
        ClusterError: The cluster has none, or its address does not tell.
    """
    if cluster.is_managed:
        url = dashboard_at(cluster.address)
        assert url is not None  # `find_cluster` was asked for one that takes jobs
        return url
    if cluster.dashboard is not None:
        return cluster.dashboard
    if cluster.address.startswith("ray://"):
        raise ClusterError(
            f"job mode needs the dashboard's address, http://host:8265, not Ray Client's ({cluster.address})"
        )
    connect(cluster)
    # There is no public way to ask a cluster that one is connected to; see docs/private-api.md.
    from ray._private.worker import get_dashboard_url

    url = get_dashboard_url()
    if not url:
        raise ClusterError(f"the cluster at {cluster.address} has no dashboard, which job mode needs")
    return url if "://" in url else f"http://{url}"


# The token of ours that Ray has read, which it does once, on import.
_told: str | None = None


def _import_ray_with(token: str | None) -> None:
    """Import Ray so that it knows of this token; call it with the token in the environment.

    If Ray was imported before, it reads its settings again, even for the same token: it caches that there was none if
    anything asked for one in between. There is no public way for that, and it is not safe while Ray is connected.
    """
    global _told
    late = "ray" in sys.modules
    import ray  # noqa: F401

    if late:
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
    _told = token


def _import_ray_meanwhile(token: str) -> None:
    """Import Ray for a cluster of ours that is still starting, where this process has not; `connect` needs it next."""
    if "ray" in sys.modules:
        return
    try:
        with _untouched_process(), _authentication(token), suppress_ray_output():
            _import_ray_with(token)
    except Exception as error:
        raise ClusterError(f"Ray cannot be imported: {type(error).__name__}: {error}") from error


def clear_token() -> None:
    """Let Ray send no token of ours to a cluster that is not: it keeps the one that it has read.

    Not while this process is connected to a cluster of ours, which needs it.
    """
    if _told is not None and connected_address() is None:
        _import_ray_with(None)


@contextlib.contextmanager
def _reachable(cluster: Cluster) -> Iterator[None]:
    """Let Ray take the loopback address of a cluster of ours as it is, where it would put this machine's own.

    Ray has a variable for that, which it reads on import: then it would hold for other clusters too.
    """
    if not _is_on_loopback_alone(cluster.address):
        yield
        return
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = LOOPBACK_ENV[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] != "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _is_on_loopback_alone(address: str) -> bool:
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost"):
        return False
    import ray

    if is_managed(address):
        return True
    try:
        require_listener(address, ray.util.get_node_ip_address(), int(port))
    except ClusterError:
        return True
    return False


@contextlib.contextmanager
def _untouched_process() -> Iterator[None]:
    """Put back what Ray takes over in a driver: the handler of SIGTERM, and variables.

    One of them, PYTHONBREAKPOINT, would make `breakpoint()` in local mode Ray's own debugger.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if in_main_thread else None
    with process_state.locked():
        variables = os.environ.copy()
        try:
            yield
        finally:
            if handler is not None:
                signal.signal(signal.SIGTERM, handler)
            for name in os.environ.keys() - variables.keys():
                del os.environ[name]
            os.environ.update(variables)


@contextlib.contextmanager
def _no_error_printer() -> Iterator[None]:
    """Keep the driver from printing Ray's own notes on lost workers, in colour, into a test's output.

    We tell of a lost worker ourselves, where it belongs. Ray has no option for it.
    """
    from ray._private import worker

    printer = worker.listen_error_messages
    worker.listen_error_messages = lambda *_: None
    try:
        yield
    finally:
        worker.listen_error_messages = printer


@contextlib.contextmanager
def without_dashboard_variable(url: str) -> Iterator[None]:
    """Let Ray's HTTP clients take the address they are given: RAY_ADDRESS would win over it."""
    with _variables({"RAY_API_SERVER_ADDRESS": url}):
        yield


@contextlib.contextmanager
def _authentication(token: str | None) -> Iterator[None]:
    """Put the token where Ray reads it, for no longer than that: actions in this process must not see it."""
    with _variables({} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}):
        yield


@contextlib.contextmanager
def _variables(settings: Mapping[str, str]) -> Iterator[None]:
    """Set variables for a moment, in which no action of another thread begins, which would keep them, or ends."""
    with process_state.locked():
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _given(address: str, origin: str) -> Cluster:
    if address.startswith(("http://", "https://")):
        parts = urlsplit(address)
        require_http_listener(address)
        shares_disk = _is_this_machine(parts.hostname or "")
        return Cluster("", dashboard=address.rstrip("/"), origin=origin, shares_disk=shares_disk)
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit() or not host:
        raise ClusterError(
            f"{address!r} is not a cluster's address: host:port, ray://host:port, http(s)://dashboard, or auto"
        )
    require_listener(address, host, int(port))
    return Cluster(address, origin=origin, shares_disk=_is_this_machine(host))


def _is_this_machine(host: str) -> bool:
    try:
        target = socket.gethostbyname(host)
    except OSError:
        return False
    if target.startswith("127."):
        return True
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((target, 0))
        except OSError:
            return False
    return True


def shares_disk(cluster: Cluster, addresses: Iterable[str]) -> bool:
    """Tell whether all workers of a cluster see this machine's files.

    An address here does not say so: it may be that of a tunnel, or of a cluster whose other nodes are elsewhere.

    Args:
        cluster: The cluster.
        addresses: The IP addresses of its living nodes.
    """
    return cluster.shares_disk and all(map(_is_this_machine, addresses))


def is_alive(address: str) -> bool:
    """Tell whether the cluster that this process has connected to by this address is still there."""
    if is_managed(address):
        return not has_ended(address)
    if not address.startswith("ray://") and connected_through_client():
        return True  # as far as Ray Client knows: the cluster's own address need not be within reach of here
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        require_listener(address, host, int(port))
    except (ClusterError, ValueError):
        return False
    return True


def drop_broken_connection(cluster: Cluster) -> None:
    """End an ephemeral cluster that does not answer any more, so that a new one is started on next need."""
    if cluster.origin == "ephemeral" and ephemeral.owns(cluster.address):
        ephemeral.stop()


def _same_address(one: str, other: str) -> bool:
    """Tell whether two addresses mean the same cluster: 127.0.0.1:6379 is the one at this machine's own address."""
    if one == other:
        return True
    (one_host, _, one_port), (other_host, _, other_port) = one.rpartition(":"), other.rpartition(":")
    return one_port == other_port and _is_this_machine(one_host) and _is_this_machine(other_host)


def _running_here() -> str | None:
    """Return the address of a cluster that `ray start` runs on this machine, if there is one."""
    path = Path(tempfile.gettempdir(), "ray", "ray_current_cluster")
    try:
        address = path.read_text(encoding="utf-8").strip()
        host, _, port = address.rpartition(":")
        require_listener(address, host, int(port))
    except (OSError, ValueError, ClusterError):
        return None
    return address


def _no_connection(address: str, error: Exception) -> ClusterError:
    """Return the error that says why Ray could not connect."""
    versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error))
    if "Version mismatch" in str(error) and versions:
        return version_problem(address, Versions(*versions[0]))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = f"{lines[0]} {lines[-1].strip()}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    return ClusterError(f"cannot connect to the cluster at {address}: {reason}")

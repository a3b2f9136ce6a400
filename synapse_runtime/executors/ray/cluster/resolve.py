"""Resolve which cluster to use, connect to it, and start an ephemeral cluster if there is no other.

The order: the given address, `RAY_ADDRESS`, the cluster that this process is already connected to, the warm cluster of
`synapse cluster up`, an ephemeral cluster. An ephemeral cluster belongs to a run: it is started when first needed,
requires a token, and is torn down when the run ends, even if the run is killed.
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

from synapse_runtime.core.interrupts import keyboard_interrupt_deferred
from synapse_runtime.core.process_state import process_state
from synapse_runtime.core.threads import InterruptibleLock
from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.ray.cluster.control_socket import JOB_CONFIG, LOOPBACK_ENV, RUNTIME_ENV_HOOK
from synapse_runtime.executors.ray.cluster.driver import (
    Cluster,
    background_shutdown,
    connected_address,
    connected_through_client,
    disconnect,
)
from synapse_runtime.executors.ray.cluster.ephemeral import ephemeral
from synapse_runtime.executors.ray.cluster.handle import dashboard_at, has_ended, is_managed
from synapse_runtime.executors.ray.cluster.persistent import persistent, status_or_problem, unmet_requirement_of_run
from synapse_runtime.executors.ray.cluster.preflight import (
    Versions,
    require_cluster,
    require_http_listener,
    require_listener,
    version_problem,
)
from synapse_runtime.executors.ray.cluster.session_scope import current_spec
from synapse_runtime.executors.ray.log_suppression import suppress_ray_output

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines
# Memory in bytes that a pytest process and its worker use; a managed cluster uses as much.
_MEMORY_PER_PROCESS = 10**9
# Messages of a failing Ray Client server: it sometimes rejects the first client after its start, after half a minute,
# and a client that connects while one of the server's processes ends. It accepts the same client on a second try.
_CLIENT_SERVER_FAILURES = ("Starting Ray client server failed", "psutil.NoSuchProcess", "psutil.ZombieProcess")
_NO_PERSISTENT_CLUSTER = (
    "there is no cluster that outlives this process: start one with `synapse cluster up`, or pass --ray-address "
    "(ray_address in code) or RAY_ADDRESS, as host:port or http://dashboard; --ray-address auto uses the cluster that "
    "`ray start` runs on this machine"
)


def require_ray() -> None:
    """Raise `ClusterError` if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ClusterError(
            "task and job mode require Ray, which is not installed: pip install 'pytest-synapse-harness[ray]'"
        )


def find_cluster(address: str | None = None, *, jobs: bool = True, start: bool = True) -> Cluster:
    """Return the cluster to use; start an ephemeral one if no other is available.

    Args:
        address: `host:port`, `ray://host:port`, `http(s)://dashboard`, or `auto` for any that runs on this machine.
        jobs: Whether the Jobs API is needed; without it an ephemeral cluster starts faster.
        start: Whether an ephemeral cluster may be used. If False, only clusters that outlive this process are.

    Raises:
        ClusterError: Ray is not installed, the address is wrong or does not respond, the cluster did not start, or
            only an ephemeral cluster is available and `start` is False.
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
        _, problem = status_or_problem()
        raise ClusterError(_NO_PERSISTENT_CLUSTER if problem is None else f"{_NO_PERSISTENT_CLUSTER} ({problem})")
    ephemeral.start(jobs=jobs)
    _import_ray_early(current_spec.get().token)
    return ephemeral.acquire(jobs=jobs)


def start_in_background(address: str | None = None, *, jobs: bool) -> None:
    """Start an ephemeral cluster if one will be needed, without waiting for it."""
    not_needed = address is not None or os.environ.get("RAY_ADDRESS") or importlib.util.find_spec("ray") is None
    if not not_needed and connected_address() is None and _usable_warm_cluster() is None:
        ephemeral.start(jobs=jobs)


def describe(address: str | None = None) -> str:
    """Describe in a few words which cluster `find_cluster` would use, without connecting to it."""
    if address in (None, "auto") and os.environ.get("RAY_ADDRESS"):
        return f"{os.environ['RAY_ADDRESS']} (RAY_ADDRESS)"
    if address not in (None, "auto"):
        return f"{address} (given)"
    if importlib.util.find_spec("ray") is None:
        return "none: Ray is not installed"
    warm, problem = status_or_problem()
    if problem is not None:
        return f"ephemeral, started when first needed ({problem})"
    if warm is None:
        return "ephemeral, started when first needed"
    reason = unmet_requirement_of_run(current_spec.get(), warm)
    if reason is not None:
        return f"ephemeral, started when first needed (the warm cluster does not fit: {reason})"
    return f"warm, {warm.get('address', 'starting')} (synapse cluster status)"


def max_test_processes() -> int:
    """Return how many processes of a run may use a managed cluster at once: one per CPU, as far as memory suffices."""
    import psutil

    warm = _usable_warm_cluster()
    cpus = current_spec.get().num_cpus or (int(warm["resources"]["CPU"]) if warm else _cpus_here())
    with_workers = psutil.virtual_memory().available // _MEMORY_PER_PROCESS
    return max(min(cpus, with_workers - (0 if warm else 1)), 1)


def _usable_warm_cluster() -> Mapping[str, Any] | None:
    warm, _ = status_or_problem()
    fits = warm is not None and warm["ready"] and unmet_requirement_of_run(current_spec.get(), warm) is None
    return warm if fits else None


def _cpus_here() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_connecting = InterruptibleLock()  # held by the thread that connects: a process has one connection


def connect(cluster: Cluster) -> str:
    """Connect this process to the cluster as a Ray driver, unless it is connected already.

    Returns:
        The address that it is connected to.

    Raises:
        ClusterError: The cluster does not respond, denies access, or this process is connected to another cluster.
    """
    if not cluster.address:
        raise ClusterError(
            f"task mode requires the cluster's own address, host:port or ray://host:port, not the dashboard's "
            f"({cluster.dashboard})"
        )
    return _connecting.call(lambda: _connect(cluster))


def _connect(cluster: Cluster) -> str:
    background_shutdown.wait()
    connected = connected_address()
    through_client = cluster.address.startswith("ray://") and connected_through_client()
    if connected is not None and (through_client or _same_address(connected, cluster.address)):
        return connected
    if connected is not None:
        if not is_managed(connected):
            raise ClusterError(
                f"cannot connect to the cluster at {cluster.address}: this process is already connected to {connected}"
            )
        disconnect()
    try:
        with _preserve_process_state(), _authentication(cluster.token):
            with suppress_ray_output():
                _import_ray_with(cluster.token)
            with suppress_ray_output():  # again: importing Ray resets the levels of its loggers
                if not is_managed(cluster.address):
                    require_cluster(cluster.address)
                with _no_error_printer(), _reachable(cluster), _no_derived_runtime_env(cluster):
                    _init_ray(cluster.address)
    except ClusterError:
        raise
    except Exception as error:
        raise _no_connection(cluster.address, error) from error
    return connected_address() or cluster.address


def _init_ray(address: str, *, tries: int = 2) -> None:
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
        if tries == 1 or not any(words in str(error) for words in _CLIENT_SERVER_FAILURES):
            raise
        _init_ray(address, tries=tries - 1)


def dashboard_of(cluster: Cluster) -> str:
    """Return the URL of the cluster's dashboard, requesting it if needed; a managed cluster may still be starting it.

    Raises:
        ClusterError: The cluster has none, or it is not known from a Ray Client address.
    """
    if cluster.is_managed:
        url = dashboard_at(cluster.address)
        assert url is not None  # `find_cluster` returns a cluster with the Jobs API
        return url
    if cluster.dashboard is not None:
        return cluster.dashboard
    if cluster.address.startswith("ray://"):
        raise ClusterError(
            f"job mode requires the dashboard's address, http://host:8265, not Ray Client's ({cluster.address})"
        )
    connect(cluster)
    # There is no public way to ask a cluster that one is connected to; see docs/private-api.md.
    from ray._private.worker import get_dashboard_url

    url = get_dashboard_url()
    if not url:
        raise ClusterError(f"the cluster at {cluster.address} has no dashboard, which job mode requires")
    return url if "://" in url else f"http://{url}"


# The token that Ray has read from our settings, which it does once, on import.
_loaded_token: str | None = None


def _import_ray_with(token: str | None) -> None:
    """Import Ray with this token; the caller has set it in the environment.

    If Ray was already imported, make it read its settings again, even for the same token: Ray caches that there was no
    token if anything has requested one in between. There is no public API for that, and it is not safe while connected.
    """
    global _loaded_token
    late = "ray" in sys.modules
    with keyboard_interrupt_deferred():
        import ray  # noqa: F401

    if late:
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
    _loaded_token = token


def import_ray() -> None:
    """Import Ray, if it is installed, and what it imports later, before a test may stop the clock with freezegun.

    That replaces `date` and `datetime`, from which some modules of pydantic that Ray uses cannot derive classes.
    """
    if "freezegun" not in sys.modules or "pydantic.v1" in sys.modules or importlib.util.find_spec("ray") is None:
        return
    with (
        _preserve_process_state(),
        suppress_ray_output(),
        contextlib.suppress(ImportError),
        keyboard_interrupt_deferred(),
    ):
        import pydantic.v1  # noqa: F401
        import ray  # noqa: F401


def _import_ray_early(token: str) -> None:
    """Import Ray, unless it is imported already, while a managed cluster is starting; `connect` needs it next."""
    if "ray" in sys.modules:
        return
    try:
        with _preserve_process_state(), _authentication(token), suppress_ray_output():
            _import_ray_with(token)
    except Exception as error:
        raise ClusterError(f"Ray cannot be imported: {type(error).__name__}: {error}") from error


def clear_token() -> None:
    """Make Ray forget the token of a managed cluster, so that it does not send it to other clusters.

    Does nothing while this process is connected, because the connection needs the token.
    """
    if _loaded_token is not None and connected_address() is None:
        _import_ray_with(None)


@contextlib.contextmanager
def _reachable(cluster: Cluster) -> Iterator[None]:
    """Make Ray use the loopback address of a managed cluster, which it would replace by this machine's own address.

    Ray has an environment variable for that, but reads it on import, so that it would apply to other clusters too.
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


@contextlib.contextmanager
def _no_derived_runtime_env(cluster: Cluster) -> Iterator[None]:
    """Keep Ray from deriving a runtime environment for all workers of this connection, and uploading what it names.

    Ray looks for `uv run` among the ancestors of this process, and then uploads the working directory and starts each
    worker with `uv run`. It reads the variable that turns this off on import. If this process belongs to a job, the
    runtime environment that its user gave it applies on the cluster of the job, whose address Ray sets too.
    """
    from ray._private import ray_constants

    removed = (RUNTIME_ENV_HOOK,) if cluster.origin == "RAY_ADDRESS" else (RUNTIME_ENV_HOOK, JOB_CONFIG)
    before = ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    try:
        with _variables(dict.fromkeys(removed)):
            yield
    finally:
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = before


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
def _preserve_process_state() -> Iterator[None]:
    """Restore what Ray changes in a driver's process: the SIGTERM handler and environment variables.

    One of these, PYTHONBREAKPOINT, would make `breakpoint()` in local mode open Ray's debugger.
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
    """Keep Ray from printing its own colored messages about lost workers into a test's output.

    A lost worker is reported by `WorkerCrashed`. Ray has no option to turn the messages off.
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
    """Make Ray's HTTP clients use the address they are given, over which RAY_ADDRESS would take precedence."""
    with _variables({"RAY_API_SERVER_ADDRESS": url}):
        yield


@contextlib.contextmanager
def _authentication(token: str | None) -> Iterator[None]:
    """Set the token in the environment only while Ray reads it: actions in this process must not see it."""
    with _variables({} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}):
        yield


@contextlib.contextmanager
def _variables(settings: Mapping[str, str | None]) -> Iterator[None]:
    """Set, or remove, variables temporarily, while no action of another thread can start, and keep them, or end."""
    with process_state.locked():
        before = {name: os.environ.get(name) for name in settings}
        _set_variables(settings)
        try:
            yield
        finally:
            _set_variables(before)


def _set_variables(settings: Mapping[str, str | None]) -> None:
    for name, value in settings.items():
        if value is None:
            os.environ.pop(name, None)
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
            f"{address!r} is not a cluster address: expected host:port, ray://host:port, http(s)://dashboard, or auto"
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
    """Return whether all workers of a cluster share this machine's file system.

    A local address is not sufficient: it may belong to a tunnel, or to a cluster with nodes on other machines.

    Args:
        cluster: The cluster.
        addresses: The IP addresses of its live nodes.
    """
    return cluster.shares_disk and all(map(_is_this_machine, addresses))


def is_alive(address: str) -> bool:
    """Return whether the cluster that this process has connected to at this address is still running."""
    if is_managed(address):
        return not has_ended(address)
    if not address.startswith("ray://") and connected_through_client():
        return True  # as far as Ray Client knows: the cluster's own address need not be reachable from here
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        require_listener(address, host, int(port))
    except (ClusterError, ValueError):
        return False
    return True


def drop_broken_connection(cluster: Cluster) -> None:
    """Stop an ephemeral cluster that no longer responds, so that a new one is started when next needed."""
    if cluster.origin == "ephemeral" and ephemeral.owns(cluster.address):
        ephemeral.stop()


def _same_address(one: str, other: str) -> bool:
    """Return whether two addresses refer to the same cluster, such as 127.0.0.1:6379 and this machine's own address."""
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
    """Return an error with the reason why Ray could not connect."""
    versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error))
    if "Version mismatch" in str(error) and versions:
        return version_problem(address, Versions(*versions[0]))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = f"{lines[0]} {lines[-1].strip()}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    return ClusterError(f"cannot connect to the cluster at {address}: {reason}")

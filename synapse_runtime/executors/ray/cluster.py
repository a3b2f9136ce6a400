"""Which cluster to use, how to reach it, and the ephemeral one that is started where there is no other.

The order: an address that was given, `RAY_ADDRESS`, the cluster that this process is connected to already, an
ephemeral one. An ephemeral cluster belongs to this process: it is started on first need, demands a token, and ends
when this process ends, however it ends.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import logging
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.worker import CALLERS_TMPDIR

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help
_START_SECONDS = 90.0
_PROBE_SECONDS = 5.0
# Ray puts sockets 62 characters below its temporary directory; a socket's path has room for 107.
_LONGEST_TEMP_ROOT = 30
# Those loggers of Ray, and below it, that speak on the way of a job.
_RAY_LOGGERS = (
    "ray",
    "ray._private.runtime_env.packaging",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "urllib3",
    "urllib3.connectionpool",
    "asyncio",
)
# Variables that speak of the test that runs now, not of the workers that will run many.
_NOT_FOR_WORKERS = ("PYTEST_", "COV_CORE_", "RAY_ADDRESS")


@dataclass(frozen=True)
class Cluster:
    """A cluster that can be reached.

    Attributes:
        address: What `ray.init` connects to; empty where only the dashboard's address is known.
        dashboard: The dashboard's URL, which the Jobs API is at; None where it is not known yet.
        token: The token that the cluster demands; None where it is Ray's own matter.
        origin: Where it came from, for people: `ephemeral`, `RAY_ADDRESS`, `given`.
        shares_disk: Whether workers see this machine's files and this Python.
    """

    address: str
    dashboard: str | None = None
    token: str | None = field(default=None, repr=False)
    origin: str = "given"
    shares_disk: bool = False

    @property
    def headers(self) -> dict[str, str] | None:
        """HTTP headers for the dashboard."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else None

    def is_gone(self) -> bool:
        """Tell whether this was our ephemeral cluster and is not running any more."""
        return self.origin == "ephemeral" and not _ephemeral.owns(self.address)


def require_ray() -> None:
    """Raise `ClusterError` with the fix where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ClusterError(
            "task and job mode need Ray, which is not installed: pip install 'pytest-synapse-harness[ray]'"
        )


def find_cluster(address: str | None = None, *, jobs: bool = True) -> Cluster:
    """Return the cluster to use, and start an ephemeral one if there is no other.

    Args:
        address: `host:port`, `ray://host:port`, `http(s)://dashboard`, or `auto` for any that runs on this machine.
        jobs: Whether the Jobs API is needed; without it an ephemeral cluster starts faster.

    Raises:
        ClusterError: Ray is not installed, the address is wrong or does not answer, or starting failed.
    """
    require_ray()
    origin = "given"
    if address in (None, "auto") and os.environ.get("RAY_ADDRESS"):
        address, origin = os.environ["RAY_ADDRESS"], "RAY_ADDRESS"
    if address not in (None, "auto"):
        assert address is not None
        return _given(address, origin)
    connected = connected_address()
    if connected is not None and not _ephemeral.made(connected):
        return Cluster(connected, origin="this process's", shares_disk=True)
    if address == "auto" and connected is None:
        running = _running_here()
        if running is not None:
            return Cluster(running, origin="running here", shares_disk=True)
    return _ephemeral.ensure(jobs=jobs)


def start_early(address: str | None = None, *, jobs: bool) -> None:
    """Begin to start an ephemeral cluster if one will be needed, without waiting for it."""
    taken = address is not None or os.environ.get("RAY_ADDRESS") or importlib.util.find_spec("ray") is None
    if not taken and connected_address() is None:
        _ephemeral.begin(jobs=jobs)


def describe(address: str | None = None) -> str:
    """Say in a few words which cluster `find_cluster` would use, without touching it."""
    if address in (None, "auto") and os.environ.get("RAY_ADDRESS"):
        return f"{os.environ['RAY_ADDRESS']} (RAY_ADDRESS)"
    if address not in (None, "auto"):
        return f"{address} (given)"
    if importlib.util.find_spec("ray") is None:
        return "none: Ray is not installed"
    return "ephemeral, started on first need"


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
    _departure.wait()
    connected = connected_address()
    if connected is not None and (_same_address(connected, cluster.address) or _same_client(cluster.address)):
        return connected
    if connected is not None:
        if not _ephemeral.made(connected):
            raise ClusterError(f"this process is connected to {connected} already, not to {cluster.address}")
        if is_alive(connected):
            disconnect()
        else:
            abandon()
            _departure.wait()
    try:
        with _untouched_process(), quiet(), _authentication(cluster.token):
            _import_ray_with(cluster.token)
            import ray

            with _no_error_printer():
                ray.init(
                    address=cluster.address,
                    namespace=f"synapse-{os.getpid()}-{secrets.token_hex(4)}",
                    log_to_driver=False,
                    logging_level="error",
                    configure_logging=False,
                )
    except Exception as error:
        raise ClusterError(f"cannot connect to the cluster at {cluster.address}: {_reason(error)}") from error
    return connected_address() or cluster.address


def disconnect() -> None:
    """End this process's connection as a Ray driver, if it has one."""
    if "ray" in sys.modules:
        import ray

        with quiet():
            ray.shutdown()


class _Departure:
    """The end of a connection to a cluster that is gone. Ray takes up to 15 s for that, so it goes on beside us."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Begin to end the connection, if there is one and nobody does yet."""
        if self._thread is None and connected_address() is not None:
            self._thread = threading.Thread(target=disconnect, name="synapse-departure", daemon=True)
            self._thread.start()
            atexit.register(self.wait)  # before Ray's own end

    def wait(self) -> None:
        """Wait until it has ended."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            atexit.unregister(self.wait)


_departure = _Departure()


def abandon() -> None:
    """Leave a cluster that is gone, without waiting; the next `connect` waits until that is done."""
    _departure.begin()


def dashboard_of(cluster: Cluster) -> str:
    """Return the URL of the cluster's dashboard, asking the cluster where need be.

    Raises:
        ClusterError: The cluster has none, or its address does not tell.
    """
    if cluster.dashboard is not None:
        return cluster.dashboard
    if cluster.address.startswith("ray://"):
        raise ClusterError(
            f"job mode needs the dashboard's address, http://host:8265, not Ray Client's ({cluster.address})"
        )
    connect(cluster)
    # There is no public way to ask a cluster that one is connected to; tests/runtime/test_ray_private.py watches it.
    from ray._private.worker import get_dashboard_url

    url = get_dashboard_url()
    if not url:
        raise ClusterError(f"the cluster at {cluster.address} has no dashboard, which job mode needs")
    return url if "://" in url else f"http://{url}"


def _import_ray_with(token: str | None) -> None:
    """Import Ray so that it knows of this token; call it with the token in the environment.

    Ray reads its settings once, on import. Where somebody imported it before, they are read again: there is no public
    way for that, nor is it safe while Ray is connected, so it happens that once only.
    """
    late = "ray" in sys.modules
    import ray  # noqa: F401

    if token is not None and late and _ephemeral.first_use_of(token):
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _untouched_process() -> Iterator[None]:
    """Put back what Ray takes over in a driver: the handler of SIGTERM, and variables.

    One of them, PYTHONBREAKPOINT, would make `breakpoint()` in local mode Ray's own debugger.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if in_main_thread else None
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
def quiet() -> Iterator[None]:
    """Keep Ray's own warnings and log records away from the user's: a test suite that checks them is not about Ray."""
    with no_log_records(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Silence:
    """Keeps log records of Ray away while somebody wants that; the last to leave puts the levels back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = 0
        self._levels: list[tuple[logging.Logger, int]] = []

    def begin(self) -> None:
        with self._lock:
            self._wanted += 1
            if self._wanted == 1:
                self._levels = [(logger, logger.level) for logger in map(logging.getLogger, _RAY_LOGGERS)]
                for logger, _ in self._levels:
                    logger.setLevel(logging.ERROR)

    def end(self) -> None:
        with self._lock:
            self._wanted -= 1
            if self._wanted == 0:
                for logger, level in self._levels:
                    logger.setLevel(level)


_silence = _Silence()


@contextlib.contextmanager
def no_log_records() -> Iterator[None]:
    """Keep Ray's log records away; unlike `quiet`, also while other threads run, and in several at once."""
    _silence.begin()
    try:
        yield
    finally:
        _silence.end()


@contextlib.contextmanager
def only_this_dashboard(url: str) -> Iterator[None]:
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
        _probe(address, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        shares_disk = _is_this_machine(parts.hostname or "")
        return Cluster("", dashboard=address.rstrip("/"), origin=origin, shares_disk=shares_disk)
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit() or not host:
        raise ClusterError(
            f"{address!r} is not a cluster's address: host:port, ray://host:port, http(s)://dashboard, or auto"
        )
    _probe(address, host, int(port))
    return Cluster(address, origin=origin, shares_disk=_is_this_machine(host))


def _probe(address: str, host: str | None, port: int) -> None:
    """Find out in seconds what Ray itself takes minutes to tell: that nobody answers."""
    try:
        socket.create_connection((host or "", port), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise ClusterError(f"no cluster answers at {address}: {error.strerror or error}") from None


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


def is_alive(address: str) -> bool:
    """Tell whether the cluster that this process is connected to, at this address, is still there."""
    if _ephemeral.made(address):
        return _ephemeral.owns(address)
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        _probe(address, host, int(port))
    except (ClusterError, ValueError):
        return False
    return True


def still_ours(address: str) -> bool:
    """Tell whether this address is not that of an ephemeral cluster of ours that has ended. Costs nearly nothing."""
    return not _ephemeral.made(address) or _ephemeral.owns(address)


def forget_broken(cluster: Cluster) -> None:
    """End an ephemeral cluster that does not answer any more, so that a new one is started on next need."""
    if cluster.origin == "ephemeral" and _ephemeral.owns(cluster.address):
        _ephemeral.stop()


def connected_address() -> str | None:
    """Return the address that this process is connected to as a Ray driver, or None."""
    if "ray" not in sys.modules:
        return None
    import ray

    if not getattr(ray, "is_initialized", bool)():
        return None
    return str(ray.get_runtime_context().gcs_address)


def _same_address(one: str, other: str) -> bool:
    """Tell whether two addresses mean the same cluster: 127.0.0.1:6379 is the one at this machine's own address."""
    if one == other:
        return True
    (one_host, _, one_port), (other_host, _, other_port) = one.rpartition(":"), other.rpartition(":")
    return one_port == other_port and _is_this_machine(one_host) and _is_this_machine(other_host)


def _same_client(address: str) -> bool:
    if not address.startswith("ray://"):
        return False
    from ray.util.client import ray as client

    return bool(client.is_connected())


def _running_here() -> str | None:
    """Return the address of a cluster that `ray start` runs on this machine, if there is one."""
    path = Path(tempfile.gettempdir(), "ray", "ray_current_cluster")
    try:
        address = path.read_text(encoding="utf-8").strip()
        host, _, port = address.rpartition(":")
        _probe(address, host, int(port))
    except (OSError, ValueError, ClusterError):
        return None
    return address


def _reason(error: BaseException) -> str:
    """Return why Ray could not connect, in a line: it hides a refused token below a general error."""
    below: BaseException | None = error
    while below is not None:
        if "InvalidAuthToken" in str(below):
            return (
                "it demands a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH "
                "unless the token is in ~/.ray/auth_token"
            )
        below = below.__cause__ or below.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _Ephemeral:
    """The ephemeral cluster of this process: at most one at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._cluster: Cluster | None = None
        self._temp_dir: Path | None = None
        # One token for all clusters of this process, one after another: Ray reads it once.
        self._token = secrets.token_hex(32)
        self._token_known = False
        self._jobs = False
        self._pid = 0
        self._past: set[str] = set()
        self._lock = threading.RLock()

    def owns(self, address: str) -> bool:
        """Tell whether this address is that of the cluster that runs now."""
        running = self._process is not None and self._process.poll() is None
        return running and self._cluster is not None and self._cluster.address == address

    def made(self, address: str) -> bool:
        """Tell whether this address is, or was, that of a cluster of ours."""
        return address in self._past

    def first_use_of(self, token: str) -> bool:
        """Tell once, and only of our own token, that Ray does not know it yet."""
        first = token == self._token and not self._token_known
        self._token_known = self._token_known or first
        return first

    def begin(self, *, jobs: bool, num_cpus: int | None = None, num_gpus: int | None = None) -> None:
        """Start the owner process, if none runs; do not wait for the cluster."""
        with self._lock:
            if self._pid != os.getpid():  # a fork of ours: the cluster is the parent's, not this process's
                self._process = self._cluster = None
            if self._process is not None and self._process.poll() is None:
                return
            self._forget()
            self._pid, self._jobs = os.getpid(), jobs
            self._temp_dir = Path(tempfile.mkdtemp(prefix="synapse-", dir=_temp_root()))
            options = {
                "temp_dir": str(self._temp_dir),
                "dashboard": jobs,
                "num_cpus": num_cpus,
                "num_gpus": num_gpus,
            }
            with (self._temp_dir / "cluster.log").open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "synapse_runtime.executors.ray.cluster_main", json.dumps(options)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=self._temp_dir,
                    env=_cluster_environment(self._token, self._temp_dir),
                    start_new_session=True,
                )
            atexit.register(self.stop)

    def ensure(self, *, jobs: bool) -> Cluster:
        """Return the running cluster; start it, or start it anew with the Jobs API, where need be."""
        with self._lock:
            running = self._process is not None and self._process.poll() is None and self._pid == os.getpid()
            if running and jobs and not self._jobs:
                self.stop()
            self.begin(jobs=jobs)
            if self._cluster is None:
                self._cluster = self._wait_until_ready()
                self._past.add(self._cluster.address)
            return self._cluster

    def stop(self) -> None:
        """End the cluster and everything of it; wait until it is gone."""
        with self._lock:
            process = self._process
            if process is None or self._pid != os.getpid():
                return
            if self._cluster is not None and connected_address() == self._cluster.address:
                disconnect()
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self._kill(process)
            self._forget()
            atexit.unregister(self.stop)

    def _wait_until_ready(self) -> Cluster:
        assert self._process is not None
        assert self._process.stdout is not None
        line = b""
        deadline = time.monotonic() + _START_SECONDS
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            readable, _, _ = select.select([self._process.stdout], [], [], max(left, 0))
            chunk = os.read(self._process.stdout.fileno(), 65536) if readable else b""
            if not chunk:
                reason = "it ended" if readable else f"not ready within {_START_SECONDS:g} s"
                said = self._last_lines()
                self.stop()
                raise ClusterError(f"the local Ray cluster did not start: {reason}.{said}")
            line += chunk
        ready = json.loads(line)
        dashboard = f"http://{ready['dashboard']}" if self._jobs and ready["dashboard"] else None
        return Cluster(ready["address"], dashboard, self._token, origin="ephemeral", shares_disk=True)

    def _last_lines(self, count: int = 12) -> str:
        if self._temp_dir is None:
            return ""
        with contextlib.suppress(OSError):
            lines = (self._temp_dir / "cluster.log").read_text(errors="replace").splitlines()[-count:]
            return "\n  " + "\n  ".join(lines) if lines else ""
        return ""

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _forget(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        if self._temp_dir is not None:
            shutil.rmtree(self._temp_dir, ignore_errors=True)
        self._process = self._cluster = self._temp_dir = None


_ephemeral = _Ephemeral()


def stop_ephemeral() -> None:
    """End this process's ephemeral cluster now, rather than when the process ends."""
    _ephemeral.stop()


def _temp_root() -> str:
    root = tempfile.gettempdir()
    return root if len(root) <= _LONGEST_TEMP_ROOT or not Path("/tmp").is_dir() else "/tmp"


def _cluster_environment(token: str, temp_dir: Path) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_WORKERS)}
    kept.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "PYTHONPATH" in kept:  # the workers have other working directories
        paths = kept["PYTHONPATH"].split(os.pathsep)
        kept["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths if path)
    # Ray's own processes leave temporary files when they are killed; workers get the caller's directory back.
    kept[CALLERS_TMPDIR] = kept.get("TMPDIR", "")
    kept["TMPDIR"] = str(temp_dir)
    return kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}

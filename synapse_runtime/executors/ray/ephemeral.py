"""The ephemeral cluster of this process: started on first need, locked by a token, gone when the process is.

It is owned by a process of its own, `cluster_main`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.ray.connection import Cluster, connected_address, disconnect
from synapse_runtime.executors.worker import CALLERS_TMPDIR

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help
_START_SECONDS = 90.0
# Ray puts sockets 62 characters below its temporary directory; a socket's path has room for 107.
_LONGEST_TEMP_ROOT = 30
# Variables that speak of the test that runs now, not of the workers that will run many.
_NOT_FOR_WORKERS = ("PYTEST_", "COV_CORE_", "RAY_ADDRESS")


class Ephemeral:
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


ephemeral = Ephemeral()


def has_ended(address: str) -> bool:
    """Tell whether this address is that of an ephemeral cluster of ours that has ended. Costs nearly nothing."""
    return ephemeral.made(address) and not ephemeral.owns(address)


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

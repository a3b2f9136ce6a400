"""A cluster's address, and this process's connection to one as a Ray driver: at most one at a time."""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from synapse_runtime.executors.ray.log_suppression import suppress_log_records, suppress_ray_output

if TYPE_CHECKING:
    from synapse_runtime.executors.base import Backend

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines


@dataclass(frozen=True)
class Cluster:
    """A cluster that can be reached.

    Attributes:
        address: The address that `ray.init` connects to; empty if only the dashboard's address is known.
        dashboard: The dashboard's URL, which serves the Jobs API; None if it is not known yet.
        token: The token that the cluster requires; None if Ray's own settings apply.
        origin: How it was chosen, for display: `ephemeral`, `warm`, `RAY_ADDRESS`, `given`.
        shares_disk: Whether workers share this machine's file system and this Python.
    """

    address: str
    dashboard: str | None = None
    token: str | None = field(default=None, repr=False)
    origin: str = "given"
    shares_disk: bool = False

    @property
    def is_managed(self) -> bool:
        """Whether synapse started it, so that it runs on this machine only."""
        return self.origin in ("ephemeral", "warm")

    def as_backend(self) -> Backend:
        """Return it as all executors describe what they send calls to."""
        from synapse_runtime.executors.base import Backend

        return Backend("cluster", self.address or self.dashboard or "", self.origin)

    @property
    def headers(self) -> dict[str, str] | None:
        """HTTP headers for the dashboard."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else None


def connected_address() -> str | None:
    """Return the address that this process is connected to as a Ray driver, or None."""
    if "ray" not in sys.modules:
        return None
    import ray

    if not getattr(ray, "is_initialized", bool)():
        return None
    return str(ray.get_runtime_context().gcs_address)


def connected_through_client() -> bool:
    """Return whether this process is connected through Ray Client, `ray://`, which reaches only the client server."""
    if connected_address() is None:
        return False
    from ray.util.client import ray as client

    return bool(client.is_connected())


def disconnect() -> None:
    """Disconnect this process as a Ray driver, if it is connected."""
    if "ray" in sys.modules:
        import ray

        with suppress_ray_output():
            ray.shutdown()


class BackgroundShutdown:
    """Disconnects from a cluster that has ended. Ray takes up to 15 s for that, so it is done in the background."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start disconnecting, if this process is connected and has not started yet."""
        if self._thread is None and connected_address() is not None:
            self._thread = threading.Thread(target=self._run, name="synapse-disconnect", daemon=True)
            self._thread.start()
            atexit.register(self.wait)  # before Ray's own exit handler

    def _run(self) -> None:
        import ray

        # Not `suppress_ray_output`: warning filters are process-wide, and the process keeps running.
        with suppress_log_records(), contextlib.suppress(Exception):  # the cluster has ended: errors do not matter
            ray.shutdown()

    def wait(self) -> None:
        """Wait until this process is disconnected."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            atexit.unregister(self.wait)


background_shutdown = BackgroundShutdown()

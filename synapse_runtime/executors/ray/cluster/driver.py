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

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help


@dataclass(frozen=True)
class Cluster:
    """A cluster that can be reached.

    Attributes:
        address: What `ray.init` connects to; empty where only the dashboard's address is known.
        dashboard: The dashboard's URL, which the Jobs API is at; None where it is not known yet.
        token: The token that the cluster demands; None where it is Ray's own matter.
        origin: Where it came from, for people: `ephemeral`, `warm`, `RAY_ADDRESS`, `given`.
        shares_disk: Whether workers see this machine's files and this Python.
    """

    address: str
    dashboard: str | None = None
    token: str | None = field(default=None, repr=False)
    origin: str = "given"
    shares_disk: bool = False

    @property
    def is_managed(self) -> bool:
        """Whether we have started it: then it is on this machine alone."""
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
    """Tell whether this process's connection is one of Ray Client, `ray://`, which reaches the cluster's door only."""
    if connected_address() is None:
        return False
    from ray.util.client import ray as client

    return bool(client.is_connected())


def disconnect() -> None:
    """End this process's connection as a Ray driver, if it has one."""
    if "ray" in sys.modules:
        import ray

        with suppress_ray_output():
            ray.shutdown()


class BackgroundShutdown:
    """The end of a connection to a cluster that is gone. Ray takes up to 15 s for that, so it goes on beside us."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to end the connection, if there is one and nobody does yet."""
        if self._thread is None and connected_address() is not None:
            self._thread = threading.Thread(target=self._run, name="synapse-departure", daemon=True)
            self._thread.start()
            atexit.register(self.wait)  # before Ray's own end

    def _run(self) -> None:
        import ray

        # Not `quiet`: filters of warnings are the whole process's, which goes on meanwhile.
        with suppress_log_records(), contextlib.suppress(Exception):  # nobody is left to whom it matters
            ray.shutdown()

    def wait(self) -> None:
        """Wait until it has ended."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            atexit.unregister(self.wait)


background_shutdown = BackgroundShutdown()

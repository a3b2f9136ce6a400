"""The backend of remote mode, for tests of code that talks to one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synapse_runtime.executors.remote.backend import Backend

__all__ = ["SynapseBackend"]


@dataclass(frozen=True)
class SynapseBackend:
    """The value of the fixture `synapse_backend`.

    Attributes:
        host: The backend's URL.
        token: An access token for it.
        client: A client of its API, with typed results: `jobs()`, `job(id)`, `console_logs(id)`, `record(id)`,
            `agents()`, `stop(id)`.
    """

    host: str
    token: str = field(repr=False)
    client: Backend = field(repr=False)

"""Sessions of the page: one-time codes and cookies. Each stands for an access token, and ends with it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from synapse_runtime.server.store import hashed

CODE_SECONDS: Final = 5 * 60
SESSION_SECONDS: Final = 12 * 60 * 60
_MAX_SESSIONS = 1000


@dataclass(frozen=True)
class _Grant:
    token_hash: str
    expires: float


class Sessions:
    """The sessions of a server, in memory: they end with it. Of secrets, only hashes are stored.

    Args:
        clock: Returns the current time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._codes: dict[str, _Grant] = {}
        self._sessions: dict[str, _Grant] = {}

    def create_code(self, token_hash: str) -> str:
        """Return a new code, with which one session can be opened within `CODE_SECONDS`."""
        code = secrets.token_urlsafe(32)
        with self._lock:
            self._codes[hashed(code)] = _Grant(token_hash, self._clock() + CODE_SECONDS)
        return code

    def redeem(self, code: str) -> str | None:
        """Use up a code, and return the hash of its token; None if the code is not valid."""
        with self._lock:
            return self._valid(self._codes.pop(hashed(code), None))

    def open(self, token_hash: str) -> str:
        """Open a session, and return the value of its cookie. The oldest session ends if there are too many."""
        secret = secrets.token_urlsafe(32)
        with self._lock:
            self._sessions = {key: grant for key, grant in self._sessions.items() if self._valid(grant)}
            while len(self._sessions) >= _MAX_SESSIONS:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[hashed(secret)] = _Grant(token_hash, self._clock() + SESSION_SECONDS)
        return secret

    def token_hash(self, secret: str) -> str | None:
        """Return the hash of a session's token; None if there is no such session, or it has ended."""
        with self._lock:
            return self._valid(self._sessions.get(hashed(secret)))

    def close(self, secret: str) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(hashed(secret), None)

    def _valid(self, grant: _Grant | None) -> str | None:
        return None if grant is None or grant.expires <= self._clock() else grant.token_hash

"""Who calls: tokens, what they permit, and the names that a request may be addressed to."""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from synapse_runtime.server.store import Job, Store, TokenRow, hashed
from synapse_runtime.server.wire import ApiError

SCOPES: Final = ("read", "run", "publish", "admin")
# The owner of the token that the first start writes.
LOCAL_OWNER: Final = "local"
_SCHEME = re.compile(r"(?:token|bearer)\s+", re.IGNORECASE)
_FIX = "log in with `synapse login`, or set SYNAPSE_ACCESS_TOKEN"


def new_token() -> str:
    """Return a new random token of 256 bits."""
    return "syn_" + secrets.token_hex(32)


@dataclass(frozen=True)
class Caller:
    """Who makes a request.

    Attributes:
        owner: Whose jobs it may see, unless it is an admin.
        scopes: What it may do.
        job_id: The only job that it may see, if it is the token of a run.
    """

    owner: str
    scopes: frozenset[str]
    job_id: str | None = None

    @property
    def is_admin(self) -> bool:
        """Whether it may do everything."""
        return "admin" in self.scopes

    @property
    def owner_filter(self) -> dict[str, str]:
        """The filter of the store for the jobs that it may see."""
        if self.job_id is not None:
            return {"id": self.job_id}
        return {} if self.is_admin else {"owner": self.owner}

    def may(self, scope: str) -> bool:
        """Return whether it has a scope."""
        return scope in self.scopes or self.is_admin

    def may_see(self, job: Job) -> bool:
        """Return whether it may see a job."""
        if self.job_id is not None:
            return job.id == self.job_id
        return self.is_admin or job.owner == self.owner

    def may_set_status(self, job: Job) -> bool:
        """Return whether it may set the status of a job: as the run itself, or as an admin."""
        return self.is_admin or self.job_id == job.id


def token_in(headers: Iterable[tuple[str, str]]) -> str | None:
    """Return the token of a request: in `Synapse-Access-Token` or `Authorization`, with or without its scheme."""
    found = {name.lower(): value for name, value in headers}
    for name in ("synapse-access-token", "authorization"):
        value = _SCHEME.sub("", found.get(name, "").strip(), count=1).strip()
        if value:
            return value
    return None


def authenticate(store: Store, token: str | None) -> Caller:
    """Return who has a token.

    Raises:
        ApiError: 401; there is no token, or it is unknown, expired or revoked.
    """
    if token is None:
        raise ApiError(401, f"no access token: {_FIX}", headers={"WWW-Authenticate": "Bearer"})
    return authenticate_hash(store, hashed(token))


def authenticate_hash(store: Store, token_hash: str) -> Caller:
    """Return who has the token with this hash.

    Raises:
        ApiError: 401; the token is unknown, expired or revoked.
    """
    row = store.token(token_hash)
    if row is None or not hmac.compare_digest(row.hash, token_hash):
        raise ApiError(401, f"the access token is not valid: {_FIX}", headers={"WWW-Authenticate": "Bearer"})
    problem = _problem_with(row)
    if problem:
        raise ApiError(401, f"the access token {problem}: {_FIX}", headers={"WWW-Authenticate": "Bearer"})
    return Caller(row.owner, frozenset(row.scopes), row.job_id)


def _problem_with(row: TokenRow) -> str | None:
    if row.revoked is not None:
        return "belongs to a run that has ended" if row.job_id else "was revoked"
    if row.expires is not None and row.expires < time.time():
        return "has expired"
    return None


def local_token(store: Store, file: Path | None) -> str:
    """Return the admin's token of this server: that of the file, or a new one, which is written to it.

    Args:
        store: Where tokens are stored.
        file: The file; None to keep a new token in memory only.
    """
    if file is not None and file.exists():
        token = file.read_text(encoding="ascii").strip()
        row = store.token(hashed(token))
        if row is not None and _problem_with(row) is None:
            return token
        file.unlink()
    token = new_token()
    store.add_token(token, name="local", owner=LOCAL_OWNER, scopes=["admin"])
    if file is not None:
        write_private(file, token + "\n")
    return token


def write_private(file: Path, text: str) -> None:
    """Write a file that only this user can read; replace it as a whole."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(text)
    temporary.replace(file)


class AllowedHosts:
    """The names that a request's `Host` may have: a page on another site cannot make a browser send them.

    Args:
        bound: The address that the server listens on.
    """

    def __init__(self, bound: str) -> None:
        self._only_loopback = is_loopback(bound)
        self._names = {"localhost", bound.lower()}
        if not self._only_loopback:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def permit(self, header: str | None) -> bool:
        """Return whether a request with this header is for this server."""
        if not header:
            return False
        name = header.lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.rpartition(":")[0] or name
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self._only_loopback  # DNS rebinding needs a name


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"

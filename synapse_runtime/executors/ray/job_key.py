"""The keys that supervisors sign a job's log with: only the user who has submitted a job has its key."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import os
import secrets
import warnings
from pathlib import Path

from synapse_runtime.executors.ray.cluster.persistent import state_file

_BYTES = 32


def job_key(job_id: str) -> bytes:
    """Return the key of a job, as the user who submits it.

    It is derived from a key of this user, a file that only this user can read. Without such a file, other processes
    of this user cannot verify the job's log.
    """
    return hmac.digest(_user_key(), job_id.encode(), hashlib.sha256)


@functools.cache
def _user_key() -> bytes:
    try:
        file = state_file().with_name("job-key")
        return _read(file) or _create(file)
    except (OSError, RuntimeError):  # no home directory, or one that cannot be written to
        return secrets.token_bytes(_BYTES)


def _read(file: Path) -> bytes | None:
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        key = opened.read(_BYTES)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077 or len(key) < _BYTES:
        warnings.warn(
            f"{file} is not used, as another user may know it, or it is too short: delete it. Until then other "
            "processes of yours cannot verify the logs of this process's jobs",
            stacklevel=2,
        )
        raise PermissionError(file)
    return key


def _create(file: Path) -> bytes:
    """Create the key; if another process does so at the same time, return that process's key."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}-{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as opened:
            opened.write(secrets.token_bytes(_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(draft, file)
    finally:
        draft.unlink()
    key = _read(file)
    if key is None:
        raise FileNotFoundError(file)
    return key

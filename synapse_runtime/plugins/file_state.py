"""Detect whether a file has changed since it was read. Called often, so a check takes about a microsecond."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

# File systems have coarse timestamps: a file written more recently than this can change and keep its mtime.
_RECENT_NS = 50_000_000


class FileSnapshot(NamedTuple):
    """The state of a file at one moment.

    Attributes:
        path: Its path.
        identity: Its modification time, size and inode: if they are the same, it has not changed.
        content: The hash of its bytes; None if unknown.
        is_recent: Whether it was written so recently that the next change might not show in `identity`.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w") as file:
        ...     before = FileSnapshot.read(file.name)
        ...     _ = file.write("edited")
        ...     file.flush()
        ...     before.is_current(), FileSnapshot.read(file.name).is_current()
        (False, True)
    """

    path: str
    identity: tuple[int, int, int]
    content: int | None
    is_recent: bool

    @classmethod
    def read(cls, path: str, limit: int = -1) -> FileSnapshot:
        """Take a snapshot of a file.

        Args:
            path: Its path.
            limit: How many bytes of its content count; by default all.

        Raises:
            OSError: The file cannot be read.
        """
        status = os.stat(path)
        with open(path, "rb") as file:
            content = hash(file.read(limit))
        return cls(path, _identity(status), content, is_recent(status))

    def is_surely_current(self) -> bool:
        """Return whether the file is certainly unchanged, without reading it; False if that is uncertain."""
        try:
            return not self.is_recent and _identity(os.stat(self.path)) == self.identity
        except OSError:
            return False

    def is_current(self) -> bool:
        """Return whether the file exists and has the same content."""
        if self.is_surely_current():
            return True
        try:
            return FileSnapshot.read(self.path).content == self.content
        except OSError:
            return False


class DirectorySnapshot(NamedTuple):
    """The state of a directory at one moment; detects only that entries were added or removed.

    Attributes:
        path: Its path.
        changed_at: When an entry was last added or removed, in nanoseconds.
        is_recent: Whether that was so recent that the next change might not show in `changed_at`.
    """

    path: str
    changed_at: int
    is_recent: bool

    @classmethod
    def read(cls, path: str) -> DirectorySnapshot:
        """Take a snapshot of a directory.

        Raises:
            OSError: The directory does not exist.
        """
        status = os.stat(path)
        return cls(path, status.st_mtime_ns, is_recent(status))

    def is_surely_current(self) -> bool:
        """Return whether certainly no entry was added or removed; False if that is uncertain."""
        try:
            return not self.is_recent and os.stat(self.path).st_mtime_ns == self.changed_at
        except OSError:
            return False


def is_recent(status: os.stat_result) -> bool:
    """Return whether a file was written so recently that the next change may leave its mtime unchanged.

    Always true for a file that is newer than the clock, as after `touch -d tomorrow`.
    """
    return _file_time_ns() - status.st_mtime_ns < _RECENT_NS


def _file_time_ns() -> int:
    """Return the time as the kernel writes it into files, which stays true if a test freezes Python's clocks."""
    if not hasattr(os, "memfd_create"):
        return time.time_ns()
    descriptor = os.memfd_create("now")
    try:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mtime_ns, status.st_size, status.st_ino

"""Whether a file is still as it was when it was read; asked often, so it costs a microsecond."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

# A file system's clock is this coarse: what was written less long ago can change, and its time still be the same.
_RECENT_NS = 50_000_000


class FileSnapshot(NamedTuple):
    """A file as it was.

    Attributes:
        path: Where it is.
        identity: What tells at a glance that it has not changed: time, size and number.
        content: The hash of its bytes; None where that is not known.
        young: Whether a change might not show in `identity`, as the last one was so short ago.

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
    def read(cls, path: str) -> FileSnapshot:
        """Look at a file.

        Raises:
            OSError: It cannot be read.
        """
        status = os.stat(path)
        with open(path, "rb") as file:
            content = hash(file.read())
        return cls(path, _identity(status), content, is_recent(status))

    @property
    def changed_at(self) -> int:
        """When it was written last, in nanoseconds."""
        return self.identity[0]

    def is_surely_current(self) -> bool:
        """Tell at a glance whether the file is as it was; if not, it may be nevertheless."""
        try:
            return not self.is_recent and _identity(os.stat(self.path)) == self.identity
        except OSError:
            return False

    def is_current(self) -> bool:
        """Tell whether the file is there, with the same content."""
        if self.is_surely_current():
            return True
        try:
            return FileSnapshot.read(self.path).content == self.content
        except OSError:
            return False


class DirectorySnapshot(NamedTuple):
    """What is in a directory, as it was: only that things came or went is noticed.

    Attributes:
        path: Where it is.
        changed_at: When something came or went last, in nanoseconds.
        young: Whether a change might not show in that, as the last one was so short ago.
    """

    path: str
    changed_at: int
    is_recent: bool

    @classmethod
    def read(cls, path: str) -> DirectorySnapshot:
        """Look at a directory.

        Raises:
            OSError: There is none.
        """
        status = os.stat(path)
        return cls(path, status.st_mtime_ns, is_recent(status))

    def is_surely_current(self) -> bool:
        """Tell at a glance whether nothing has come or gone; if not, that may be so nevertheless."""
        try:
            return not self.is_recent and os.stat(self.path).st_mtime_ns == self.changed_at
        except OSError:
            return False


def is_recent(status: os.stat_result) -> bool:
    """Tell whether something was written so short ago that the next change may leave it the same time."""
    return time.time_ns() - status.st_mtime_ns < _RECENT_NS


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mtime_ns, status.st_size, status.st_ino

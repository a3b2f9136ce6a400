"""What a worker's action has emitted so far, in memory that outlives the worker's process."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple

from synapse_runtime import serialization
from synapse_runtime.core.interrupts import shielded

# Each entry is preceded by its size. The size is written last, so a reader never sees a part of an entry.
_SIZE = struct.Struct("<Q")
_INITIAL_BYTES = 1 << 16


class Journal:
    """A list of pickled entries in an unnamed file, which is mapped into memory: adding one takes no system call.

    Whoever has the file open, by `descriptor`, can read it with `read_journal` after this process has died. Any thread
    may add entries. A forked child process adds none.

    Attributes:
        position: The end of the entries.
        count: The number of entries.

    Example:
        >>> journal = Journal()
        >>> journal.add(("log", "started"))
        >>> list(decode_entries(journal.since(0)))
        [('log', 'started')]
        >>> journal.close()
    """

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the worker
        self.descriptor = self._file.fileno()
        os.ftruncate(self.descriptor, _INITIAL_BYTES)
        self._memory = mmap.mmap(self.descriptor, _INITIAL_BYTES)
        self._lock = threading.Lock()
        self.position = 0
        self.count = 0
        self.adopt()

    def adopt(self) -> None:
        """Make this process the one that adds entries; a forked child process of it adds none."""
        self._owner = os.getpid()

    def reset(self) -> None:
        """Remove all entries."""
        if not self.position:
            return
        with self._lock:
            self.position = self.count = 0
            self._memory.close()
            os.ftruncate(self.descriptor, 0)  # what is read beyond the end of the old content is zero
            os.ftruncate(self.descriptor, _INITIAL_BYTES)
            self._memory = mmap.mmap(self.descriptor, _INITIAL_BYTES)

    def add(self, entry: Any) -> None:
        """Add an entry, if it can be pickled and there is space for it: `count` tells.

        Args:
            entry: Any value.
        """
        if os.getpid() == self._owner:
            with contextlib.suppress(Exception):
                self._add(serialization.dumps(entry))

    def _add(self, data: bytes) -> None:
        with shielded(), self._lock:
            start = self.position
            end = start + _SIZE.size + len(data)
            if end + _SIZE.size > len(self._memory):
                self._grow(end + _SIZE.size)
            self._memory[start + _SIZE.size : end] = data
            _SIZE.pack_into(self._memory, start, len(data))
            self.position = end
            self.count += 1

    def close(self) -> None:
        """Delete the journal."""
        self._memory.close()
        self._file.close()

    def since(self, position: int) -> bytes:
        """Return the entries that were added after `position`, for `decode_entries`."""
        with self._lock:
            return self._memory[position : self.position]

    def _grow(self, needed: int) -> None:
        size = max(2 * len(self._memory), needed)
        if hasattr(os, "posix_fallocate"):  # writing to memory for which the disk has no space would kill the process
            os.posix_fallocate(self.descriptor, 0, size)
        else:
            os.ftruncate(self.descriptor, size)
        self._memory.close()
        self._memory = mmap.mmap(self.descriptor, size)


class Journals(NamedTuple):
    """The journals of a worker: of events, as tuples; and of what is logged, as `LogEntry`."""

    events: Journal
    logs: Journal

    @classmethod
    def create(cls) -> Journals:
        """Create both."""
        return cls(Journal(), Journal())

    def adopt(self) -> None:
        """Make this process the one that adds entries."""
        self.events.adopt()
        self.logs.adopt()

    def reset(self) -> None:
        """Remove all entries."""
        self.events.reset()
        self.logs.reset()


def read_journal(descriptor: int) -> bytes:
    """Return all entries of a journal, by a descriptor of its file."""
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as memory:
        end = 0
        while end + _SIZE.size <= len(memory):
            (size,) = _SIZE.unpack_from(memory, end)
            if not size:
                break
            end += _SIZE.size + size
        return memory[:end]


def encode_entries(entries: Iterable[Any]) -> bytes:
    """Encode entries as a journal does."""
    encoded = map(serialization.dumps, entries)
    return b"".join(part for data in encoded for part in (_SIZE.pack(len(data)), data))


def decode_entries(data: bytes, loads: Callable[[bytes], Any] = serialization.loads) -> Iterator[Any]:
    """Yield the entries of a journal.

    Args:
        data: What `Journal.since` or `read_journal` has returned.
        loads: Unpickles an entry.
    """
    position = 0
    while position < len(data):
        (size,) = _SIZE.unpack_from(data, position)
        position += _SIZE.size
        yield loads(data[position : position + size])
        position += size

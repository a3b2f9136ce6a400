"""What an action in a worker has printed, logged and warned of: replayed in its caller's process."""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
import sys
import tempfile
from dataclasses import dataclass, field
from typing import IO

from synapse_runtime.core.log_capture import (
    CapturedWarning,
    LogEntry,
    UnhandledError,
    handlers_of,
    writes_to_terminal,
)

# A piece of output: the number of events before it, its stream, its number of characters.
OutputPosition = tuple[int, str, int]


@dataclass
class Captured:
    """The output of an action in a worker.

    Attributes:
        stdout: Everything written to file descriptor 1, including by child processes.
        stderr: Everything written to file descriptor 2.
        records: The `logging` records of all loggers.
        warnings: Python warnings.
        unhandled: Errors that ended a thread, or that a finalizer has raised, if the caller has a hook for them.
        already_printed: Indexes of the records that a handler in the worker has printed; they are in its output.
        output_positions: The positions of output between the events, if the run was streamed.
    """

    stdout: str = ""
    stderr: str = ""
    records: list[logging.LogRecord] = field(default_factory=list)
    warnings: list[CapturedWarning] = field(default_factory=list)
    unhandled: list[UnhandledError] = field(default_factory=list)
    already_printed: set[int] = field(default_factory=set)
    output_positions: list[OutputPosition] = field(default_factory=list, repr=False)

    def add(self, entry: LogEntry) -> None:
        """Add a log record, a warning or an unhandled error."""
        if isinstance(entry, CapturedWarning):
            self.warnings.append(entry)
        elif isinstance(entry, UnhandledError):
            self.unhandled.append(entry)
        else:
            if entry.printed:
                self.already_printed.add(len(self.records))
            self.records.append(entry.record)

    def replay(self, *, output: bool = True) -> Exception | None:
        """Print, log, warn and report errors in this process, as the action would have done here.

        Args:
            output: Whether to print as well; False if the output was already streamed.

        Returns:
            The first exception of a handler or hook, which would have been raised in the action, such as by pytest's
            for a message that does not fit its arguments. Handlers of `logging` itself report it instead.
        """
        __tracebackhide__ = True
        if output and self.stdout:
            sys.stdout.write(self.stdout)
            sys.stdout.flush()
        if output and self.stderr:
            sys.stderr.write(self.stderr)
            sys.stderr.flush()
        problem: Exception | None = None
        for index, record in enumerate(self.records):
            try:
                _dispatch(record, printed=index in self.already_printed)
            except Exception as error:  # noqa: BLE001 - handlers may raise anything
                problem = problem or error
        replays = [entry.replay for entry in self.warnings] + [entry.replay for entry in self.unhandled]
        for replay in replays:
            try:
                replay()
            except Exception as error:  # noqa: BLE001 - as above
                problem = problem or error
        return problem


def last_lines(text: str, count: int = 50) -> str:
    r"""Return the last lines of an output.

    Example:
        >>> last_lines("one\ntwo\nthree\n", 2)
        'two\nthree'
    """
    return "\n".join(text.splitlines()[-count:])


class OutputFiles:
    """Redirects file descriptors 1 and 2 of a worker to files for its lifetime; each call reads its part.

    Files, not pipes: no thread has to read while the action runs, and nothing is lost or blocks however much it prints.
    """

    def __init__(self) -> None:
        self._streams = _RedirectedStream(1), _RedirectedStream(2)
        # Ray's own streams are unbuffered, so they need no flush.
        self._unbuffered = [s if type(s).__name__ == "Unbuffered" else None for s in (sys.stdout, sys.stderr)]

    @property
    def descriptors(self) -> tuple[int, int]:
        """The descriptors of the two files, (stdout, stderr), so that other processes can read them."""
        stdout, stderr = (stream.reader for stream in self._streams)
        return stdout, stderr

    def start(self) -> None:
        """Start a call: discard what was printed before it."""
        self._flush()
        for stream in self._streams:
            stream.reset()

    def has_new_output(self) -> bool:
        """Return whether anything was printed since the last `read_new` or `start`. Cheap: called for each event."""
        self._flush()
        stdout, stderr = self._streams
        # Writing to a descriptor moves the position that it shares with its file.
        printed = _lseek(stdout.reader, 0, _CURRENT) != stdout.position
        return printed or _lseek(stderr.reader, 0, _CURRENT) != stderr.position

    def read_new(self) -> tuple[str, str]:
        """Return what was printed since the last `read_new` or `start`, as (stdout, stderr)."""
        self._flush()
        stdout, stderr = (stream.read_new() for stream in self._streams)
        return stdout, stderr

    def read_all(self) -> tuple[str, str]:
        """Return all that was printed since `start`, whether or not `read_new` returned it, as (stdout, stderr)."""
        self._flush()
        stdout, stderr = self._streams
        return stdout.read_all(), stderr.read_all()

    def _flush(self) -> None:
        if sys.stdout is not self._unbuffered[0] or sys.stderr is not self._unbuffered[1]:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(
                    ValueError, AttributeError, OSError
                ):  # an action may have closed or removed it
                    stream.flush()


_lseek, _CURRENT = os.lseek, os.SEEK_CUR


class _RedirectedStream:
    """A descriptor redirected to a temporary file; what is read from the file is also written to the original one."""

    def __init__(self, descriptor: int) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the worker
        self.reader = self._file.fileno()
        self.position = 0
        # A read may end inside a multi-byte character: the decoder keeps the first bytes for the next read.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._parts: list[str] = []
        self._returned = 0
        self._original = os.dup(descriptor)
        os.dup2(self.reader, descriptor)

    def reset(self) -> None:
        self._read()
        self._returned = 0
        if not self.position:
            return
        # The descriptor shares this file's position: rewind it, so that the file does not grow forever.
        os.ftruncate(self.reader, 0)
        os.lseek(self.reader, 0, os.SEEK_SET)
        self.position = 0
        self._decoder.reset()
        self._parts.clear()

    def read_new(self) -> str:
        self._read()
        start, self._returned = self._returned, len(self._parts)
        return "".join(self._parts[start:])

    def read_all(self) -> str:
        self._read()
        if not self.position:
            return ""
        return "".join(self._parts) + self._decoder.decode(b"", final=True)

    def _read(self) -> None:
        size = os.fstat(self.reader).st_size
        if size <= self.position:
            return
        data = os.pread(self.reader, size - self.position, self.position)
        self.position += len(data)
        with contextlib.suppress(OSError):
            os.write(self._original, data)
        self._parts.append(self._decoder.decode(data))


def _dispatch(record: logging.LogRecord, *, printed: bool) -> None:
    """Pass a worker's record to the handlers of this process, except those that would print it a second time."""
    handlers = list(handlers_of(record))
    if not printed or not any(map(writes_to_terminal, handlers)):
        logging.getLogger(record.name).handle(record)
        return
    for handler in handlers:
        if record.levelno >= handler.level and not writes_to_terminal(handler):
            handler.handle(record)

"""What an action prints, logs and warns in a worker: taken there, carried back, and put out again here."""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple


class CapturedWarning(NamedTuple):
    """A Python warning: its text, class, and the place that it points at."""

    message: str
    category: type[Warning]
    filename: str
    line: int


@dataclass
class Captured:
    """What an action put out in a worker.

    Attributes:
        stdout: Everything that reached file descriptor 1, child processes included.
        stderr: The same of file descriptor 2.
        records: Records of `logging`, of any logger.
        warnings: Python warnings.
    """

    stdout: str = ""
    stderr: str = ""
    records: list[logging.LogRecord] = field(default_factory=list)
    warnings: list[CapturedWarning] = field(default_factory=list)

    def replay(self, *, output: bool = True) -> None:
        """Put it all out in this process: print, log and warn, as the action would have here.

        Args:
            output: Whether to print too; not where the output was shown while it came.
        """
        __tracebackhide__ = True
        if output and self.stdout:
            sys.stdout.write(self.stdout)
            sys.stdout.flush()
        if output and self.stderr:
            sys.stderr.write(self.stderr)
            sys.stderr.flush()
        for record in self.records:
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno) or record.name.startswith("synapse."):
                logger.handle(record)
        for warning in self.warnings:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.line)


def last_lines(text: str, count: int = 50) -> str:
    r"""Return the last lines of an output.

    Example:
        >>> last_lines("one\ntwo\nthree\n", 2)
        'two\nthree'
    """
    return "\n".join(text.splitlines()[-count:])


@contextlib.contextmanager
def captured_logging(into: Captured) -> Iterator[None]:
    """Collect log records and warnings of this process while the block runs."""
    handler = _Recorder(into.records)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    # What the caller's levels let pass is decided where the caller is: here everything from info up is kept.
    root.setLevel(min(level, logging.INFO) if level else logging.INFO)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    into.warnings.extend(
        CapturedWarning(str(item.message), item.category, item.filename, item.lineno) for item in caught
    )


class OutputFiles:
    """Takes over file descriptors 1 and 2 of a worker for good, into files whose content is read per call.

    Files, not pipes: nothing has to read along, so that a call costs no thread, and nothing is lost or blocks
    however much is printed.
    """

    def __init__(self) -> None:
        self._streams = [_Redirected(1), _Redirected(2)]

    @property
    def descriptors(self) -> tuple[int, int]:
        """The descriptors of the two files, for whoever wants to read them from outside: stdout's and stderr's."""
        stdout, stderr = (stream.reader for stream in self._streams)
        return stdout, stderr

    def begin(self) -> None:
        """Start a call: what was printed before does not belong to it."""
        _flush()
        for stream in self._streams:
            stream.forget()

    def peek(self) -> tuple[str, str]:
        """Return what was printed since the last `peek` or `begin`, as (stdout, stderr)."""
        _flush()
        stdout, stderr = (stream.news() for stream in self._streams)
        return stdout, stderr

    def take(self) -> tuple[str, str]:
        """Return all that was printed since `begin`, peeked at or not, as (stdout, stderr)."""
        _flush()
        stdout, stderr = (stream.text() for stream in self._streams)
        return stdout, stderr


class _Redirected:
    """One descriptor, sent to a file of ours; what is taken is passed on to where it went before."""

    def __init__(self, descriptor: int) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the worker
        self.reader = self._file.fileno()
        self._position = 0
        # A character may be cut in two between two reads: the decoder keeps its first bytes for the next.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._parts: list[str] = []
        self._told = 0
        self._before = os.dup(descriptor)
        os.dup2(self.reader, descriptor)

    def forget(self) -> None:
        self._read()
        # The descriptor shares this file's position: back to the start, so that the file does not grow for ever.
        os.ftruncate(self.reader, 0)
        os.lseek(self.reader, 0, os.SEEK_SET)
        self._position = 0
        self._decoder.reset()
        self._parts.clear()
        self._told = 0

    def news(self) -> str:
        self._read()
        told, self._told = self._told, len(self._parts)
        return "".join(self._parts[told:])

    def text(self) -> str:
        self._read()
        return "".join(self._parts) + self._decoder.decode(b"", final=True)

    def _read(self) -> None:
        size = os.fstat(self.reader).st_size
        if size <= self._position:
            return
        data = os.pread(self.reader, size - self._position, self._position)
        self._position += len(data)
        with contextlib.suppress(OSError):
            os.write(self._before, data)
        self._parts.append(self._decoder.decode(data))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


class _Recorder(logging.Handler):
    """Keeps records in a form that travels: text instead of arguments and tracebacks."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.NOTSET)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        copy = logging.makeLogRecord(dict(record.__dict__))
        copy.msg, copy.args = record.getMessage(), None
        if record.exc_info:
            copy.exc_text = record.exc_text or logging.Formatter().formatException(record.exc_info)
            copy.exc_info = None
        self._records.append(_travelling(copy))


def _travelling(record: logging.LogRecord) -> logging.LogRecord:
    """Replace `extra` values that do not pickle by their text."""
    from synapse_runtime.transport import snapshot

    values: dict[str, Any] = {name: snapshot(value) for name, value in record.__dict__.items()}
    return logging.makeLogRecord(values)

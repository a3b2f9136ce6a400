"""A job's log as a channel: the action's output as plain text, interleaved with frames for events and the run.

Only the job's supervisor writes the log, so nothing that an action prints is mistaken for a frame: text that contains
a frame's first character is itself sent in a frame. The reader needs the log only. A frame is JSON in ASCII, in one or
more lines:

    RS kind SP signature SP JSON LF     the last line of a frame; RS is 0x1E, the record separator of ASCII
    RS "+" SP JSON LF                   a line before it, if the JSON is long: the beginning of it

Whoever may submit jobs to the cluster, or has access to the log's file, can write frames too. So the supervisor signs
its frames with a key that it got from the submitter. Readers that have the key refuse frames without its signature, and
unpickle what is in them. To all others a log is plain JSON, which they never unpickle.
"""

from __future__ import annotations

import base64
import codecs
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

RECORD_SEPARATOR: Final = "\x1e"
_LINE_CHARACTERS = 32_000
_UNSIGNED = "-"

# Kinds of frames: the start (before it, the log is Ray's own), a switch of stream, output that is not plain text, an
# event, the run, how the action's process ended, and that the supervisor has another version than the submitter.
START, STDOUT, STDERR, RAW, EVENT, RUN, EXIT, VERSION = "start", "out", "err", "raw", "event", "run", "exit", "version"
# If the process has ended without a run: the journal of its log records and warnings.
LOGS = "logs"
# Frames that anybody may write: they contain nothing but output.
_OUTPUT_KINDS = (STDOUT, STDERR, RAW)


class MalformedFrame(ValueError):
    """A log contains a frame that a supervisor does not write; the message says what is wrong with it."""


class Output(NamedTuple):
    """Text that the action printed, to `stdout` or `stderr`."""

    stream: str
    text: str


class Frame(NamedTuple):
    """A frame: its kind and data, and whether the job's supervisor is known to have written it."""

    kind: str
    data: dict[str, Any]
    is_signed: bool


def encode_bytes(data: bytes) -> str:
    """Encode bytes for a frame's data."""
    return base64.b64encode(data).decode()


def decode_bytes(text: Any) -> bytes:
    """Decode what `encode_bytes` has returned.

    Raises:
        MalformedFrame: It is something else.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise MalformedFrame(f"not base64: {error}") from error


class _Signer:
    """Signs frames, which are numbered, so that none can be removed, repeated or moved to another job's log."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._number = 0

    def sign(self, kind: str, text: str) -> str:
        signed = f"{self._number} {kind} {text}".encode()
        self._number += 1
        return hmac.digest(self._key, signed, hashlib.sha256).hex()


class LogWriter:
    """Encodes output and frames as bytes of the log.

    Args:
        key: The key to sign frames with; without one they are not signed.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._stream = STDOUT
        self._signer = None if key is None else _Signer(key)

    def output(self, stream: str, data: bytes) -> bytes:
        """Encode a chunk of output.

        Args:
            stream: `STDOUT` or `STDERR`.
            data: The bytes as they were printed.
        """
        switch = b"" if stream == self._stream else self.frame(stream)
        self._stream = stream
        return switch + (data if _is_plain_text(data) else self.frame(RAW, {"base64": encode_bytes(data)}))

    def frame(self, kind: str, data: Mapping[str, Any] | str = "{}") -> bytes:
        """Encode a frame.

        Args:
            kind: Its kind.
            data: Its data, of values that JSON has; or these as JSON in ASCII.
        """
        text = data if isinstance(data, str) else json.dumps(data)
        is_signed = self._signer is not None and kind not in _OUTPUT_KINDS
        signature = self._signer.sign(kind, text) if self._signer is not None and is_signed else _UNSIGNED
        parts = [text[i : i + _LINE_CHARACTERS] for i in range(0, len(text), _LINE_CHARACTERS)]
        lines = [f"{RECORD_SEPARATOR}+ {part}\n" for part in parts[:-1]]
        return "".join([*lines, f"{RECORD_SEPARATOR}{kind} {signature} {parts[-1]}\n"]).encode("ascii")


def _is_plain_text(data: bytes) -> bool:
    # Ray reads the log as text with universal newlines, which turns CR into LF.
    if RECORD_SEPARATOR.encode() in data or b"\r" in data:
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def may_end(text: str) -> bool:
    """Return whether a piece of a log contains a final frame of a job. A frame that is cut in two may be missed."""
    return any(f"{RECORD_SEPARATOR}{kind} " in text for kind in (RUN, EXIT, VERSION))


class LogReader:
    r"""Reads a log in pieces, which may be cut anywhere.

    Args:
        job_id: The job's id. While a job starts, Ray adds a line of its own to the log, which may appear late, within
            the action's output. The id identifies this line, so that it can be removed.
        key: The key that the supervisor signs its frames with, if this user may have submitted the job.
        must_be_signed: Whether this user has submitted the job. If not known, the first frame shows it.

    Attributes:
        preamble: The log before the first frame, which is Ray's own.

    Example:
        >>> reader, writer = LogReader(key=b"secret"), LogWriter(b"secret")
        >>> log = (b"Ray's own line\n" + writer.frame(START) + b"hello\n" + writer.frame(RUN, {"result": 42})).decode()
        >>> [item[:2] for item in (*reader.feed(log[:30]), *reader.feed(log[30:]))]
        [('start', {}), ('stdout', 'hello\n'), ('run', {'result': 42})]
        >>> reader.preamble
        "Ray's own line\n"
    """

    def __init__(self, job_id: str | None = None, key: bytes | None = None, *, must_be_signed: bool = False) -> None:
        self.preamble = ""
        self._started = False
        self._ray_prefix = "" if job_id is None else f"Running entrypoint for job {job_id}: "
        self._signer = None if key is None else _Signer(key)
        self._must_be_signed = must_be_signed
        self._stream = STDOUT
        self._rest = ""
        self._parts: list[str] = []
        self._decoders = {s: codecs.getincrementaldecoder("utf-8")(errors="replace") for s in (STDOUT, STDERR)}

    def feed(self, text: str) -> Iterator[Output | Frame]:
        """Add the next piece of the log; yield the items that are complete.

        Raises:
            MalformedFrame: The log contains a frame that the job's supervisor has not written.
        """
        text = self._rest + text
        position = 0
        while position < len(text):
            start = text.find(RECORD_SEPARATOR, position)
            if start != position:
                end = start if start >= 0 else position + self._complete_length(text[position:])
                yield from self._text(text[position:end])
                position = end
                if start < 0:
                    break
                continue
            end = text.find("\n", start)
            if end < 0:
                break
            yield from self._line(text[start + 1 : end])
            position = end + 1
        self._rest = text[position:]

    def close(self) -> Iterator[Output]:
        """Yield the rest at the end of the log."""
        rest, self._rest, self._ray_prefix = self._rest, "", ""
        if not rest.startswith(RECORD_SEPARATOR):
            yield from self._text(rest)

    def _complete_length(self, text: str) -> int:
        """Return the length of the text at the end of a piece without a possible beginning of Ray's line."""
        if not self._started or not self._ray_prefix:
            return len(text)
        at = text.find(self._ray_prefix)
        if at >= 0:
            return len(text) if "\n" in text[at:] else at
        cut = next((size for size in range(len(self._ray_prefix), 0, -1) if text.endswith(self._ray_prefix[:size])), 0)
        return len(text) - cut

    def _remove_ray_line(self, text: str) -> str:
        before, prefix, line = text.partition(self._ray_prefix) if self._ray_prefix else (text, "", "")
        if prefix:
            self._ray_prefix = ""  # Ray logs it once
        return before + line.partition("\n")[2]

    def _line(self, line: str) -> Iterator[Output | Frame]:
        kind, _, rest = line.partition(" ")
        if kind == "+":
            self._parts.append(rest)
            return
        signature, _, end = rest.partition(" ")
        text = "".join((*self._parts, end))
        self._parts.clear()
        data = _parsed(kind, text)
        if kind in (STDOUT, STDERR):
            self._stream = kind
        elif kind == RAW:
            yield from self._output(self._decoders[self._stream].decode(decode_bytes(data.get("base64"))))
        else:
            is_signed = self._is_signed(kind, signature, text)
            if kind == START and not self._started:
                self._started = True
                self._ray_prefix = "" if self._ray_prefix in self.preamble else self._ray_prefix
            if kind in (RUN, EXIT):
                yield from self._incomplete_characters()
            yield Frame(kind, data, is_signed)

    def _is_signed(self, kind: str, signature: str, text: str) -> bool:
        if kind == VERSION and not self._started:  # of a supervisor that cannot read the key
            return False
        if self._signer is None:
            return False
        if hmac.compare_digest(signature.encode(), self._signer.sign(kind, text).encode()):
            self._must_be_signed = True
            return True
        if self._must_be_signed:
            raise MalformedFrame(f"a frame of kind {kind!r} was not written by the supervisor of the job")
        self._signer = None  # another user has submitted the job
        return False

    def _text(self, text: str) -> Iterator[Output]:
        if self._started:
            text = self._remove_ray_line(text)
            # Plain text never continues a character that was cut in two: an incomplete one belongs before it.
            yield from self._output(self._decoders[self._stream].decode(b"", final=True) + text)
        else:
            self.preamble += text

    def _incomplete_characters(self) -> Iterator[Output]:
        """Yield the rest of characters whose end is missing."""
        for stream, decoder in self._decoders.items():
            self._stream = stream
            yield from self._output(decoder.decode(b"", final=True))

    def _output(self, text: str) -> Iterator[Output]:
        if text:
            yield Output("stdout" if self._stream == STDOUT else "stderr", text)


def _parsed(kind: str, text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedFrame(f"a frame of kind {kind!r} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise MalformedFrame(f"a frame of kind {kind!r} is not a JSON object")
    return data

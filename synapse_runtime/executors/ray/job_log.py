"""A job's log as a channel: the action's output as plain text, interleaved with frames for events and the run.

Only the job's supervisor writes the log, so nothing that an action prints is mistaken for a frame: text that contains
a frame's first character is itself sent in a frame. The reader needs the log only. A frame is one or more lines:

    RS kind SP base64 LF            the last line of a frame; RS is 0x1E, the record separator of ASCII
    RS "+" SP base64 LF             a line before it, if the payload is long
"""

from __future__ import annotations

import base64
import codecs
from collections.abc import Iterator
from typing import Final, NamedTuple

RECORD_SEPARATOR: Final = "\x1e"
_LINE_BYTES = 24_000

# Kinds of frames: the start (before it, the log is Ray's own), a switch of stream, output that is not plain text,
# pickled events, the encoded run, and how the action's process ended.
START, STDOUT, STDERR, RAW, EVENTS, RUN, EXIT = "start", "out", "err", "raw", "events", "run", "exit"
# If the process has ended without a run: the journal of its log records and warnings.
LOGS = "logs"


class Output(NamedTuple):
    """Text that the action printed, to `stdout` or `stderr`."""

    stream: str
    text: str


class Frame(NamedTuple):
    """A decoded frame: its kind and payload."""

    kind: str
    payload: bytes


def encode_frame(kind: str, payload: bytes = b"") -> bytes:
    """Encode a frame for the log."""
    parts = [payload[i : i + _LINE_BYTES] for i in range(0, len(payload), _LINE_BYTES)] or [b""]
    lines = [f"{RECORD_SEPARATOR}+ ".encode() + base64.b64encode(part) + b"\n" for part in parts[:-1]]
    lines.append(f"{RECORD_SEPARATOR}{kind} ".encode() + base64.b64encode(parts[-1]) + b"\n")
    return b"".join(lines)


class LogWriter:
    """Encodes chunks of two streams as bytes of the log."""

    def __init__(self) -> None:
        self._stream = STDOUT

    def output(self, stream: str, data: bytes) -> bytes:
        """Encode a chunk of output.

        Args:
            stream: `STDOUT` or `STDERR`.
            data: The bytes as they were printed.
        """
        switch = b"" if stream == self._stream else encode_frame(stream)
        self._stream = stream
        return switch + (data if _is_plain_text(data) else encode_frame(RAW, data))


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
    return f"{RECORD_SEPARATOR}{RUN} " in text or f"{RECORD_SEPARATOR}{EXIT} " in text


class LogReader:
    r"""Reads a log in pieces, which may be cut anywhere.

    Args:
        job_id: The job's id. While a job starts, Ray adds a line of its own to the log, which may appear late, within
            the action's output. The id identifies this line, so that it can be removed.

    Example:
        >>> reader = LogReader()
        >>> log = "Ray's own line\n" + (encode_frame(START) + b"hello\n" + encode_frame(RUN, b"42")).decode()
        >>> list(reader.feed(log[:30])) + list(reader.feed(log[30:]))
        [Frame(kind='start', payload=b''), Output(stream='stdout', text='hello\n'), Frame(kind='run', payload=b'42')]
        >>> reader.preamble
        "Ray's own line\n"
    """

    def __init__(self, job_id: str | None = None) -> None:
        self.preamble = ""
        self._started = False
        self._ray_prefix = "" if job_id is None else f"Running entrypoint for job {job_id}: "
        self._stream = STDOUT
        self._rest = ""
        self._parts: list[bytes] = []
        self._decoders = {s: codecs.getincrementaldecoder("utf-8")(errors="replace") for s in (STDOUT, STDERR)}

    def feed(self, text: str) -> Iterator[Output | Frame]:
        """Add the next piece of the log; yield the items that are complete."""
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
        kind, _, encoded = line.partition(" ")
        self._parts.append(base64.b64decode(encoded))
        if kind == "+":
            return
        payload = b"".join(self._parts)
        self._parts.clear()
        if kind in (STDOUT, STDERR):
            self._stream = kind
        elif kind == RAW:
            yield from self._output(self._decoders[self._stream].decode(payload))
        else:
            if kind == START:
                self._started = True
                self._ray_prefix = "" if self._ray_prefix in self.preamble else self._ray_prefix
            if kind in (RUN, EXIT):
                yield from self._incomplete_characters()
            yield Frame(kind, payload)

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

"""A job's log as a channel: what the action printed, in clear, with events and the run as frames in between.

Only the job's supervisor writes the log, so nothing an action prints can pass for a frame: text that holds the
mark of a frame travels inside one. The reader needs the log alone. A frame is one or more lines:

    RS kind SP base64 LF            the last line of a frame; RS is the character 0x1E
    RS "+" SP base64 LF             a line before it, where the payload is long
"""

from __future__ import annotations

import base64
import codecs
from collections.abc import Iterator
from typing import Final, NamedTuple

MARK: Final = "\x1e"
_LINE_BYTES = 24_000

# Kinds of frames: the start (before it, the log is Ray's own), a switch of stream, output that is no plain text,
# pickled events, the packed run, and how the action's process ended.
START, STDOUT, STDERR, RAW, EVENTS, RUN, EXIT = "start", "out", "err", "raw", "events", "run", "exit"


class Output(NamedTuple):
    """Text that the action printed, to `stdout` or `stderr`."""

    stream: str
    text: str


class Frame(NamedTuple):
    """A frame's kind and payload."""

    kind: str
    payload: bytes


def frame(kind: str, payload: bytes = b"") -> bytes:
    """Return a frame as it stands in the log."""
    parts = [payload[i : i + _LINE_BYTES] for i in range(0, len(payload), _LINE_BYTES)] or [b""]
    lines = [f"{MARK}+ ".encode() + base64.b64encode(part) + b"\n" for part in parts[:-1]]
    lines.append(f"{MARK}{kind} ".encode() + base64.b64encode(parts[-1]) + b"\n")
    return b"".join(lines)


class LogWriter:
    """Turns chunks of two streams into the bytes of the log."""

    def __init__(self) -> None:
        self._stream = STDOUT

    def output(self, stream: str, data: bytes) -> bytes:
        """Return what to write for a chunk of output.

        Args:
            stream: `STDOUT` or `STDERR`.
            data: The bytes as they were printed.
        """
        switch = b"" if stream == self._stream else frame(stream)
        self._stream = stream
        return switch + (data if _is_plain_text(data) else frame(RAW, data))


def _is_plain_text(data: bytes) -> bool:
    # Ray reads the log as text, with universal newlines: CR would come back as LF.
    if b"\x1e" in data or b"\r" in data:
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def may_end(text: str) -> bool:
    """Tell whether a piece of a log holds a frame after which the job ends. One that was cut may not be noticed."""
    return f"{MARK}{RUN} " in text or f"{MARK}{EXIT} " in text


class LogReader:
    r"""Reads a log that comes in pieces, cut anywhere.

    Args:
        job_id: The job's id. Ray adds a line of its own to the log while the job starts, and it may come late, in the
            middle of what the action prints: with the id it is known, and left out.

    Example:
        >>> reader = LogReader()
        >>> log = "Ray's own line\n" + (frame(START) + b"hello\n" + frame(RUN, b"42")).decode()
        >>> list(reader.feed(log[:30])) + list(reader.feed(log[30:]))
        [Frame(kind='start', payload=b''), Output(stream='stdout', text='hello\n'), Frame(kind='run', payload=b'42')]
        >>> reader.preamble
        "Ray's own line\n"
    """

    def __init__(self, job_id: str | None = None) -> None:
        self.preamble = ""
        self._started = False
        self._rays_words = "" if job_id is None else f"Running entrypoint for job {job_id}: "
        self._stream = STDOUT
        self._rest = ""
        self._parts: list[bytes] = []
        self._decoders = {s: codecs.getincrementaldecoder("utf-8")(errors="replace") for s in (STDOUT, STDERR)}

    def feed(self, text: str) -> Iterator[Output | Frame]:
        """Take the next piece of the log; yield what is complete by now."""
        text = self._rest + text
        position = 0
        while position < len(text):
            mark = text.find(MARK, position)
            if mark != position:
                end = mark if mark >= 0 else position + self._certain(text[position:])
                yield from self._text(text[position:end])
                position = end
                if mark < 0:
                    break
                continue
            end = text.find("\n", mark)
            if end < 0:
                break
            yield from self._line(text[mark + 1 : end])
            position = end + 1
        self._rest = text[position:]

    def close(self) -> Iterator[Output]:
        """Yield what is left: there is no more of the log."""
        rest, self._rest, self._rays_words = self._rest, "", ""
        if not rest.startswith(MARK):
            yield from self._text(rest)

    def _certain(self, text: str) -> int:
        """Return how much of the text at the end of a piece is no beginning of Ray's line."""
        if not self._started or not self._rays_words:
            return len(text)
        at = text.find(self._rays_words)
        if at >= 0:
            return len(text) if "\n" in text[at:] else at
        cut = next((size for size in range(len(self._rays_words), 0, -1) if text.endswith(self._rays_words[:size])), 0)
        return len(text) - cut

    def _without_rays_line(self, text: str) -> str:
        before, words, line = text.partition(self._rays_words) if self._rays_words else (text, "", "")
        if words:
            self._rays_words = ""  # which it says once
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
                self._rays_words = "" if self._rays_words in self.preamble else self._rays_words
            if kind in (RUN, EXIT):
                yield from self._cut_characters()
            yield Frame(kind, payload)

    def _text(self, text: str) -> Iterator[Output]:
        if self._started:
            text = self._without_rays_line(text)
            # Plain text never goes on with a character that was cut in two: what was kept of one belongs before it.
            yield from self._output(self._decoders[self._stream].decode(b"", final=True) + text)
        else:
            self.preamble += text

    def _cut_characters(self) -> Iterator[Output]:
        """Yield what is left of characters whose end never came."""
        for stream, decoder in self._decoders.items():
            self._stream = stream
            yield from self._output(decoder.decode(b"", final=True))

    def _output(self, text: str) -> Iterator[Output]:
        if text:
            yield Output("stdout" if self._stream == STDOUT else "stderr", text)

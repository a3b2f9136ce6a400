"""Stream the events and output of a running action to the caller, in batches sent by a background thread."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from synapse_runtime import serialization
from synapse_runtime.core.log_capture import CapturedWarning, LogEntry, LoggedRecord, UnhandledError
from synapse_runtime.core.output_capture import OutputFiles, OutputPosition
from synapse_runtime.events import Event
from synapse_runtime.executors.protocol import event_to_tuple, is_builtin_data, loads_in_plugin

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines

# Takes the place of a stream's name in a batch, before a log record or a warning.
LOG: Final = "log"


def decode_batch(data: bytes, import_root: str | None) -> Any:
    """Decode what a worker sent while its action was running, in the caller's process.

    Args:
        data: An event, or a batch of events and output, as `Forwarder` sends it.
        import_root: The directory of the plugin's modules, whose classes the data may contain.
    """
    return serialization.loads(data) if is_builtin_data(data) else loads_in_plugin(data, import_root)


class Forwarder:
    """Sends the events and output of a running action in numbered batches, from another thread.

    Args:
        send: Sends a batch: its number, and the data for `decode_batch`, a list of events (as tuples) and of
            (stream, text) or (`LOG`, entry) pairs, in order. It may fail: the run contains everything as well.
        output: The captured output of this worker.
    """

    EVERY_SECONDS = 0.05

    def __init__(self, send: Callable[[int, bytes], object], output: OutputFiles) -> None:
        self._send = send
        self._output = output
        self._number = 0
        self._events = 0
        self._queue: deque[Event | LogEntry | tuple[str, str]] = deque()  # not in a batch yet
        self._output_positions: list[OutputPosition] = []
        self._is_gathering = self._is_closed = False
        self._lock = threading.Lock()
        _ticker.start(self._forward)

    def event(self, event: Event) -> None:
        """Queue an event, to be sent soon."""
        # Output printed before the event is queued before it, even if the other thread is reading that output: that
        # thread sets `_is_gathering` before it reads, so it is checked after `has_new_output` here.
        if self._output.has_new_output() or self._is_gathering:
            with self._lock:
                self._gather_output()
        self._queue.append(event)

    def log(self, entry: LogEntry) -> None:
        """Queue a log record, a warning or an unhandled error, to be sent soon."""
        self._queue.append(entry)

    def close(self) -> list[OutputPosition]:
        """Stop, and return the positions of output between events. The run contains what has not been sent."""
        _ticker.stop()
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._take_batch()
        return self._output_positions

    def _forward(self) -> None:
        with self._lock:
            batch = [] if self._is_closed else self._take_batch()
        if batch:
            number, self._number = self._number, self._number + 1
            with contextlib.suppress(Exception):
                self._send(number, serialization.dumps([*map(_to_tuple, batch)]))

    def _take_batch(self) -> list[Event | LogEntry | tuple[str, str]]:
        self._gather_output()
        batch = [self._queue.popleft() for _ in range(len(self._queue))]
        for item in batch:
            if isinstance(item, Event):
                self._events += 1
            elif not isinstance(item, LoggedRecord | CapturedWarning | UnhandledError):
                stream, text = item
                self._output_positions.append((self._events, stream, len(text)))
        return batch

    def _gather_output(self) -> None:
        self._is_gathering = True
        for stream, text in zip(("stdout", "stderr"), self._output.read_new(), strict=True):
            if text:
                self._queue.append((stream, text))
        self._is_gathering = False


def _to_tuple(item: Event | LogEntry | tuple[str, str]) -> tuple[Any, ...]:
    if isinstance(item, Event):
        return event_to_tuple(item)
    return (LOG, item) if isinstance(item, LoggedRecord | CapturedWarning | UnhandledError) else item


class _Ticker:
    """Calls a function periodically in one thread, which is kept: starting a thread for each call would take longer.

    Args:
        seconds: The interval.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._tick: Callable[[], object] | None = None
        self._is_active = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, tick: Callable[[], object]) -> None:
        """Call this function from now on."""
        self._tick = tick
        self._is_active.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="synapse-forwarder", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop calling the function; a call that is in progress continues."""
        self._is_active.clear()
        self._tick = None

    def _loop(self) -> None:
        while self._is_active.wait():
            time.sleep(self._seconds)
            tick = self._tick
            if tick is not None:
                tick()


_ticker = _Ticker(Forwarder.EVERY_SECONDS)

"""What a running action logs and prints, sent while it runs: in batches, from a thread beside the action."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from synapse_runtime import serialization
from synapse_runtime.core.output_capture import OutputFiles, OutputPosition
from synapse_runtime.events import Event
from synapse_runtime.executors.protocol import is_builtin_data, loads_in_plugin

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help


def decode_batch(data: bytes, import_root: str | None) -> Any:
    """Read what a worker sent while its action was running, in the caller's process.

    Args:
        data: An event, or a batch of events and output, as `Forwarder` sends it.
        import_root: The directory of the plugin's modules, whose classes the data may contain.
    """
    return serialization.loads(data) if is_builtin_data(data) else loads_in_plugin(data, import_root)


class Forwarder:
    """Sends what a running action says and prints, in numbered batches, from another thread.

    Args:
        send: Takes a batch: its number, and what `decode_batch` reads, a list of events (as tuples) and of
            (stream, text) pairs, in order. It may fail: all of it comes home with the run.
        output: Where this worker's output is collected.
    """

    EVERY_SECONDS = 0.05

    def __init__(self, send: Callable[[int, bytes], object], output: OutputFiles) -> None:
        self._send = send
        self._output = output
        self._number = 0
        self._events = 0
        self._queue: deque[Event | tuple[str, str]] = deque()  # and not taken into a batch yet
        self._interjections: list[OutputPosition] = []
        self._is_gathering = self._is_closed = False
        self._lock = threading.Lock()
        _ticker.start(self._forward)

    def event(self, event: Event) -> None:
        """Take an event, to be sent soon."""
        # What was printed before the event comes before it, also where the other thread has just found that: it says so
        # before it looks, so here it is asked after.
        if self._output.has_new_output() or self._is_gathering:
            with self._lock:
                self._gather_output()
        self._queue.append(event)

    def close(self) -> list[OutputPosition]:
        """End; return where output came among the events. What has not been sent comes home with the run."""
        _ticker.stop()
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._take_batch()
        return self._interjections

    def _forward(self) -> None:
        with self._lock:
            batch = [] if self._is_closed else self._take_batch()
        if batch:
            number, self._number = self._number, self._number + 1
            with contextlib.suppress(Exception):
                self._send(
                    number, serialization.dumps([_row(item) if isinstance(item, Event) else item for item in batch])
                )

    def _take_batch(self) -> list[Event | tuple[str, str]]:
        self._gather_output()
        batch = [self._queue.popleft() for _ in range(len(self._queue))]
        for item in batch:
            if isinstance(item, Event):
                self._events += 1
            else:
                stream, text = item
                self._interjections.append((self._events, stream, len(text)))
        return batch

    def _gather_output(self) -> None:
        self._is_gathering = True
        for stream, text in zip(("stdout", "stderr"), self._output.read_new(), strict=True):
            if text:
                self._queue.append((stream, text))
        self._is_gathering = False


class _Ticker:
    """Calls a function from time to time, in one thread that is kept: to start one for each call would take longer.

    Args:
        seconds: The time between.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._tick: Callable[[], object] | None = None
        self._is_wanted = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, tick: Callable[[], object]) -> None:
        """Call this from now on."""
        self._tick = tick
        self._is_wanted.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="synapse-forwarder", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Call nothing any more, except what is just being called."""
        self._is_wanted.clear()
        self._tick = None

    def _loop(self) -> None:
        while self._is_wanted.wait():
            time.sleep(self._seconds)
            tick = self._tick
            if tick is not None:
                tick()


_ticker = _Ticker(Forwarder.EVERY_SECONDS)


def _row(event: Event) -> tuple[Any, ...]:
    """Return an event as plain data, which makes it many times cheaper to carry."""
    return event.kind, event.name, event.data, event.level, event.step, event.file, event.time

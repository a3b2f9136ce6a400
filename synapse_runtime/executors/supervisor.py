"""Supervise the process that runs an action: a fork of this one, whose output and messages are read until it ends."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import FrameType
from typing import Final

from synapse_runtime.core.interrupts import shielded

START: Final = "start"
EVENT: Final = "event"
RUN: Final = "run"
_READ_BYTES: Final = 65536
# How long to read output after the action's process has ended, if a process that it started keeps the pipe open.
_OUTPUT_SECONDS: Final = 1.0
# How long the interpreter may take to exit after the run was sent: threads left by the action keep running until then.
_EXIT_SECONDS: Final = 5.0
# Extra time after the worker's own grace period for an action that has exceeded its timeout.
_TIMEOUT_SECONDS: Final = 2.0


def reporter(send: Connection) -> Callable[..., None]:
    """Return a function that sends a message to the supervisor, from any thread of the action's process.

    Args:
        send: The connection to the supervisor.
    """
    # Threads that the action has left running may report events too, even while its run is sent.
    lock, owner = threading.Lock(), os.getpid()

    def report(kind: str, payload: bytes = b"") -> None:
        if os.getpid() == owner:  # not in a forked child process of the action
            with shielded(), lock:
                send.send_bytes(kind.encode() + b" " + payload)

    return report


class Supervisor(ABC):
    """Reads the output and messages of the action's process, and kills it if it does not end.

    Args:
        child: The action's process.
        receive: The connection that `reporter` sends to.
        stdout: The pipe of its standard output.
        stderr: The pipe of its standard error.
        timeout: Seconds after which the action is killed if it does not stop itself; None for no limit.

    Attributes:
        child: The action's process.
        has_run: Whether it has sent its run.
        started_at: When the action started, by `time.monotonic`; before that, when its process did.
        timed_out: Whether it was killed because its action exceeded its timeout.
    """

    def __init__(self, child: int, receive: Connection, stdout: int, stderr: int, timeout: float | None) -> None:
        self.child = child
        self.has_run = False
        self.started_at = time.monotonic()
        self.timed_out = False
        self._timeout = timeout
        self._kill_at = float("inf")
        self._selector = selectors.DefaultSelector()
        self._read_until_end = {stdout, stderr, receive.fileno()}
        for descriptor, stream in ((stdout, "stdout"), (stderr, "stderr")):
            self._selector.register(descriptor, selectors.EVENT_READ, self._reader(descriptor, stream))
        self._selector.register(receive, selectors.EVENT_READ, lambda: self._message(receive))
        signal.signal(signal.SIGTERM, self.on_terminate)

    @abstractmethod
    def on_output(self, stream: str, data: bytes) -> None:
        """Called with each piece of output of `stdout` or `stderr`; with empty data at its end."""

    @abstractmethod
    def on_start(self) -> None:
        """Called when the action starts."""

    @abstractmethod
    def on_event(self, payload: bytes) -> None:
        """Called with each event."""

    @abstractmethod
    def on_run(self, payload: bytes) -> None:
        """Called with the run."""

    @abstractmethod
    def on_terminate(self, number: int, frame: FrameType | None) -> None:
        """Called on SIGTERM."""

    def also_read(self, descriptor: int, read: Callable[[], None]) -> None:
        """Call a function when something can be read there, until the action's process has ended."""

        def read_once() -> None:
            self._selector.unregister(descriptor)
            read()

        self._selector.register(descriptor, selectors.EVENT_READ, read_once)

    def follow(self) -> int:
        """Wait until the process has ended and everything is read; return its exit status."""
        status: int | None = None
        until = float("inf")
        while self._read_until_end and time.monotonic() < until:
            for key, _ in self._selector.select(timeout=0.2 if status is None else 0.05):
                key.data()
            if status is None and time.monotonic() > self._kill_at:
                self.on_kill()
                self.send_signal(signal.SIGKILL)
            if status is None:
                pid, raw = os.waitpid(self.child, os.WNOHANG)
                if pid:
                    status = os.waitstatus_to_exitcode(raw)
                    until = time.monotonic() + _OUTPUT_SECONDS
        if status is None:
            _, raw = os.waitpid(self.child, 0)
            status = os.waitstatus_to_exitcode(raw)
        return status

    def on_kill(self) -> None:
        """Note why the process is killed."""
        self.timed_out = not self.has_run

    def kill_in(self, seconds: float) -> None:
        """Kill the process if it has not ended by then."""
        self._kill_at = time.monotonic() + seconds

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, number)

    def _reader(self, descriptor: int, stream: str) -> Callable[[], None]:
        def read() -> None:
            data = os.read(descriptor, _READ_BYTES)
            self.on_output(stream, data)
            if not data:
                self._selector.unregister(descriptor)
                self._read_until_end.discard(descriptor)

        return read

    def _message(self, receive: Connection) -> None:
        try:
            kind, _, payload = receive.recv_bytes().partition(b" ")
        except (EOFError, OSError):
            self._read_until_end.discard(receive.fileno())
            self._selector.unregister(receive)
            return
        if kind == START.encode():
            self.started_at = time.monotonic()
            if self._timeout is not None:
                self.kill_in(self._timeout + _TIMEOUT_SECONDS)
            self.on_start()
        elif kind == EVENT.encode():
            self.on_event(payload)
        elif kind == RUN.encode():
            self.has_run = True
            self.kill_in(_EXIT_SECONDS)
            self.on_run(payload)

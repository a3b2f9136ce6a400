"""Timeouts: interrupt an action that takes too long, and record the stacks that show where it was stuck."""

from __future__ import annotations

import math
import os
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from synapse_runtime.core.interrupts import (
    absorb_pending_interrupt,
    event_loop_of,
    shielded,
)
from synapse_runtime.errors import ActionInterrupted

if TYPE_CHECKING:
    import asyncio

# Frames of the event loop are left out: the stack of a waiting task shows where its coroutine is.
_EVENT_LOOP = tuple(os.path.join(sysconfig.get_path("stdlib"), name) for name in ("asyncio", "selectors.py"))
# The frames in which this package enters an action, as (file, function): the action's own frames follow them.
_CORE = os.path.dirname(os.path.abspath(__file__))
_ENTRY_FRAMES = {
    (os.path.join(os.path.dirname(_CORE), "action.py"), "invoke"),
    (os.path.join(_CORE, "event_loop.py"), "run_coroutine"),
    (os.path.join(_CORE, "threads.py"), "_run"),
    (threading.__file__, "run"),
}
# The frame in which this package's thread waits for the action's thread.
_WAITING_FRAME = (os.path.join(_CORE, "threads.py"), "start_and_wait")


# Timers and waits accept no more than that on every platform.
MAX_SECONDS = 365 * 24 * 60 * 60


def expected_seconds(value: object, *, or_zero: bool = False) -> str | None:
    """Return what was expected in place of a timeout that a user has given; None if it is valid.

    Args:
        value: The timeout.
        or_zero: Whether 0, which means not to wait, is valid.

    Example:
        >>> expected_seconds(1.5)
        >>> expected_seconds(float("inf"))
        'a positive number of seconds, at most 31,536,000'
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if (0 < value <= MAX_SECONDS) or (or_zero and value == 0):
            return None
        if value > MAX_SECONDS:
            return f"a positive number of seconds, at most {MAX_SECONDS:,}"
    return "a number of seconds, 0 or more" if or_zero else "a positive number of seconds"


class time_limit:
    """Interrupt the block after this many seconds, and leave it.

    In the main thread a signal interrupts even a blocking call. In other threads the interpreter raises the exception
    between two instructions, so a call that blocks in C returns first; only a waiting event loop is woken up. (This is
    a class because a generator would set attributes of exceptions that pass through, which some exceptions reject.)

    Args:
        seconds: The timeout; None for no timeout.

    Attributes:
        stack: If the block timed out, its stacks as text: of its own thread, of the threads that it has started, and of
            the tasks of their event loops. None otherwise.

    Example:
        >>> with time_limit(0.05) as limit:
        ...     while True:
        ...         pass
        >>> "while True" in limit.stack or "stdin" in limit.stack or "doctest" in limit.stack
        True
    """

    def __init__(self, seconds: float | None) -> None:
        self.stack: str | None = None
        self._seconds = seconds
        self._timer: _Alarm | _Watchdog | None = None

    def __enter__(self) -> time_limit:
        if self._seconds is not None:
            in_main = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
            self._thread_id = threading.get_ident()
            self._before = set(threading.enumerate())  # not their ids, which the system reuses
            self._timer = (_Alarm if in_main else _Watchdog)(self._seconds, self._on_timeout)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        if self._timer is not None:
            try:
                self._timer.cancel()
            except ActionInterrupted:  # a timeout expired at this very moment
                if self.stack is None:  # that of an outer block
                    raise
                self._timer.cancel()
        # What an interrupted action raises while it unwinds is dropped: the timeout is its outcome.
        return self.stack is not None and kind is not None and not issubclass(kind, KeyboardInterrupt)

    def _on_timeout(self, frame: FrameType | None) -> None:
        self.stack = format_stacks(frame, thread_id=self._thread_id, threads_before=self._before)


class _Alarm:
    """A timer by SIGALRM. A process has one alarm: one already set (an outer timeout, pytest-timeout) is preserved."""

    def __init__(self, seconds: float, on_timeout: Callable[[FrameType | None], None]) -> None:
        remaining, self._interval = signal.getitimer(signal.ITIMER_REAL)
        self._ours = time.monotonic() + seconds
        self._theirs = time.monotonic() + remaining if remaining else math.inf
        self._on_timeout = on_timeout
        self._handler = signal.signal(signal.SIGALRM, self._on_alarm)
        self._arm(min(self._ours, self._theirs))

    def cancel(self) -> None:
        """Cancel the timer and restore the previous alarm."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._handler)
        if self._theirs < math.inf:
            self._arm(self._theirs, self._interval)

    def _arm(self, moment: float, interval: float = 0.0) -> None:
        signal.setitimer(signal.ITIMER_REAL, max(moment - time.monotonic(), 1e-6), interval)

    def _on_alarm(self, signum: int, frame: FrameType | None) -> None:
        if self._theirs < self._ours:
            self._theirs = time.monotonic() + self._interval if self._interval else math.inf
            self._arm(min(self._ours, self._theirs))
            if callable(self._handler):
                self._handler(signum, frame)
            return
        self._on_timeout(frame)
        shielded().interrupt_or_defer()


class _Watchdog:
    """A timer in a thread, which interrupts the thread that created it."""

    def __init__(self, seconds: float, on_timeout: Callable[[FrameType | None], None]) -> None:
        self._seconds = seconds
        self._on_timeout = on_timeout
        self._thread_id = threading.get_ident()
        self._interrupts = shielded()
        self._ended = threading.Event()
        self._timed_out = False
        self._watcher = threading.Thread(target=self._watch, name="synapse-deadline", daemon=True)
        self._watcher.start()

    def cancel(self) -> None:
        """Stop the timer thread, and drop the interrupt if it is still pending."""
        self._ended.set()
        self._watcher.join()
        if self._timed_out:
            absorb_pending_interrupt()

    def _watch(self) -> None:
        if self._ended.wait(self._seconds):
            return
        self._timed_out = True
        self._on_timeout(sys._current_frames().get(self._thread_id))
        self._interrupts.raise_interrupt()


def format_stacks(frame: FrameType | None, *, thread_id: int, threads_before: set[threading.Thread]) -> str:
    """Return the stacks of an action as text: its own thread's first, then those of the threads that it has started.

    Args:
        frame: The innermost frame of the action's thread.
        thread_id: The id of that thread.
        threads_before: The threads that existed before the action started.
    """
    parts = [_stack_text(frame)]
    frames = sys._current_frames()
    for thread in threading.enumerate():
        if thread in threads_before or thread.name in ("synapse-deadline", "synapse-call"):
            continue
        if getattr(thread, "parent_thread", thread_id) != thread_id:  # belongs to another call
            continue
        text = _stack_text(frames.get(thread.ident or 0))
        if text:
            parts.append(text if thread.name == "synapse-action" else f"Thread {thread.name}:\n{text}")
    return "\n".join(filter(None, parts))


def _stack_text(frame: FrameType | None) -> str:
    """Return the action's part of a thread's stack as text, without frames of this package and of an event loop."""
    if frame is None:
        return ""
    entries = traceback.extract_stack(frame)
    for index in range(len(entries) - 1, -1, -1):
        if (entries[index].filename, entries[index].name) == _WAITING_FRAME:
            return ""
        if (entries[index].filename, entries[index].name) in _ENTRY_FRAMES:
            entries = traceback.StackSummary.from_list(entries[index + 1 :])
            break
    loop = event_loop_of(frame)
    if loop is not None:
        entries = traceback.StackSummary.from_list([e for e in entries if not e.filename.startswith(_EVENT_LOOP)])
    parts = ["".join(entries.format()).rstrip()]
    for task in () if loop is None else _tasks_of(loop):
        waiting = traceback.StackSummary.extract(_coroutine_frames(task.get_coro()))
        if waiting:
            parts.append(f"Task {task.get_name()}:\n" + "".join(waiting.format()).rstrip())
    return "\n".join(filter(None, parts))


def _tasks_of(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    import asyncio

    return sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())


def _coroutine_frames(coroutine: Any) -> Iterator[tuple[FrameType, int]]:
    """Yield the frames of a suspended coroutine, outermost first; nothing for a running one."""
    while coroutine is not None and not getattr(coroutine, "cr_running", False):
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None:
            yield frame, frame.f_lineno
        coroutine = getattr(coroutine, "cr_await", None)

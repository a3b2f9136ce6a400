"""Time limits: stop an action where it is stuck, and keep the stacks that show where."""

from __future__ import annotations

import contextlib
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

if TYPE_CHECKING:
    import asyncio

# Where a coroutine that waits is, its task tells better than the event loop's own frames.
_EVENT_LOOP = tuple(os.path.join(sysconfig.get_path("stdlib"), name) for name in ("asyncio", "selectors.py"))
# The last of our own frames on the way to an action, as (file, function).
_CORE = os.path.dirname(os.path.abspath(__file__))
_OUR_LAST = {
    (os.path.join(os.path.dirname(_CORE), "action.py"), "invoke"),
    (os.path.join(_CORE, "execution.py"), "_await"),
    (os.path.join(_CORE, "threads.py"), "_run"),
    (threading.__file__, "run"),
}
# Where a thread of ours waits for the action's.
_OUR_WAIT = (os.path.join(_CORE, "threads.py"), "start_and_wait")


class ActionInterrupted(BaseException):
    """Raised in the action's thread at its limit. No `except Exception` of the action's can stop it."""


class time_limit:
    """Stop what runs in the block after this many seconds, and leave the block.

    In the main thread an alarm interrupts even a blocking call; in others the interpreter does it between two
    instructions, so a call that blocks in C ends first, but for an event loop that waits, which is woken. (A class, not
    a generator: that would write to the exceptions that pass through, which those of users may refuse.)

    Args:
        seconds: The limit; None for none.

    Attributes:
        stack: The stacks at which the block was stuck, as text, once it was: of its own thread, of the threads that it
            has started, and of the tasks of their event loops.

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
            self._own = threading.get_ident()
            self._before = set(threading.enumerate())  # not their ids, which are given again
            self._timer = (_Alarm if in_main else _Watchdog)(self._seconds, self._ring)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        if self._timer is not None:
            try:
                self._timer.cancel()
            except ActionInterrupted:  # it rang at this very moment
                if self.stack is None:  # an outer limit did
                    raise
                self._timer.cancel()
        # What a stopped action raises on its way out is not its outcome. The end of an outer limit is not ours.
        return self.stack is not None and kind is not None and not issubclass(kind, KeyboardInterrupt)

    def _ring(self, frame: FrameType | None) -> None:
        self.stack = format_stacks(frame, own=self._own, threads_before=self._before)


class _Alarm:
    """There is one alarm for all: somebody else's (an outer limit's, pytest-timeout's) rings on time, and goes on."""

    def __init__(self, seconds: float, ring: Callable[[FrameType | None], None]) -> None:
        remaining, self._interval = signal.getitimer(signal.ITIMER_REAL)
        self._ours = time.monotonic() + seconds
        self._theirs = time.monotonic() + remaining if remaining else math.inf
        self._ring = ring
        self._handler = signal.signal(signal.SIGALRM, self._on_alarm)
        self._arm(min(self._ours, self._theirs))

    def cancel(self) -> None:
        """Give the alarm back."""
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
        self._ring(frame)
        raise ActionInterrupted


class _Watchdog:
    """A thread that waits for the limit of another one."""

    def __init__(self, seconds: float, ring: Callable[[FrameType | None], None]) -> None:
        self._seconds = seconds
        self._ring = ring
        self._thread_id = threading.get_ident()
        self._ended = threading.Event()
        self._rang = False
        self._watcher = threading.Thread(target=self._watch, name="synapse-deadline", daemon=True)
        self._watcher.start()

    def cancel(self) -> None:
        """End the watch."""
        self._ended.set()
        self._watcher.join()
        if self._rang:
            absorb_pending_interrupt()

    def _watch(self) -> None:
        if self._ended.wait(self._seconds):
            return
        self._rang = True
        self._ring(sys._current_frames().get(self._thread_id))
        raise_in_thread(self._thread_id, ActionInterrupted)


def raise_in_thread(thread_id: int, error: type[BaseException]) -> None:
    """Raise an error in another thread, between two of its instructions; an event loop that waits there is woken."""
    import ctypes

    loop = _loop_of(sys._current_frames().get(thread_id))
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(error))
    if loop is not None:
        with contextlib.suppress(RuntimeError):  # it has ended meanwhile
            loop.call_soon_threadsafe(lambda: None)


def absorb_pending_interrupt() -> None:
    """Take `ActionInterrupted` that is to be raised in this thread, if it has not been yet: it is too late for it.

    (CPython can take it back too, but goes on to look for it for ever.)
    """
    try:
        time.sleep(0)
    except ActionInterrupted:
        return


def format_stacks(frame: FrameType | None, *, own: int, threads_before: set[threading.Thread]) -> str:
    """Return where an action is, as text: its own thread's stack first, then those of threads that it has started.

    Args:
        frame: The innermost frame of the action's thread.
        own: The id of that thread.
        threads_before: The threads that were there before the action.
    """
    parts = [_stack_text(frame)]
    frames = sys._current_frames()
    for thread in threading.enumerate():
        if thread in threads_before or thread.name in ("synapse-deadline", "synapse-call"):
            continue
        if getattr(thread, "parent_thread", own) != own:  # another call's
            continue
        text = _stack_text(frames.get(thread.ident or 0))
        if text:
            parts.append(text if thread.name == "synapse-action" else f"Thread {thread.name}:\n{text}")
    return "\n".join(filter(None, parts))


def _stack_text(frame: FrameType | None) -> str:
    """Return a thread's stack as text, the action's own part of it: without frames of ours and of an event loop."""
    if frame is None:
        return ""
    entries = traceback.extract_stack(frame)
    for index in range(len(entries) - 1, -1, -1):
        if (entries[index].filename, entries[index].name) == _OUR_WAIT:
            return ""
        if (entries[index].filename, entries[index].name) in _OUR_LAST:
            entries = traceback.StackSummary.from_list(entries[index + 1 :])
            break
    loop = _loop_of(frame)
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


def _loop_of(frame: FrameType | None) -> asyncio.AbstractEventLoop | None:
    """Return the event loop that a thread is running, told by its stack: a loop is asked for in its own thread only."""
    if "asyncio" not in sys.modules:  # so none of its loops runs; to import it takes long
        return None
    import asyncio

    while frame is not None:
        if frame.f_code.co_name == "run_forever":
            loop = frame.f_locals.get("self")
            return loop if isinstance(loop, asyncio.AbstractEventLoop) else None
        frame = frame.f_back
    return None


def _coroutine_frames(coroutine: Any) -> Iterator[tuple[FrameType, int]]:
    """Yield the frames of a coroutine that waits, outermost first; nothing of one that runs."""
    while coroutine is not None and not getattr(coroutine, "cr_running", False):
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None:
            yield frame, frame.f_lineno
        coroutine = getattr(coroutine, "cr_await", None)

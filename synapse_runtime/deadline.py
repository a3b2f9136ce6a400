"""Time limits: stop an action where it is stuck, and keep the stack that shows where."""

from __future__ import annotations

import contextlib
import ctypes
import math
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


class OutOfTime(BaseException):
    """Raised in the action's thread at its limit. No `except Exception` of the action's can stop it."""


@dataclass
class Limit:
    """A time limit in force. `stack` is the text of the stack at which the action was stuck, once it was."""

    stack: str | None = None


@contextlib.contextmanager
def deadline(seconds: float | None) -> Iterator[Limit]:
    """Stop what runs in the block after this many seconds, and leave the block.

    In the main thread an alarm interrupts even a blocking call; in others the interpreter does it between two
    instructions, so a call that blocks in C ends first.

    Args:
        seconds: The limit; None for none.

    Yields:
        The `Limit`, whose `stack` is set afterwards if time ran out.

    Example:
        >>> with deadline(0.05) as limit:
        ...     while True:
        ...         pass
        >>> "while True" in limit.stack or "stdin" in limit.stack or "doctest" in limit.stack
        True
    """
    limit = Limit()
    if seconds is None:
        yield limit
        return
    in_main = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    try:
        with _alarm(seconds, limit) if in_main else _watchdog(seconds, limit):
            yield limit
    except KeyboardInterrupt:
        raise
    except BaseException:
        # What a stopped action raises on its way out is not its outcome. The end of an outer limit is not ours.
        if limit.stack is None:
            raise


@contextlib.contextmanager
def _alarm(seconds: float, limit: Limit) -> Iterator[None]:
    # There is one alarm for all: somebody else's (an outer limit's, pytest-timeout's) rings on time, and goes on after.
    remaining, interval = signal.getitimer(signal.ITIMER_REAL)
    ours = time.monotonic() + seconds
    theirs = time.monotonic() + remaining if remaining else math.inf

    def arm(moment: float, interval: float = 0.0) -> None:
        signal.setitimer(signal.ITIMER_REAL, max(moment - time.monotonic(), 1e-6), interval)

    def ring(signum: int, frame: FrameType | None) -> None:
        nonlocal theirs
        if theirs < ours:
            theirs = time.monotonic() + interval if interval else math.inf
            arm(min(ours, theirs))
            if callable(handler):
                handler(signum, frame)
            return
        limit.stack = _stack_text(frame)
        raise OutOfTime

    handler = signal.signal(signal.SIGALRM, ring)
    arm(min(ours, theirs))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if theirs < math.inf:
            arm(theirs, interval)


@contextlib.contextmanager
def _watchdog(seconds: float, limit: Limit) -> Iterator[None]:
    thread_id = threading.get_ident()
    ended = threading.Event()

    def watch() -> None:
        if ended.wait(seconds):
            return
        limit.stack = _stack_text(sys._current_frames().get(thread_id))
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(OutOfTime))

    watcher = threading.Thread(target=watch, name="synapse-deadline", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _stack_text(frame: FrameType | None) -> str:
    """Return the stack as text, the action's own part of it: from the outermost frame that is not ours."""
    frames = traceback.extract_stack(frame) if frame is not None else []
    for index, entry in enumerate(frames):
        if entry.name == "invoke" and entry.filename.endswith("action.py"):
            frames = frames[index + 1 :]
            break
    return "".join(traceback.format_list(frames)).rstrip()

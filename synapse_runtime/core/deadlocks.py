"""Recognize that a thread which runs an action waits for the current thread, such as one of a thread pool."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from types import FrameType
from typing import Any

from synapse_runtime.core.threads import InterruptibleThread

_POOL = "concurrent/futures/thread.py"
_FUTURES = "concurrent/futures/_base.py"


def waits_for_this_thread(thread_id: int) -> bool:
    """Return whether another thread waits for the end of this thread, or for a future that this thread computes.

    What waits for a queue or an event may wait for this thread too, but that cannot be seen.

    Args:
        thread_id: The thread in which an action was called.
    """
    frames = sys._current_frames()
    threads = _callers()
    futures = [future for one in threads for future in _futures_of(frames.get(one.ident or 0))]
    return any(
        _waits_in(frame, threads, futures)
        for waiting in (thread_id, *_children(thread_id))
        for frame in _stack(frames.get(waiting))
    )


def _callers() -> list[threading.Thread]:
    """Return the current thread, and those that wait for it as it makes a call for them."""
    found = [threading.current_thread()]
    while isinstance(found[-1], InterruptibleThread):
        parent = found[-1].parent_thread
        caller = next((one for one in threading.enumerate() if one.ident == parent), None)
        if caller is None:
            break
        found.append(caller)
    return found


def _children(thread_id: int) -> Iterator[int]:
    """Yield the threads in which the action of this thread's call runs."""
    for one in threading.enumerate():
        if isinstance(one, InterruptibleThread) and one.parent_thread == thread_id and one.ident is not None:
            yield one.ident


def _futures_of(frame: FrameType | None) -> Iterator[Future[Any]]:
    for one in _stack(frame):
        if one.f_code.co_name == "run" and _is_in(one, _POOL):
            future = getattr(one.f_locals.get("self"), "future", None)
            if isinstance(future, Future):
                yield future


def _waits_in(frame: FrameType, threads: list[threading.Thread], futures: list[Future[Any]]) -> bool:
    name = frame.f_code.co_name
    if name == "join" and frame.f_code.co_filename == threading.__file__:
        return frame.f_locals.get("self") in threads
    if futures and _is_in(frame, _FUTURES):
        if name in ("result", "exception"):
            return frame.f_locals.get("self") in futures
        if name in ("wait", "as_completed"):
            waited_for = list(frame.f_locals.get("fs") or ())
            return any(future in waited_for for future in futures)
    return False


def _is_in(frame: FrameType, file: str) -> bool:
    return frame.f_code.co_filename.replace("\\", "/").endswith(file)


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back

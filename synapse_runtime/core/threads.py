"""Threads that another thread can interrupt, a lock whose waiters can be interrupted, shared process-wide changes."""

from __future__ import annotations

import _thread
import contextlib
import contextvars
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from synapse_runtime.core.timeouts import ActionInterrupted, absorb_pending_interrupt, raise_in_thread

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help

_log = logging.getLogger("synapse")
# A thread that waits can be stopped between two waits only, so each is short.
POLL_SECONDS = 0.05
# How long until a stop that was lost is raised again.
_RERAISE_SECONDS = 0.01


class InterruptibleThread(threading.Thread):
    """A thread that calls one function, in a copy of this thread's context, and can be stopped by another.

    What stops it is `ActionInterrupted`, raised between two of its instructions: a call that blocks in C ends first.

    Args:
        function: What to call.
        name: The thread's name.
        on_end: Called in the thread when it has ended.
    """

    def __init__(self, function: Callable[[], Any], *, name: str, on_end: Callable[[], object] | None = None) -> None:
        super().__init__(name=name, daemon=True)
        self._function = function
        self._context = _own_context()
        self._on_end = on_end
        self.parent_thread = threading.get_ident()  # whose stack this one's belongs to
        self._ended = threading.Event()  # `join` takes a thread for ended when it is interrupted
        self._lock = threading.Lock()
        self._is_running = self._was_stopped = False
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Call the function."""
        with reraise_dropped_interrupts():
            try:
                self._run()
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                self._error = error
        self._ended.set()
        if self._on_end is not None:
            self._on_end()

    def _run(self) -> None:
        try:
            with self._lock:
                if self._was_stopped:
                    raise ActionInterrupted
                self._is_running = True
            self._result = self._context.run(self._function)
        finally:
            with self._lock:
                self._is_running = False
            if self._was_stopped:
                absorb_pending_interrupt()

    def stop(self) -> None:
        """Let the function be left where it is, or not be called."""
        with self._lock:
            self._was_stopped = True
            if self._is_running and self.ident is not None:
                raise_in_thread(self.ident, ActionInterrupted)

    def outcome(self) -> Any:
        """Return what the function returned, or raise what it raised; call it when the thread has ended."""
        error, self._error = self._error, None  # which refers to frames, which refer to this
        if error is not None:
            raise error
        return self._result

    def start_and_wait(self, grace: float) -> Any:
        """Start the thread, wait for its end, and return or raise its outcome.

        Args:
            grace: How long to wait for it where this thread is stopped itself, and stops that one. Longer is no use: it
                is left, and goes on until its call returns.
        """
        try:
            self.start()
            while not self._ended.wait(POLL_SECONDS):
                pass
        except BaseException:
            self.stop()
            if not self._ended.wait(grace):
                _log.warning("%s is stuck in a call that is not Python's, and is left until that returns", self.name)
            raise
        return self.outcome()


class CallThread(InterruptibleThread):
    """The thread of a call that an event loop waits for. What may get stuck runs in another, so that this one ends."""


class InterruptibleLock:
    """One thread at a time, as with a lock; unlike that, a thread that waits for it can be stopped."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_held = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the turn, and have it inside the block."""
        mine = False  # told in one instruction with that it is taken: this thread may be stopped anywhere
        try:
            with self._changed:
                while self._is_held:
                    self._changed.wait(POLL_SECONDS)
                self._is_held = mine = True
            yield
        finally:
            if mine:
                with self._changed:
                    self._is_held = False
                    self._changed.notify()


class SharedContext:
    """A change of the whole process that several threads may want at once: made for the first, undone after the last.

    Args:
        change: Makes it, as a context manager.
    """

    def __init__(self, change: Callable[[], contextlib.AbstractContextManager[object]]) -> None:
        self._enter_change = change
        self._lock = threading.Lock()
        self._users = 0
        self._stack = contextlib.ExitStack()

    def __call__(self) -> SharedContext:
        """Return a block inside which it is made."""
        return self

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._stack.enter_context(self._enter_change())
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._stack.close()


@contextlib.contextmanager
def _reraise_dropped() -> Iterator[None]:
    before = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        thread = threading.current_thread()
        if dropped.exc_type is ActionInterrupted and isinstance(thread, InterruptibleThread):
            again: Callable[[], object] = thread.stop
        elif dropped.exc_type is KeyboardInterrupt and thread is threading.main_thread():
            again = _thread.interrupt_main
        else:
            before(dropped)
            return
        threading.Timer(_RERAISE_SECONDS, again).start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:  # else somebody has put theirs over it
            sys.unraisablehook = before


# A block in which neither the stop of a `InterruptibleThread` nor Ctrl-C is lost where it comes while a finalizer runs.
# Python drops what is raised in those, that of a connection for instance, so it is raised again.
reraise_dropped_interrupts = SharedContext(_reraise_dropped)


def _own_context() -> contextvars.Context:
    """Return a copy of this context, for a thread in which no event loop runs yet."""
    context = contextvars.copy_context()
    if "sniffio" in sys.modules:  # by which anyio and httpx tell which library runs
        import sniffio

        context.run(sniffio.current_async_library_cvar.set, None)
    return context

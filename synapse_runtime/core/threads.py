"""Interruptible threads, a lock whose waiters can be interrupted, and reference-counted process-wide changes."""

from __future__ import annotations

import _thread
import contextlib
import contextvars
import functools
import logging
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from synapse_runtime.core.interrupts import Interrupts, shielded
from synapse_runtime.errors import ActionInterrupted

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines

_Result = TypeVar("_Result")

_log = logging.getLogger("synapse")
# A waiting thread can only be interrupted between two waits, so each wait is short.
POLL_SECONDS = 0.05
# The delay before a lost interrupt is raised again.
_RERAISE_SECONDS = 0.01


class InterruptibleThread(threading.Thread):
    """A thread that calls one function, in a copy of the current context, and can be interrupted by another thread.

    `ActionInterrupted` is raised between two of its instructions, so a call that blocks in C returns first.

    Args:
        function: The function to call.
        name: The thread's name.
        on_end: Called in the thread after the function has ended.
    """

    def __init__(self, function: Callable[[], Any], *, name: str, on_end: Callable[[], object] | None = None) -> None:
        super().__init__(name=name, daemon=True)
        self._function = function
        self._context = _own_context()
        self._on_end = on_end
        self.parent_thread = threading.get_ident()  # `timeouts.format_stacks` reads it
        self._ended = threading.Event()  # an interrupted `join` would consider the thread ended
        self._wake_parent = threading.Event()
        self._interrupts = Interrupts(shields=1)
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Call the function."""
        self._interrupts.attach()
        try:
            with reraise_dropped_interrupts():
                function = functools.partial(self._context.run, self._function)
                self._result = self._interrupts.call_interruptibly(function)
        except BaseException as error:  # noqa: BLE001 - `outcome` raises it again
            self._error = error
        self._ended.set()
        self._wake_parent.set()
        if self._on_end is not None:
            self._on_end()

    def stop(self) -> None:
        """Interrupt the function, or do not call it if it has not started."""
        self._interrupts.raise_interrupt()

    def outcome(self) -> Any:
        """Return what the function returned, or raise what it raised. The thread must have ended."""
        error, self._error = self._error, None  # breaks the cycle: error, traceback, frames, this object
        if error is not None:
            raise error
        return self._result

    def start_and_wait(self, grace: float) -> Any:
        """Start the thread, wait until it ends, and return or raise its outcome.

        Args:
            grace: Seconds to wait for it to stop if the current thread is interrupted. After that the thread is
                abandoned: it keeps running until its blocking call returns.
        """
        try:
            with shielded() as interrupts:
                self.start()
                while not self._ended.is_set():
                    interrupts.raise_deferred()
                    interrupts.wait(self._wake_parent, POLL_SECONDS)
        except BaseException:
            self.stop()
            if self.ident is not None and not self._ended.wait(grace):
                _log.warning("%s is blocked in native code and keeps running in the background", self.name)
            raise
        return self.outcome()


class CallThread(InterruptibleThread):
    """The thread of a call that an event loop awaits. The action runs in another thread, so this one always ends."""


class InterruptibleLock:
    """A lock; unlike with `threading.Lock`, a thread that waits for it can be interrupted."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_held = False

    def call(self, function: Callable[[], _Result]) -> _Result:
        """Call a function while holding the lock."""
        acquired = False  # set in the same statement as `_is_held`: Ctrl-C may come anywhere
        with shielded() as interrupts:
            try:
                with self._changed:
                    while self._is_held:
                        interrupts.raise_deferred()
                        self._changed.wait(POLL_SECONDS)
                    self._is_held = acquired = True
                return interrupts.call_interruptibly(function)
            finally:
                if acquired:
                    with self._changed:
                        self._is_held = False
                        self._changed.notify()


class SharedContext:
    """A process-wide change that several threads may use at once: the first applies it, the last undoes it.

    Args:
        change: Returns a context manager that applies and undoes the change.
    """

    def __init__(self, change: Callable[[], contextlib.AbstractContextManager[object]]) -> None:
        self._enter_change = change
        self._lock = threading.Lock()
        self._users = 0
        self._stack = contextlib.ExitStack()

    def __call__(self) -> SharedContext:
        """Return a context manager in which the change is applied."""
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


def _call_outside(function: Callable[[], object], thread_id: int | None, code: types.CodeType) -> None:
    """Call a function that interrupts another thread, once that thread does not execute this code any more."""
    while True:
        time.sleep(_RERAISE_SECONDS)
        frame = sys._current_frames().get(thread_id or 0)
        while frame is not None and frame.f_code is not code:
            frame = frame.f_back
        if frame is None:
            break
    function()


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
        threading.Thread(target=_call_outside, args=(again, thread.ident, hook.__code__), daemon=True).start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:  # otherwise other code has installed its own hook since
            sys.unraisablehook = before


# A context in which neither the interrupt of an `InterruptibleThread` nor Ctrl-C is lost if it is raised in a finalizer
# (such as that of a connection). Python drops exceptions of finalizers, so they are raised again.
reraise_dropped_interrupts = SharedContext(_reraise_dropped)


def _own_context() -> contextvars.Context:
    """Return a copy of the current context for a new thread, in which no event loop runs yet."""
    context = contextvars.copy_context()
    if "sniffio" in sys.modules:  # anyio and httpx detect the running async library with it
        import sniffio

        context.run(sniffio.current_async_library_cvar.set, None)
    return context

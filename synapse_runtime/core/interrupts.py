"""Interrupt another thread, except where it must not be interrupted."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from synapse_runtime.errors import ActionInterrupted

if TYPE_CHECKING:
    import asyncio

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines

_Result = TypeVar("_Result")


class Interrupts:
    """The interrupts of one thread: `raise_interrupt` raises `ActionInterrupted` in it, between two instructions.

    As a context manager, it is a shield: inside it nothing is raised; an interrupt that arrives inside it is raised
    when it is left. So what must be done as a whole, such as restoring the environment, is done as a whole, and cleanup
    is not skipped. Inside a shield, `call_interruptibly` calls what may take long. Shields nest.

    Each thread has its own object, which `shielded` returns.

    Args:
        shields: In how many shields the thread is.
    """

    # The interpreter looks for an exception to raise in a thread when it calls a function and when it loops. So between
    # two statements here that do neither, none is raised.

    def __init__(self, shields: int = 0) -> None:
        self._lock = threading.Lock()
        self._shields = shields
        self._is_deferred = False
        self._is_raising = self._was_raised = False  # another thread is raising an interrupt; it may not have arrived
        self._thread_id = 0
        self._waits_for: threading.Event | None = None

    def attach(self) -> None:
        """Make this the object of the current thread."""
        self._thread_id = threading.get_ident()
        _local.interrupts = self

    def raise_interrupt(self) -> None:
        """Raise `ActionInterrupted` in the thread, or have its shield do that; wake it up."""
        with self._lock:
            self._is_raising = True
            if self._shields:
                self._defer()
            else:
                self._was_raised = True
                _raise_in_thread(self._thread_id)
            self._is_raising = False

    def interrupt_or_defer(self) -> None:
        """Raise `ActionInterrupted` in the current thread, or have its shield do that.

        For signal handlers, which run in the main thread between two instructions.
        """
        if not self._shields:
            raise ActionInterrupted
        self._defer()

    def raise_deferred(self) -> None:
        """Raise an interrupt that a shield holds back; for moments inside it at which that is harmless."""
        if self._is_deferred:
            self._is_deferred = False
            raise ActionInterrupted

    def drop_deferred(self) -> None:
        """Drop an interrupt that a shield holds back, as what it should stop has ended."""
        self._is_deferred = False

    def call_interruptibly(self, function: Callable[[], _Result]) -> _Result:
        """Call a function inside a shield as if outside of it."""
        shields = self._shields
        try:
            self._shields = 0
            self.raise_deferred()
            return function()
        finally:
            self._shields = shields
            try:
                if self._is_raising or self._was_raised:
                    self._let_arrive()
            except ActionInterrupted:
                self._is_deferred = True

    def wait(self, event: threading.Event, seconds: float) -> None:
        """Wait inside a shield until the event is set or an interrupt is held back, and clear the event."""
        self._waits_for = event
        if not self._is_deferred:
            event.wait(seconds)
        self._waits_for = None
        event.clear()

    def __enter__(self) -> Self:
        self._shields += 1
        try:
            if self._is_raising or self._was_raised:
                self._let_arrive()
        except ActionInterrupted:
            self._is_deferred = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._shields -= 1
        if self._is_deferred and not self._shields:
            self._is_deferred = False
            if kind is None or not issubclass(kind, KeyboardInterrupt):
                raise ActionInterrupted

    def _defer(self) -> None:
        self._is_deferred = True
        if self._waits_for is not None:
            self._waits_for.set()

    def _let_arrive(self) -> None:
        """Have an interrupt raised that another thread has raised in this one, or is raising."""
        with self._lock:
            pass
        self._was_raised = False
        time.sleep(0)


class _Local(threading.local):
    interrupts: Interrupts


_local = _Local()


@contextlib.contextmanager
def keyboard_interrupt_deferred() -> Iterator[None]:
    """Defer Ctrl-C until the end of the block, for the import of large extension modules.

    Python drops a `KeyboardInterrupt` that it raises in a callback of the import system; and one that passes through
    code which an extension module runs makes Python end with SIGINT, even if it is handled.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: arrived.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if arrived:
            handler(*arrived[0])


def shielded() -> Interrupts:
    """Return the current thread's `Interrupts`: inside it as a context manager, no interrupt and no timeout is raised.

    Ctrl-C still is.

    Example:
        >>> with shielded() as interrupts:
        ...     interrupts.call_interruptibly(lambda: "takes long")
        'takes long'
    """
    try:
        return _local.interrupts
    except AttributeError:
        Interrupts().attach()
        return _local.interrupts


def absorb_pending_interrupt() -> None:
    """Raise and drop an `ActionInterrupted` that is still pending in this thread, as the action has ended.

    (CPython can also clear a pending exception, but then keeps checking for one forever.)
    """
    with contextlib.suppress(ActionInterrupted):
        time.sleep(0)


def event_loop_of(frame: FrameType | None) -> asyncio.AbstractEventLoop | None:
    """Return the event loop that a thread runs, found in its stack: asyncio returns only the current thread's loop."""
    if "asyncio" not in sys.modules:  # so no loop runs, and importing it would take long
        return None
    import asyncio

    while frame is not None:
        if frame.f_code.co_name == "run_forever":
            loop = frame.f_locals.get("self")
            return loop if isinstance(loop, asyncio.AbstractEventLoop) else None
        frame = frame.f_back
    return None


def _raise_in_thread(thread_id: int) -> None:
    import ctypes

    loop = event_loop_of(sys._current_frames().get(thread_id))
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(ActionInterrupted))
    if loop is not None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed since
            loop.call_soon_threadsafe(lambda: None)

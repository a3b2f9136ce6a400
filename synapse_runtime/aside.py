"""Work in a thread that can be stopped, while another thread, or an event loop of asyncio or trio, waits for it."""

from __future__ import annotations

import _thread
import contextlib
import contextvars
import logging
import sys
import threading
import time
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from synapse_runtime.deadline import OutOfTime, absorb, raise_in

if TYPE_CHECKING:
    import asyncio

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help

_log = logging.getLogger("synapse")
# A thread that waits can be stopped between two waits only, so each is short.
POLL_SECONDS = 0.05
# How long until a stop that was lost is raised again.
_AGAIN_SECONDS = 0.01
# How long an event loop waits for a call that it has stopped: a worker is ended, or a job, over the network.
_STOP_SECONDS = 10.0


class StoppableThread(threading.Thread):
    """A thread that calls one function, in a copy of this thread's context, and can be stopped by another.

    What stops it is `OutOfTime`, raised between two of its instructions: a call that blocks in C ends first.

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
        self.starter = threading.get_ident()  # whose stack this one's belongs to
        self._ended = threading.Event()  # `join` takes a thread for ended when it is interrupted
        self._lock = threading.Lock()
        self._is_running = self._was_stopped = False
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Call the function."""
        with stops_are_heard():
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
                    raise OutOfTime
                self._is_running = True
            self._result = self._context.run(self._function)
        finally:
            with self._lock:
                self._is_running = False
            if self._was_stopped:
                absorb()

    def stop(self) -> None:
        """Let the function be left where it is, or not be called."""
        with self._lock:
            self._was_stopped = True
            if self._is_running and self.ident is not None:
                raise_in(self.ident, OutOfTime)

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


class CallThread(StoppableThread):
    """The thread of a call that an event loop waits for. What may get stuck runs in another, so that this one ends."""


class Turn:
    """One thread at a time, as with a lock; unlike that, a thread that waits for it can be stopped."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = False

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for the turn, and have it inside the block."""
        mine = False  # told in one instruction with that it is taken: this thread may be stopped anywhere
        try:
            with self._changed:
                while self._taken:
                    self._changed.wait(POLL_SECONDS)
                self._taken = mine = True
            yield
        finally:
            if mine:
                with self._changed:
                    self._taken = False
                    self._changed.notify()


class Together:
    """A change of the whole process that several threads may want at once: made for the first, undone after the last.

    Args:
        change: Makes it, as a context manager.
    """

    def __init__(self, change: Callable[[], contextlib.AbstractContextManager[object]]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._wanted = 0
        self._made = contextlib.ExitStack()

    def __call__(self) -> Together:
        """Return a block inside which it is made."""
        return self

    def __enter__(self) -> None:
        with self._lock:
            if not self._wanted:
                self._made.enter_context(self._change())
            self._wanted += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._wanted -= 1
            if not self._wanted:
                self._made.close()


def _call_outside(function: Callable[[], object], thread_id: int | None, code: types.CodeType) -> None:
    """Call a function that interrupts another thread, once that thread does not execute this code any more."""
    while True:
        time.sleep(_AGAIN_SECONDS)
        frame = sys._current_frames().get(thread_id or 0)
        while frame is not None and frame.f_code is not code:
            frame = frame.f_back
        if frame is None:
            break
    function()


@contextlib.contextmanager
def _raises_stops_again() -> Iterator[None]:
    before = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        thread = threading.current_thread()
        if dropped.exc_type is OutOfTime and isinstance(thread, StoppableThread):
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
        if sys.unraisablehook is hook:  # else somebody has put theirs over it
            sys.unraisablehook = before


# A block in which neither the stop of a `StoppableThread` nor Ctrl-C is lost where it comes while a finalizer runs.
# Python drops what is raised in those, that of a connection for instance, so it is raised again.
stops_are_heard = Together(_raises_stops_again)


class EventLoop(ABC):
    """An event loop that waits for a call in a thread: what differs between asyncio and trio. Each serves one call."""

    def __init__(self) -> None:
        self._thread: StoppableThread | None = None
        self._failure: BaseException | None = None

    @staticmethod
    def running() -> EventLoop:
        """Return the one that runs in this thread.

        Raises:
            RuntimeError: There is none.
        """
        if "trio" in sys.modules:
            import trio

            with contextlib.suppress(RuntimeError):  # not in one of its tasks
                trio.lowlevel.current_task()
                return _Trio()
        try:
            return _Asyncio()
        except RuntimeError:
            raise RuntimeError(
                "arun and aexecute wait in an event loop, and none runs here: await them under asyncio or trio, "
                "or call run and execute"
            ) from None

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call the function in a thread, and return or raise its outcome; where this is cancelled, stop it first."""
        thread = self._thread = CallThread(function, name="synapse-call", on_end=self._tell_end)
        try:
            thread.start()
            await self._wait()
        except BaseException:
            thread.stop()
            if not await self._ends_within(_STOP_SECONDS):
                _log.warning("%s did not stop within %g s, and is left", thread.name, _STOP_SECONDS)
            raise
        if self._failure is not None:
            raise self._failure
        return thread.outcome()

    def hearing(self, listener: Callable[..., object] | None) -> Callable[..., None] | None:
        """Return what the call may tell from its thread, so that the listener hears it in the event loop's.

        What the listener raises ends the call, and is raised by `run`.
        """
        return None if listener is None else partial(self._tell, listener)

    def _tell(self, listener: Callable[..., object], *told: Any) -> None:
        def hear() -> None:
            if self._failure is not None:
                return
            try:
                listener(*told)
            except BaseException as error:  # noqa: BLE001 - raised again by `run`
                self._failure = error
                assert self._thread is not None
                self._thread.stop()

        self._post(hear)

    def _tell_end(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended before the call that it had left
            self._post(self._note_end)

    @abstractmethod
    def _post(self, function: Callable[[], object]) -> None:
        """Let the function be called in the loop's thread soon, after those posted before. From any thread."""

    @abstractmethod
    def _note_end(self) -> None:
        """End the waits."""

    @abstractmethod
    async def _wait(self) -> None:
        """Wait for the call's end."""

    @abstractmethod
    async def _ends_within(self, seconds: float) -> bool:
        """Wait for the call's end, cancelled or not, for so many seconds at most; tell whether it has ended."""


class _Asyncio(EventLoop):
    def __init__(self) -> None:
        import asyncio  # with what it imports it takes longer than all that a call needs

        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[None] = self._loop.create_future()

    def _post(self, function: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(function)

    def _note_end(self) -> None:
        self._end.set_result(None)

    async def _wait(self) -> None:
        import asyncio

        await asyncio.wait([self._end])

    async def _ends_within(self, seconds: float) -> bool:
        import asyncio

        until = time.monotonic() + seconds
        while not self._end.done() and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(asyncio.CancelledError):  # anyio cancels again and again
                await asyncio.wait([self._end], timeout=left)
        return self._end.done()


class _Trio(EventLoop):
    def __init__(self) -> None:
        import trio

        super().__init__()
        self._token = trio.lowlevel.current_trio_token()
        self._end = trio.Event()

    def _post(self, function: Callable[[], object]) -> None:
        self._token.run_sync_soon(function)

    def _note_end(self) -> None:
        self._end.set()

    async def _wait(self) -> None:
        await self._end.wait()

    async def _ends_within(self, seconds: float) -> bool:
        import trio

        with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds):
            await self._end.wait()
        ended: bool = self._end.is_set()
        return ended


def _own_context() -> contextvars.Context:
    """Return a copy of this context, for a thread in which no event loop runs yet."""
    context = contextvars.copy_context()
    if "sniffio" in sys.modules:  # by which anyio and httpx tell which library runs
        import sniffio

        context.run(sniffio.current_async_library_cvar.set, None)
    return context

"""Await a call that runs in a thread, under asyncio or trio."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from synapse_runtime.core.threads import CallThread, InterruptibleThread

if TYPE_CHECKING:
    import asyncio

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines

_log = logging.getLogger("synapse")
# How long an event loop waits for a cancelled call: it may have to kill a worker or stop a job over the network.
_STOP_SECONDS = 10.0


class EventLoop(ABC):
    """An event loop that awaits a call in a thread: the differences between asyncio and trio. One object per call."""

    def __init__(self) -> None:
        self._thread: InterruptibleThread | None = None
        self._failure: BaseException | None = None

    @staticmethod
    def running() -> EventLoop:
        """Return the event loop that runs in this thread.

        Raises:
            RuntimeError: No event loop runs in this thread.
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
                "arun and aexecute need a running event loop: await them under asyncio or trio, "
                "or call run and execute instead"
            ) from None

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call the function in a thread, and return or raise its outcome. If this is cancelled, stop the call first."""
        thread = self._thread = CallThread(function, name="synapse-call", on_end=self._notify_ended)
        try:
            thread.start()
            await self._wait()
        except BaseException:
            thread.stop()
            if not await self._wait_for_end(_STOP_SECONDS):
                _log.warning("%s did not stop within %g s and keeps running", thread.name, _STOP_SECONDS)
            raise
        if self._failure is not None:
            raise self._failure
        return thread.outcome()

    def in_loop_thread(self, listener: Callable[..., object] | None) -> Callable[..., None] | None:
        """Return a function for the call's thread that calls the listener in the event loop's thread.

        An exception of the listener stops the call, and is raised by `run`.
        """
        return None if listener is None else _InLoopThread(self, listener)

    @property
    def has_failed(self) -> bool:
        """Whether a listener has raised an exception."""
        return self._failure is not None

    def call_listener(self, listener: Callable[..., object], *args: Any) -> None:
        """Call a listener in the event loop's thread, soon."""

        def call() -> None:
            if self._failure is not None:
                return
            try:
                listener(*args)
            except BaseException as error:  # noqa: BLE001 - raised again by `run`
                self._failure = error
                assert self._thread is not None
                self._thread.stop()

        self._post(call)

    def _notify_ended(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed before its abandoned call ended
            self._post(self._set_ended)

    @abstractmethod
    def _post(self, function: Callable[[], object]) -> None:
        """Schedule the function in the loop's thread, in the order of these calls. May be called from any thread."""

    @abstractmethod
    def _set_ended(self) -> None:
        """Wake up those who wait for the end of the call."""

    @abstractmethod
    async def _wait(self) -> None:
        """Wait until the call has ended."""

    @abstractmethod
    async def _wait_for_end(self, seconds: float) -> bool:
        """Wait at most this many seconds until the call has ended, even if cancelled; return whether it has ended."""


class _InLoopThread:
    """A function for another thread, which calls a listener in the event loop's thread."""

    def __init__(self, loop: EventLoop, listener: Callable[..., object]) -> None:
        self._loop = loop
        self._listener = listener

    @property
    def has_failed(self) -> bool:
        """Whether the listener, or another one of the same call, has raised an exception, which stops the call."""
        return self._loop.has_failed

    def __call__(self, *args: Any) -> None:
        self._loop.call_listener(self._listener, *args)


class _Asyncio(EventLoop):
    def __init__(self) -> None:
        import asyncio  # importing it takes longer than a whole call

        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[None] = self._loop.create_future()

    def _post(self, function: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(function)

    def _set_ended(self) -> None:
        self._end.set_result(None)

    async def _wait(self) -> None:
        import asyncio

        await asyncio.wait([self._end])

    async def _wait_for_end(self, seconds: float) -> bool:
        import asyncio

        until = time.monotonic() + seconds
        while not self._end.done() and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(asyncio.CancelledError):  # anyio cancels repeatedly
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

    def _set_ended(self) -> None:
        self._end.set()

    async def _wait(self) -> None:
        await self._end.wait()

    async def _wait_for_end(self, seconds: float) -> bool:
        import trio

        with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds):
            await self._end.wait()
        ended: bool = self._end.is_set()
        return ended

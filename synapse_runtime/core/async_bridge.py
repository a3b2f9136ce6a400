"""Wait in an event loop, asyncio's or trio's, for a call that runs in a thread."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from synapse_runtime.core.threads import CallThread, InterruptibleThread

if TYPE_CHECKING:
    import asyncio

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help

_log = logging.getLogger("synapse")
# How long an event loop waits for a call that it has stopped: a worker is ended, or a job, over the network.
_STOP_SECONDS = 10.0


class EventLoop(ABC):
    """An event loop that waits for a call in a thread: what differs between asyncio and trio. Each serves one call."""

    def __init__(self) -> None:
        self._thread: InterruptibleThread | None = None
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
        thread = self._thread = CallThread(function, name="synapse-call", on_end=self._notify_ended)
        try:
            thread.start()
            await self._wait()
        except BaseException:
            thread.stop()
            if not await self._wait_for_end(_STOP_SECONDS):
                _log.warning("%s did not stop within %g s, and is left", thread.name, _STOP_SECONDS)
            raise
        if self._failure is not None:
            raise self._failure
        return thread.outcome()

    def in_loop_thread(self, listener: Callable[..., object] | None) -> Callable[..., None] | None:
        """Return what the call may tell from its thread, so that the listener hears it in the event loop's.

        What the listener raises ends the call, and is raised by `run`.
        """
        return None if listener is None else partial(self._call_listener, listener)

    def _call_listener(self, listener: Callable[..., object], *told: Any) -> None:
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

    def _notify_ended(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended before the call that it had left
            self._post(self._set_ended)

    @abstractmethod
    def _post(self, function: Callable[[], object]) -> None:
        """Let the function be called in the loop's thread soon, after those posted before. From any thread."""

    @abstractmethod
    def _set_ended(self) -> None:
        """End the waits."""

    @abstractmethod
    async def _wait(self) -> None:
        """Wait for the call's end."""

    @abstractmethod
    async def _wait_for_end(self, seconds: float) -> bool:
        """Wait for the call's end, cancelled or not, for so many seconds at most; tell whether it has ended."""


class _Asyncio(EventLoop):
    def __init__(self) -> None:
        import asyncio  # with what it imports it takes longer than all that a call needs

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

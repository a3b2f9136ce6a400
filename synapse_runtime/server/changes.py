"""Wakes the streams and requests that wait for a job."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class Changes:
    """Who waits for which job. `notify` may be called from any thread; the rest in the event loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self.is_closing = False

    def open(self) -> None:
        """Use the running event loop."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """End all streams."""
        self.is_closing = True
        self._wake(None)

    def notify(self, job_id: str | None) -> None:
        """Wake those who wait for a job; for any job if it is None."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._wake, job_id)

    @contextlib.contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set whenever the job has changed."""
        event = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(event)
        try:
            yield event
        finally:
            waiting = self._waiting[job_id]
            waiting.discard(event)
            if not waiting:
                del self._waiting[job_id]

    def _wake(self, job_id: str | None) -> None:
        waiting = [self._waiting.get(job_id, set())] if job_id is not None else [*self._waiting.values()]
        for events in waiting:
            for event in events:
                event.set()

"""Streams of a job's output and events, read from the database by number: a slow reader costs nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from synapse_runtime.server.backend import MAX_STREAMS, Backend
from synapse_runtime.server.store import FAILED
from synapse_runtime.server.wire import ApiError

HEARTBEAT_SECONDS = 10.0
_BATCH = 500
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def stream(backend: Backend, frames: AsyncIterator[str]) -> StreamingResponse:
    """Return an event stream.

    Raises:
        ApiError: 503; too many are open.
    """
    if backend.streams >= MAX_STREAMS:
        raise ApiError(503, f"{MAX_STREAMS} streams are open, which is the limit", headers={"Retry-After": "5"})
    backend.streams += 1  # here, not in the generator, which may never be started
    return _CountedResponse(backend, frames)


class _CountedResponse(StreamingResponse):
    def __init__(self, backend: Backend, frames: AsyncIterator[str]) -> None:
        super().__init__(frames, media_type="text/event-stream", headers=_HEADERS)
        self._backend = backend

    async def __call__(self, *arguments: Any) -> None:
        """Send the stream."""
        try:
            await super().__call__(*arguments)
        finally:
            self._backend.streams -= 1


async def tail(backend: Backend, job_id: str) -> AsyncIterator[str]:
    """Yield the tail of a job's console as the v1 and v2 APIs have it: nothing but `data:` lines and blank ones."""
    yield _data({"type": "connected", "job_id": job_id})
    after = 0
    with backend.changes.watch(job_id) as changed:
        while True:
            changed.clear()
            job = await run_in_threadpool(backend.store.job, job_id)
            lines = await run_in_threadpool(backend.store.lines, job_id, after, _BATCH)
            for number, line in lines:
                after = number
                yield _data({"type": "log", "data": line.removesuffix("\n")})
            if lines:
                continue
            if job is None or backend.changes.is_closing:
                return
            if job.has_ended:
                if job.status == FAILED:
                    yield _data({"type": "error", "message": str((job.result or {}).get("error", "the job failed"))})
                yield _data({"type": "complete", "message": job.status, "status": job.status})
                return
            if not await _changed(changed):
                yield _data({"type": "heartbeat"})


async def unknown(job_id: str) -> AsyncIterator[str]:
    """Yield the tail of a job that does not exist, as the v2 API has it."""
    yield _data({"type": "error", "message": f"there is no job {job_id!r}"})


async def events(backend: Backend, job_id: str, after: int) -> AsyncIterator[str]:
    """Yield the events of a job with larger numbers than `after`, until its end."""
    yield ": synapse\n\n"
    with backend.changes.watch(job_id) as changed:
        while True:
            changed.clear()
            job = await run_in_threadpool(backend.store.job, job_id)
            rows = await run_in_threadpool(backend.store.events, job_id, after, _BATCH)
            for row in rows:
                after = row.number
                yield f"id: {row.number}\nevent: {row.kind}\ndata: {row.data}\n\n"
                if row.kind == "end":
                    return
            if rows:
                continue
            if job is None or job.has_ended or backend.changes.is_closing:
                return
            if not await _changed(changed):
                yield ": heartbeat\n\n"


async def _changed(changed: asyncio.Event) -> bool:
    """Wait for a change; return False if a heartbeat is due."""
    try:
        await asyncio.wait_for(changed.wait(), HEARTBEAT_SECONDS)
    except TimeoutError:
        return False
    return True


def _data(frame: dict[str, Any]) -> str:
    return f"data: {json.dumps(frame)}\n\n"

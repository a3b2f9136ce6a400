"""The v2 API: jobs, as the reference SDK's v2 client speaks it, and nothing else."""

from __future__ import annotations

import uuid
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode, urlsplit

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from synapse_runtime.server import streams
from synapse_runtime.server.backend import Backend, Reader, Runner, TheBackend
from synapse_runtime.server.store import PENDING, RUNNING, InvalidTransition, Job
from synapse_runtime.server.v1 import UpdateJobRequest, patch_job
from synapse_runtime.server.wire import ApiError, StrictJson, json_body, timestamp

router = APIRouter(prefix="/v2")


@router.get("/jobs/")
def list_jobs(
    request: Request,
    backend: TheBackend,
    caller: Reader,
    status: str | None = None,
    action: str | None = None,
    cursor: str | None = None,
    per_page: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """List jobs, the newest first."""
    filters: dict[str, Any] = dict(caller.owner_filter)
    if status is not None:
        filters["status"] = status.upper()
    if action is not None:
        filters["action"] = action
    jobs, _ = backend.store.jobs(before=_number(cursor), limit=per_page + 1, **filters)
    following = None
    if len(jobs) > per_page:
        jobs = jobs[:per_page]
        query = urlencode({**request.query_params, "cursor": str(jobs[-1].number)})
        following = f"{request.url.scheme}://{request.url.netloc}{request.url.path}?{query}"
    pages = {"next_cursor": following, "previous_cursor": None, "per_page": per_page}
    return _answer([_listed(backend, job) for job in jobs], pagination=pages)


@router.get("/jobs/{job_id}/")
def get_job(backend: TheBackend, caller: Reader, job_id: str) -> Response:
    """Show a job."""
    return _answer(_detail(backend, backend.visible_job(job_id, caller)))


@router.patch("/jobs/{job_id}/")
def update_job(
    backend: TheBackend,
    caller: Reader,
    job_id: str,
    body: Annotated[UpdateJobRequest, Depends(json_body(UpdateJobRequest))],
) -> Response:
    """Change a job, as its run does. `STOPPED` only records: nothing is stopped."""
    try:
        return _answer(_detail(backend, patch_job(backend, caller, job_id, body)))
    except InvalidTransition as error:
        raise ApiError(400, str(error), code="INVALID_TRANSITION") from None


@router.post("/jobs/{job_id}/stop/")
def stop_job(backend: TheBackend, caller: Runner, job_id: str) -> Response:
    """Stop a job."""
    try:
        return _answer(_detail(backend, backend.stop(backend.visible_job(job_id, caller))))
    except InvalidTransition as error:
        text = f"the job is {error.status}: only a job that waits or runs can be stopped"
        raise ApiError(409, text, code="INVALID_STATE") from None


@router.get("/jobs/{job_id}/console_logs/")
def list_console_logs(backend: TheBackend, caller: Reader, job_id: str) -> Response:
    """List the lines that a job has printed."""
    job = backend.visible_job(job_id, caller)
    return _answer({"logs": [line for _, line in backend.store.lines(job.id)]})


@router.get("/jobs/{job_id}/tail_console_logs/")
async def tail_console_logs(backend: TheBackend, caller: Reader, job_id: str) -> Response:
    """Stream the lines that a job prints. If there is no such job, the stream says so."""
    job = await run_in_threadpool(backend.store.job, job_id)
    if job is None or not caller.may_see(job):
        return streams.stream(backend, streams.unknown(job_id))
    return streams.stream(backend, streams.tail(backend, job.id))


def _listed(backend: Backend, job: Job) -> dict[str, Any]:
    queue: dict[str, Any] | None = None
    if job.status == PENDING:
        position = backend.store.queue_position(job)
        queue = {"position": position, "reason": None, "blockers": [], "updated_at": timestamp(job.modified)}
    return {
        "id": job.id,
        "status": job.status,
        "action": job.action,
        "is_active": job.status in (PENDING, RUNNING),
        "queue": job.meta.get("queue", queue),
        "error": job.meta.get("error"),
        "created": timestamp(job.created),
        "completed": timestamp(job.completed),
    }


def _detail(backend: Backend, job: Job) -> dict[str, Any]:
    return {
        **_listed(backend, job),
        "params": job.params,
        "progress_record": job.progress_record,
        "metrics_record": job.metrics_record,
        "result": job.result,
        "meta": job.meta,
        "plugin_release_id": job.release_id,
        "plugin_release": {"id": job.release_id, "plugin_id": job.plugin_id, "version": job.version},
        "modified": timestamp(job.modified),
    }


def _answer(data: Any, **meta: Any) -> Response:
    return StrictJson({"data": data, "meta": {"request_id": str(uuid.uuid4()), **meta}})


def _number(cursor: str | None) -> int | None:
    """Return the number in a cursor, which may be the whole URL of the next page."""
    if cursor is None:
        return None
    if "?" in cursor:
        cursor = (parse_qs(urlsplit(cursor).query).get("cursor") or [""])[0]
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 16):
        raise ApiError(400, f"{cursor!r} is not a cursor: use the next_cursor of a page")
    return int(cursor)

"""The v1 API: agents, plugins, releases, jobs, logs and applications, as the reference SDK's client speaks it."""

from __future__ import annotations

import datetime as dt
import hmac
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from synapse_runtime.run_record import RunRecord
from synapse_runtime.server import streams
from synapse_runtime.server.auth import Caller
from synapse_runtime.server.backend import (
    AGENT_ID,
    AGENT_NAME,
    Backend,
    IdempotencyKey,
    Publisher,
    Reader,
    Runner,
    TheBackend,
    Wanted,
)
from synapse_runtime.server.releases import INFERENCE, Upload
from synapse_runtime.server.run_state import error_message, error_type, params_problems
from synapse_runtime.server.store import (
    SUCCEEDED,
    InvalidTransition,
    Job,
    PluginRow,
    ReleaseRow,
    ServeApplication,
)
from synapse_runtime.server.wire import ApiError, LooseJson, json_body, parse, plain, timestamp, validated

router = APIRouter()

_DEFERRED = "__synapse_deferred__"
_POLL = "__synapse_poll__"
_PAGE_SIZE = 50
_MAX_PAGE_SIZE = 200

Page = Annotated[int, Query(ge=1, le=1_000_000)]
Size = Annotated[int, Query(ge=1, le=_MAX_PAGE_SIZE)]
Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
ServeStatus = Literal["NOT_STARTED", "DEPLOYING", "RUNNING", "DEPLOY_FAILED", "UNHEALTHY", "UNAVAILABLE", "DELETING"]
Id = Annotated[int, Field(ge=0, lt=2**31)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class RunRequest(_Body):
    """The body of `POST plugins/{plugin}/run/`."""

    agent: Id | None = None
    action: Name | None = None
    params: dict[str, Any] | None = None
    debug: bool | None = None
    version: Name | None = None
    language: Annotated[str, Field(max_length=20)] | None = None


class UpdateJobRequest(_Body):
    """The body of `PATCH jobs/{id}/`."""

    status: Status | None = None
    progress_record: dict[str, Any] | None = None
    metrics_record: dict[str, Any] | None = None
    console_logs: dict[str, Any] | list[dict[str, Any]] | None = None
    result: dict[str, Any] | list[Any] | None = None
    meta: dict[str, Any] | None = None


class PluginRequest(_Body):
    """The body of `POST plugins/` and `PUT plugins/{id}/`."""

    code: Name
    name: Annotated[str, Field(max_length=1000)] | None = None
    category: Annotated[str, Field(max_length=100)] | None = None
    description: str | None = None
    is_public: bool | None = None
    is_active: bool | None = None
    system_only: bool | None = None
    detail: Any = None


class ReleaseForm(BaseModel):
    """The fields of `POST plugin_releases/`, other than the file."""

    model_config = ConfigDict(extra="ignore")

    plugin: Name
    version: Name
    debug: bool = False
    config: dict[str, Any] | None = None
    requirements: list[str] | None = None


class LogEntry(BaseModel):
    """An entry of `POST logs/`, as the SDK's job logger sends it."""

    model_config = ConfigDict(extra="ignore")

    event: Annotated[str, Field(max_length=1000)]
    data: Any = Field(default_factory=dict)
    datetime: str | None = None
    job: str | None = None
    level: Annotated[str, Field(max_length=20)] | None = None
    step: str | None = None
    file: str | None = None


class ServeApplicationRequest(_Body):
    """The body of `POST serve_applications/`."""

    job: int | str
    status: ServeStatus | None = None
    data: dict[str, Any] | None = None


# Agents


@router.get("/agents/")
def list_agents(backend: TheBackend, caller: Reader) -> Response:
    """List the agents: this server is the only one."""
    return _page([_agent(backend)])


@router.post("/agents/{token}/connect/")
def connect_agent(backend: TheBackend, caller: Reader, token: str) -> Response:
    """Check an agent's token."""
    if not hmac.compare_digest(token.encode(), backend.agent_token.encode()):
        raise ApiError(404, "there is no agent with this token")
    return LooseJson(_agent(backend))


def _agent(backend: Backend) -> dict[str, Any]:
    return {
        "id": AGENT_ID,
        "name": AGENT_NAME,
        "url": backend.host,
        "status": "connected",
        "token": backend.agent_token,
    }


# Plugins


@router.get("/plugins/")
def list_plugins(
    request: Request, backend: TheBackend, caller: Reader, code: str | None = None, page: Page = 1, page_size: Size = 50
) -> Response:
    """List the plugins."""
    rows = backend.store.plugins(**({} if code is None else {"code": code}))
    return _page(
        [_plugin(row) for row in rows[(page - 1) * page_size :][:page_size]], len(rows), request, page, page_size
    )


@router.post("/plugins/")
def create_plugin(
    backend: TheBackend, caller: Publisher, body: Annotated[PluginRequest, Depends(json_body(PluginRequest))]
) -> Response:
    """Create a plugin, without a release."""
    row = backend.store.put_plugin(body.code, only_new=True, **body.model_dump(exclude_none=True, exclude={"code"}))
    if row is None:
        raise ApiError(409, f"there is a plugin with the code {body.code!r}: use PUT to change it")
    return LooseJson(_plugin(row), status_code=201)


@router.get("/plugins/{plugin}/")
def get_plugin(backend: TheBackend, caller: Reader, plugin: str) -> Response:
    """Show a plugin, by code or id."""
    return LooseJson(_plugin(_known_plugin(backend, plugin)))


@router.put("/plugins/{plugin}/")
def update_plugin(
    backend: TheBackend,
    caller: Publisher,
    plugin: str,
    body: Annotated[PluginRequest, Depends(json_body(PluginRequest))],
) -> Response:
    """Change a plugin."""
    known = _known_plugin(backend, plugin)
    if body.code != known.code:
        raise ApiError(400, f"the code of plugin {known.code!r} cannot be changed to {body.code!r}")
    row = backend.store.put_plugin(known.code, **body.model_dump(exclude_none=True, exclude={"code"}))
    assert row is not None
    return LooseJson(_plugin(row))


@router.post("/plugins/{plugin}/run/")
async def run_plugin(
    backend: TheBackend,
    caller: Runner,
    plugin: str,
    body: Annotated[RunRequest, Depends(json_body(RunRequest))],
    key: IdempotencyKey,
) -> Response:
    """Run an action: answer a job's id, or of an inference what it returns."""
    params = body.params or {}
    is_inference = body.action in INFERENCE
    if is_inference and isinstance(params.get("json"), dict) and _POLL in params["json"]:
        return await _poll(backend, caller, params["json"][_POLL])
    wanted = Wanted(
        plugin,
        body.action,
        params,
        alternatives=inference_params(params) if is_inference else [],
        version=body.version,
        debug=bool(body.debug),
        agent=body.agent,
        request={"language": body.language, "debug": body.debug},
    )
    sent = {"plugin": plugin, **body.model_dump()}
    job, _ = await run_in_threadpool(backend.submit, caller, wanted, key, sent)
    if not is_inference:
        return LooseJson({"job_id": job.id})
    found = await backend.wait(job.id, backend.inference_seconds)
    if found is None or not found.has_ended:
        return LooseJson({_DEFERRED: True, "status": "pending", "ticket": job.id})
    return _inference_answer(found)


def inference_params(params: dict[str, Any]) -> list[Any]:
    """Return the params of an inference action, in the order to try: clients send two forms, actions take several."""
    content = params.get("json")
    alternatives = [params]
    if "json" in params and params.keys() <= {"json", "method", "model", "path"}:
        rest = {"model": params["model"]} if "model" in params else {}
        inner = content if isinstance(content, dict) else {"input": content}
        return [{**rest, **inner}, inner, params]
    if "input" in params and "path" in params:
        renamed = {name: value for name, value in params.items() if name != "path"}
        alternatives.append({**renamed, "infer_path": params["path"]})
    return alternatives


async def _poll(backend: Backend, caller: Caller, ticket: Any) -> Response:
    job = await backend.wait(ticket, backend.inference_seconds) if isinstance(ticket, str) else None
    if job is None or not caller.may_see(job):
        return LooseJson({_DEFERRED: True, "status": "not_found", "ticket": ticket})
    if not job.has_ended:
        return LooseJson({_DEFERRED: True, "status": "pending", "ticket": ticket})
    if job.status != SUCCEEDED:
        return LooseJson({_DEFERRED: True, "status": "failed", "ticket": ticket, "error": _error_text(job)})
    return _inference_answer(job)


def _inference_answer(job: Job) -> Response:
    record = None if job.record is None else RunRecord.loads(job.record)
    if job.status == SUCCEEDED:
        return LooseJson(job.result if record is None else plain(record.result))
    if record is not None and error_type(record) == "validation_error":
        raise ApiError(422, params_problems(record) or error_message(record))
    raise ApiError(500, f"{job.action} failed: {_error_text(job)}")


def _error_text(job: Job) -> str:
    return str((job.result or {}).get("error") or f"the job is {job.status}")


def _known_plugin(backend: Backend, plugin: str) -> PluginRow:
    row = backend.store.plugin(plugin)
    if row is None:
        raise ApiError(404, f"this server has no plugin {plugin!r}")
    return row


def _plugin(row: PluginRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "code": row.code,
        "name": row.name,
        "category": row.category,
        "description": row.description,
        "is_public": row.is_public,
        "is_active": row.is_active,
        "system_only": row.system_only,
        "detail": row.detail,
        "created": timestamp(row.created),
    }


# Releases


@router.get("/plugin_releases/")
def list_releases(
    request: Request,
    backend: TheBackend,
    caller: Reader,
    plugin: str | None = None,
    page: Page = 1,
    page_size: Size = 50,
) -> Response:
    """List releases, the newest first."""
    filters: dict[str, Any] = {}
    if plugin is not None:
        row = backend.store.plugin(plugin)
        if row is None:
            return _page([])
        filters["plugin_id"] = row.id
    rows = backend.store.releases(**filters)
    shown = [_release(backend, row) for row in rows[(page - 1) * page_size :][:page_size]]
    return _page(shown, len(rows), request, page, page_size)


@router.post("/plugin_releases/")
async def create_release(request: Request, backend: TheBackend, caller: Publisher) -> Response:
    """Publish a release: a form with the plugin's files as a zip file."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "a release needs its files: send multipart/form-data with the zip file as `file`")
    async with request.form(max_files=1, max_fields=200, max_part_size=5_000_000) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise ApiError(400, "the form has no `file`: send the plugin's files as a zip file")
        fields: dict[str, Any] = {name: value for name, value in form.items() if name not in ("file", "requirements")}
        if "config" in fields:
            fields["config"] = parse(str(fields["config"]).encode("utf-8", "replace"))
        if requirements := form.getlist("requirements"):
            fields["requirements"] = [str(item) for item in requirements]
        checked = validated(ReleaseForm, fields)
        upload = Upload(checked.plugin, checked.version, checked.debug, checked.config, checked.requirements, file.file)
        row = await run_in_threadpool(backend.releases.publish, upload)
    return LooseJson(await run_in_threadpool(_release, backend, row), status_code=201)


@router.get("/plugin_releases/{release}/")
def get_release(backend: TheBackend, caller: Reader, release: str, expand: str | None = None) -> Response:
    """Show a release, by id or `code@version`."""
    code, at, version = release.rpartition("@")
    rows: list[ReleaseRow] = []
    if at:
        plugin = backend.store.plugin(code)
        if plugin is not None:
            rows = backend.store.releases(plugin_id=plugin.id, version=version)
    elif release.isascii() and release.isdigit() and len(release) < 10:
        rows = backend.store.releases(id=int(release))
    if not rows:
        raise ApiError(404, f"there is no release {release!r}")
    return LooseJson(_release(backend, rows[0], expanded=bool(at) if expand is None else "plugin" in expand.split(",")))


def _release(backend: Backend, row: ReleaseRow, *, expanded: bool = False) -> dict[str, Any]:
    plugin = backend.store.plugins(id=row.plugin_id)[0] if expanded else None
    return {
        "id": row.id,
        "plugin": row.plugin_id if plugin is None else _plugin(plugin),
        "version": row.version,
        "debug": row.debug,
        "config": row.config,
        "requirements": row.requirements or [],
        "file": f"{backend.host}/runtime/releases/{row.id}/file/" if row.archive else None,
        "created": timestamp(row.created),
    }


# Jobs


@router.get("/jobs/")
def list_jobs(
    request: Request,
    backend: TheBackend,
    caller: Reader,
    status: str | None = None,
    agent: int | None = None,
    plugin: str | None = None,
    page: Page = 1,
    page_size: Size = 50,
) -> Response:
    """List jobs, the newest first."""
    filters: dict[str, Any] = dict(caller.owner_filter)
    if status is not None:
        filters["status"] = status.upper()
    if agent not in (None, AGENT_ID):
        return _page([])
    if plugin is not None:
        row = backend.store.plugin(plugin)
        if row is None:
            return _page([])
        filters["plugin_id"] = row.id
    jobs, count = backend.store.jobs(offset=(page - 1) * page_size, limit=page_size, **filters)
    return _page([_job(job) for job in jobs], count, request, page, page_size)


@router.get("/jobs/{job_id}/")
def get_job(backend: TheBackend, caller: Reader, job_id: str) -> Response:
    """Show a job."""
    return LooseJson(_job(backend.visible_job(job_id, caller)))


@router.patch("/jobs/{job_id}/")
def update_job(
    backend: TheBackend,
    caller: Reader,
    job_id: str,
    body: Annotated[UpdateJobRequest, Depends(json_body(UpdateJobRequest))],
) -> Response:
    """Change a job, as its run does."""
    try:
        return LooseJson(_job(patch_job(backend, caller, job_id, body)))
    except InvalidTransition as error:
        raise ApiError(400, str(error)) from None


def patch_job(backend: Backend, caller: Caller, job_id: str, body: UpdateJobRequest) -> Job:
    """Change a job: each field that is given replaces what there was.

    Raises:
        ApiError: 403; only the run itself and an admin may set the status, and only who may run jobs anything else.
        InvalidTransition: The job cannot have this status.
    """
    job = backend.visible_job(job_id, caller)
    may_set_status = caller.may_set_status(job)
    _require_reporter(caller)
    if body.status is not None and not may_set_status:
        raise ApiError(
            403, "only the run itself or an admin may set a job's status; to stop it, use POST v2/jobs/{id}/stop/"
        )
    given = body.model_dump(exclude_unset=True, exclude={"status", "console_logs"})
    columns = {name: value for name, value in given.items() if value is not None}
    if body.console_logs is not None:
        items = body.console_logs if isinstance(body.console_logs, list) else [body.console_logs]
        backend.store.replace_lines(job_id, [_console_line(item) for item in items])
    if body.status is None:
        changed = backend.store.update_job(job_id, **columns)
    else:
        changed = backend.store.set_status(job_id, body.status, **columns)
    backend.changes.notify(job_id)
    if changed is None:
        raise ApiError(404, f"there is no job {job_id!r}")
    return changed


def _require_reporter(caller: Caller) -> None:
    """Refuse a token that is neither that of a run nor may run jobs.

    Raises:
        ApiError: 403.
    """
    if caller.job_id is None and not caller.may("run"):
        raise ApiError(403, "the access token lacks the scope 'run'")


def _console_line(item: dict[str, Any]) -> str:
    for name in ("message", "content", "text"):
        if isinstance(item.get(name), str):
            return str(item[name]).rstrip("\n") + "\n"
    return LooseJson(item).body.decode() + "\n"  # type: ignore[union-attr]


@router.get("/jobs/{job_id}/console_logs/")
def list_console_logs(backend: TheBackend, caller: Reader, job_id: str) -> Response:
    """List the lines that a job has printed."""
    job = backend.visible_job(job_id, caller)
    return LooseJson([line for _, line in backend.store.lines(job.id)])


@router.get("/jobs/{job_id}/tail_console_logs/")
async def tail_console_logs(backend: TheBackend, caller: Reader, job_id: str) -> Response:
    """Stream the lines that a job prints."""
    job = await run_in_threadpool(backend.visible_job, job_id, caller)
    return streams.stream(backend, streams.tail(backend, job.id))


def _job(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "status": job.status,
        "action": job.action,
        "params": job.params,
        "agent": job.agent,
        "plugin_release": job.release_id,
        "progress_record": job.progress_record,
        "metrics_record": job.metrics_record,
        "result": job.result,
        "meta": job.meta,
        "created": timestamp(job.created),
        "modified": timestamp(job.modified),
        "completed": timestamp(job.completed),
    }


# Logs


@router.post("/logs/")
async def create_logs(request: Request, backend: TheBackend, caller: Reader) -> Response:
    """Add one entry, or a list of entries, to the logs of jobs."""
    data = parse(await request.body())
    items = data if isinstance(data, list) else [data]
    if len(items) > 1000:
        raise ApiError(400, f"{len(items)} entries at once, more than 1000")
    entries = [validated(LogEntry, item) for item in items]
    rows = await run_in_threadpool(_store_logs, backend, caller, entries)
    return LooseJson(rows if isinstance(data, list) else rows[0], status_code=201)


def _store_logs(backend: Backend, caller: Caller, entries: list[LogEntry]) -> list[dict[str, Any]]:
    rows = []
    for entry in entries:
        job_id = entry.job or caller.job_id
        job = None if job_id is None else backend.visible_job(job_id, caller)
        _require_reporter(caller)
        rows.append(
            {
                "job_id": job_id,
                "owner": caller.owner if job is None else job.owner,
                "event": entry.event,
                "step": entry.step or "",
                "level": entry.level or "info",
                "data": entry.data,
                "file": entry.file,
                "datetime": entry.datetime or dt.datetime.now(dt.UTC).isoformat(),
            }
        )
    if rows:
        backend.store.add_logs(rows)
    return [_log(row) for row in rows]


@router.get("/logs/")
def list_logs(
    request: Request,
    backend: TheBackend,
    caller: Reader,
    job: str | None = None,
    event: str | None = None,
    page: Page = 1,
    page_size: Size = 50,
) -> Response:
    """List the entries of jobs' logs, oldest first."""
    filters: dict[str, Any] = {}
    if caller.job_id is not None:
        job = caller.job_id
    if job is not None:
        filters["job_id"] = job
    if event is not None:
        filters["event"] = event
    owner = None if caller.is_admin else caller.owner
    rows, count = backend.store.logs(offset=(page - 1) * page_size, limit=page_size, owner=owner, **filters)
    return _page([_log(row) for row in rows], count, request, page, page_size)


def _log(row: dict[str, Any]) -> dict[str, Any]:
    names = ("event", "step", "level", "data", "file", "datetime")
    shown = {"job": row["job_id"], **{name: row[name] for name in names}}
    return {"id": row["id"], **shown} if "id" in row else shown


# Applications that deployments serve


@router.post("/serve_applications/")
def create_serve_application(
    backend: TheBackend,
    caller: Reader,
    body: Annotated[ServeApplicationRequest, Depends(json_body(ServeApplicationRequest))],
) -> Response:
    """Register an application that a job has deployed."""
    job = backend.visible_job(str(body.job), caller)
    _require_reporter(caller)
    row = backend.store.add_serve_application(job.id, body.status or "NOT_STARTED", body.data or {})
    return LooseJson(_serve_application(row), status_code=201)


@router.get("/serve_applications/")
def list_serve_applications(
    request: Request,
    backend: TheBackend,
    caller: Reader,
    plugin_code: str | None = None,
    job__agent: int | None = None,
    page: Page = 1,
    page_size: Size = 50,
) -> Response:
    """List the applications that jobs have registered, the newest first."""
    filters: dict[str, Any] = dict(caller.owner_filter)
    if plugin_code is not None:
        filters["plugin"] = plugin_code
    if job__agent not in (None, AGENT_ID):
        return _page([])
    rows, count = backend.store.serve_applications(offset=(page - 1) * page_size, limit=page_size, **filters)
    return _page([_serve_application(row) for row in rows], count, request, page, page_size)


def _serve_application(row: ServeApplication) -> dict[str, Any]:
    return {
        "id": row.id,
        "job": row.job_id,
        "status": row.status,
        "data": row.data,
        "created": timestamp(row.created),
    }


# Pages


def _page(
    results: list[Any],
    count: int | None = None,
    request: Request | None = None,
    page: int = 1,
    page_size: int = _PAGE_SIZE,
) -> Response:
    total = len(results) if count is None else count
    following = previous = None
    if request is not None:
        following = _page_url(request, page + 1) if page * page_size < total else None
        previous = _page_url(request, page - 1) if page > 1 else None
    return LooseJson({"count": total, "next": following, "previous": previous, "results": results})


def _page_url(request: Request, page: int) -> str:
    query = {**request.query_params, "page": str(page)}
    return f"{request.url.scheme}://{request.url.netloc}{quote(request.url.path)}?{urlencode(query)}"

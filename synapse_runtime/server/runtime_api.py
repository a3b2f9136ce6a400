"""What the real backend lacks, below `/runtime/`: jobs with idempotency keys, run records, numbered events."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationInfo, field_validator
from starlette.concurrency import run_in_threadpool

from synapse_runtime import __version__
from synapse_runtime.core.around import Seed
from synapse_runtime.core.clock import Clock
from synapse_runtime.core.timeouts import expected_seconds
from synapse_runtime.executors.protocol import settings_of_json
from synapse_runtime.server import streams
from synapse_runtime.server.backend import Admin, IdempotencyKey, Reader, Runner, TheBackend, Wanted
from synapse_runtime.server.releases import INFERENCE
from synapse_runtime.server.run_state import record_of
from synapse_runtime.server.store import EventRow, InvalidTransition, Job, Store
from synapse_runtime.server.v1 import inference_params
from synapse_runtime.server.wire import ApiError, StrictJson, json_body, plain, timestamp

router = APIRouter(prefix="/runtime")
health = APIRouter()

FEATURES: Final = (
    *(
        "jobs",
        "idempotency",
        "events",
        "run_records",
        "env",
        "timeout",
        "job_ids",
        "values",
        "releases",
        "stop",
        "delete",
    ),
)
_BATCH = 5000
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Name = Annotated[str, Field(min_length=1, max_length=200)]


class Resources(BaseModel):
    """What a run requests of a cluster, as the executors take it."""

    model_config = ConfigDict(extra="forbid")

    num_cpus: Annotated[float, Field(ge=0)] | None = None
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    memory: int | str | None = None
    resources: dict[str, float] | None = None


class TestSetup(BaseModel):
    """What the test of a caller has set up.

    Attributes:
        patches: The patches to apply while the action runs; see `executors.remote.patches`.
        seed: The seed of the random number generators.
        clock: The clock that the test has stopped or moved.
    """

    __test__ = False  # no class of tests, wherever pytest finds it

    model_config = ConfigDict(extra="forbid", strict=True)

    patches: Annotated[list[dict[str, Any]], Field(max_length=10_000)] = []
    seed: dict[str, Any] | None = None
    clock: dict[str, Any] | None = None

    @field_validator("seed", "clock")
    @classmethod
    def _check(cls, value: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        kind: type[Any] = Seed if info.field_name == "seed" else Clock
        return None if value is None else asdict(TypeAdapter(kind).validate_python(value))


class JobRequest(BaseModel):
    """The body of `POST /runtime/jobs/`.

    Attributes:
        id: The job's id; a new one by default.
        plugin: The plugin's code or id.
        version: The version of an uploaded release.
        debug: Whether a debug release may be taken without naming its version.
        action: The action's name.
        entrypoint: `module:Name` in the plugin, instead of an action's name.
        name: What messages call the action.
        directory: A plugin's directory or config file on this machine, whose files are run.
        params: The params; values that JSON lacks are encoded as in a run record.
        agent: The agent.
        env: Environment variables of the action; values that JSON lacks are encoded as in a run record.
        timeout: The action's timeout in seconds.
        resources: What it requests of a cluster.
        isolation: Kept with the job.
        language: The language of the action's messages.
        labels: Kept with the job.
        caller: Settings of the caller's process that apply to its calls.
        caller_root: The plugin's directory there: paths of tracebacks, log records and coverage are given as there.
        test: What the caller's test has set up.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] | None = None
    plugin: Name
    version: Name | None = None
    debug: bool = False
    action: Name | None = None
    entrypoint: Name | None = None
    name: Name | None = None
    directory: Annotated[str, Field(max_length=4096)] | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    agent: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    env: dict[str, Any] = Field(default_factory=dict, repr=False)
    timeout: float | None = None
    resources: Resources | None = None
    isolation: Annotated[str, Field(max_length=100)] | None = None
    language: Annotated[str, Field(max_length=20)] | None = None
    labels: dict[str, str] | None = None
    caller: dict[str, Any] | None = Field(default=None, repr=False)
    caller_root: Annotated[str, Field(max_length=4096)] | None = None
    test: TestSetup | None = Field(default=None, repr=False)

    @field_validator("env")
    @classmethod
    def _check_env(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of an environment variable")
        return value

    @field_validator("caller")
    @classmethod
    def _check_caller(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            settings_of_json(value)
        return value

    @field_validator("timeout")
    @classmethod
    def _check_timeout(cls, value: float | None) -> float | None:
        expected = None if value is None else expected_seconds(value)
        if expected is not None:
            raise ValueError(f"must be {expected}")
        return value


@router.get("/")
def describe(backend: TheBackend, caller: Reader) -> Response:
    """Say what this server can do beyond the real backend."""
    features = [*FEATURES, *(["reset"] if backend.is_ephemeral else [])]
    if caller.may("publish"):  # as these have code of the caller's choice run
        features += ["caller", *(["directories"] if backend.runs_directories else [])]
        if backend.runs.run_in == "worker":  # the only place where it is applied
            features.append("test")
    return StrictJson({"server": "synapse-runtime", "version": __version__, "features": features})


@router.post("/jobs/")
def submit_job(
    backend: TheBackend,
    caller: Runner,
    body: Annotated[JobRequest, Depends(json_body(JobRequest))],
    key: IdempotencyKey,
) -> Response:
    """Submit a job. With an `Idempotency-Key`, the same request is accepted only once."""
    if (body.action is None) == (body.entrypoint is None):
        problem = {"loc": ["body", "action"], "msg": "give either action or entrypoint", "type": "value_error"}
        raise ApiError(422, [problem])
    for name in ("caller", "caller_root", "directory", "test"):
        if getattr(body, name) is not None and not caller.may("publish"):
            raise ApiError(403, f"{name} needs an access token with the scope 'publish'")
    if body.directory is not None and not backend.runs_directories:
        raise ApiError(403, "this server runs published plugins only, no other directories")
    # Who has the plugin itself, and so sends the settings of its process, sends params as the action takes them.
    is_platforms_call = body.action in INFERENCE and body.caller is None
    wanted = Wanted(
        body.plugin,
        body.action,
        body.params,
        alternatives=inference_params(body.params) if is_platforms_call else [],
        version=body.version,
        debug=body.debug,
        agent=body.agent,
        entrypoint=body.entrypoint,
        env=body.env,
        request={
            "timeout": body.timeout,
            "language": body.language,
            "resources": None if body.resources is None else body.resources.model_dump(exclude_none=True),
            "isolation": body.isolation,
            "labels": body.labels,
            "name": body.name,
        },
        is_encoded=True,
        directory=None if body.directory is None else Path(body.directory),
        caller=body.caller,
        caller_root=body.caller_root,
        test=None if body.test is None else body.test.model_dump(),
        id=body.id,
    )
    job, is_new = backend.submit(caller, wanted, key, body.model_dump())
    location = f"/runtime/jobs/{job.id}/"
    return StrictJson(_summary(job), status_code=201 if is_new else 200, headers={"Location": location})


@router.get("/jobs/")
def list_jobs(
    backend: TheBackend,
    caller: Reader,
    status: Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"] | None = None,
    before: Annotated[int | None, Query(ge=0, lt=2**62)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """List jobs, the newest first: those with smaller numbers than `before`."""
    filters: dict[str, Any] = {**caller.owner_filter, **({} if status is None else {"status": status})}
    jobs, count = backend.store.jobs(before=before, limit=limit, **filters)
    return StrictJson({"count": count, "results": [_summary(job) for job in jobs]})


@router.get("/jobs/{job_id}/")
def get_job(request: Request, backend: TheBackend, caller: Reader, job_id: str) -> Response:
    """Show a job, with its params and the command that runs the same again."""
    job = backend.visible_job(job_id, caller)
    command = _command(job, backend.store, str(request.base_url).rstrip("/"))
    return StrictJson({**_summary(job), "params": plain(job.params), "command": command})


@router.delete("/jobs/{job_id}/")
def delete_job(backend: TheBackend, caller: Runner, job_id: str) -> Response:
    """Delete a job that has ended, with its events, output and logs."""
    job = backend.visible_job(job_id, caller)
    if not job.has_ended:
        raise ApiError(409, f"the job is {job.status}: stop it first", extra={"status": job.status})
    backend.store.delete_job(job.id)
    backend.changes.notify(job.id)
    return Response(status_code=204)


@router.post("/jobs/{job_id}/stop/")
def stop_job(backend: TheBackend, caller: Runner, job_id: str) -> Response:
    """Stop a job, and wait until it has ended."""
    try:
        return StrictJson(_summary(backend.stop(backend.visible_job(job_id, caller))))
    except InvalidTransition as error:
        raise ApiError(409, f"the job is {error.status}", extra={"status": error.status}) from None


@router.get("/jobs/{job_id}/run/")
def get_run(backend: TheBackend, caller: Reader, job_id: str, events: bool = True) -> Response:
    """Return the record of a job's run, once it has ended; without what it has emitted if `events` is false."""
    job = backend.visible_job(job_id, caller)
    if not job.has_ended:
        raise ApiError(409, f"the job is {job.status}: it has no run record yet", extra={"status": job.status})
    emitted: list[Any] = []
    output: dict[str, list[str]] = {"stdout": [], "stderr": []}
    for row in _all_events(backend.store, job.id) if events else ():
        data = json.loads(row.data)
        if row.kind == "log":
            output[data["stream"]].append(data["text"])
        elif row.kind in ("progress", "metric", "event"):
            emitted.append(data)
    record = record_of(job, emitted, "".join(output["stdout"]), "".join(output["stderr"]))
    return Response(record.dumps(), media_type="application/json")


@router.get("/jobs/{job_id}/events/")
async def follow_events(
    backend: TheBackend,
    caller: Reader,
    job_id: str,
    after: str | None = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Stream the events of a job as server-sent events, those with larger numbers than `after`."""
    given = last_event_id if after is None else after
    if given and not (given.isascii() and given.isdigit() and len(given) < 10):
        raise ApiError(400, f"{given!r} is not the number of an event")
    job = await run_in_threadpool(backend.visible_job, job_id, caller)
    return streams.stream(backend, streams.events(backend, job.id, int(given or 0)))


@router.get("/releases/")
def list_releases(
    backend: TheBackend, caller: Reader, plugin: str | None = None, content: str | None = None
) -> Response:
    """List releases, the newest first, with the hashes of their content."""
    filters: dict[str, Any] = {}
    if plugin is not None:
        row = backend.store.plugin(plugin)
        if row is None:
            return StrictJson({"results": []})
        filters["plugin_id"] = row.id
    if content is not None:
        filters["content"] = content
    results = [
        {
            "id": row.id,
            "plugin": row.code,
            "version": row.version,
            "debug": row.debug,
            "live": row.is_live,
            "content": row.content,
        }
        for row in backend.store.releases(limit=1000, **filters)
    ]
    return StrictJson({"results": results})


@router.get("/releases/{release_id}/file/")
def get_release_file(backend: TheBackend, caller: Reader, release_id: str) -> Response:
    """Download the zip file of a release."""
    row = backend.store.release(int(release_id)) if re.fullmatch(r"[0-9]{1,9}", release_id) else None
    path = None if row is None else backend.releases.archive_of(row)
    if path is None:
        raise ApiError(404, f"there is no uploaded release {release_id!r}")
    return FileResponse(path, media_type="application/zip", filename="plugin.zip")


@router.post("/reset/")
def reset(backend: TheBackend, caller: Admin) -> Response:
    """Stop all jobs, and delete them and all uploaded releases. Only on an ephemeral server."""
    if not backend.is_ephemeral:
        raise ApiError(403, "only a server that was started with --ephemeral can be reset")
    backend.runs.stop_all()
    backend.store.reset()
    backend.releases.remove_uploads()
    backend.changes.notify(None)
    return Response(status_code=204)


@health.get("/health/")
def is_healthy() -> Response:
    """Answer."""
    return StrictJson({"status": "ok"})


@health.get("/ready/")
def is_ready(backend: TheBackend) -> Response:
    """Answer whether jobs can be accepted."""
    backend.store.check()
    return StrictJson({"status": "ok"})


def _summary(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "number": job.number,
        "status": job.status,
        "plugin": job.plugin,
        "version": job.version,
        "release": job.release_id,
        "content": job.content,
        "action": job.action,
        "last_event": job.last_event,
        "created": timestamp(job.created),
        "started": timestamp(job.started),
        "completed": timestamp(job.completed),
        "error": job.meta.get("error"),
    }


def _command(job: Job, store: Store, host: str) -> str | None:
    """Return the command that runs the same again; None if it was not an action of the plugin's config file."""
    if "entrypoint" in job.request:
        return None
    words = ["synapse", "plugin", "run", job.action]
    release = store.release(job.release_id)
    if release is not None and release.directory is not None:
        words += ["--path", release.directory]
    else:
        words += ["--plugin", job.plugin, "--version", job.version]
    words += ["--mode", "remote", "--host", host]
    if job.request.get("timeout") is not None:
        words += ["--timeout", str(job.request["timeout"])]
    return shlex.join([*words, "--params", json.dumps(plain(job.params), ensure_ascii=False)])


def _all_events(store: Store, job_id: str) -> list[EventRow]:
    found: list[EventRow] = []
    while batch := store.events(job_id, found[-1].number if found else 0, _BATCH):
        found += batch
    return found

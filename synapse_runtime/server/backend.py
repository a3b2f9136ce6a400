"""What the routes of all APIs share: the store, the plugins, the runs; and how a job is submitted and followed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from synapse_runtime.server.auth import AllowedHosts, Caller, authenticate, authenticate_hash, token_in
from synapse_runtime.server.changes import Changes
from synapse_runtime.server.releases import Releases
from synapse_runtime.server.runs import Runs, Submission
from synapse_runtime.server.sessions import Sessions
from synapse_runtime.server.store import InvalidTransition, Job, JobExists, KeyReused, NewJob, Store
from synapse_runtime.server.wire import ApiError

AGENT_ID: Final = 1
AGENT_NAME: Final = "local"
MAX_STREAMS: Final = 64
MAX_KEY: Final = 200
# A page of another site cannot make a browser send this header.
_PAGE_HEADER: Final = "X-Synapse-Page"
_READING: Final = ("GET", "HEAD", "OPTIONS")


@dataclass
class Backend:
    """A server's parts.

    Attributes:
        store: The database.
        releases: The plugins.
        runs: The queue.
        changes: Who waits for jobs.
        hosts: The names that requests may be addressed to.
        host: Its own address, such as `http://127.0.0.1:8000`.
        is_ephemeral: Whether its data are deleted when it ends.
        runs_directories: Whether a call may name any plugin directory of this machine.
        agent_token: The token of its agent, which grants nothing.
        streams: How many event streams are open.
        sessions: The sessions of its page.
        inference_seconds: How long an inference may take to be answered at once; the SDK's client waits 15 s.
    """

    store: Store
    releases: Releases
    runs: Runs
    changes: Changes
    hosts: AllowedHosts
    host: str
    is_ephemeral: bool = False
    runs_directories: bool = False
    agent_token: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)
    streams: int = 0
    sessions: Sessions = field(default_factory=Sessions)
    inference_seconds: float = 8.0

    @property
    def cookie_name(self) -> str:
        """The name of the cookie of its page's sessions. Browsers send a cookie to all ports of a host."""
        return f"synapse_session_{urlsplit(self.host).port or 80}"

    def visible_job(self, job_id: str, caller: Caller) -> Job:
        """Return a job that the caller may see.

        Raises:
            ApiError: 404; there is none, or it belongs to somebody else.
        """
        job = self.store.job(job_id)
        if job is None or not caller.may_see(job):
            raise ApiError(404, f"there is no job {job_id!r}")
        return job

    def submit(self, caller: Caller, wanted: Wanted, key: str | None = None, body: Any = None) -> tuple[Job, bool]:
        """Create a job and put it into the queue; return it and whether it is new.

        Args:
            caller: Who submits it.
            wanted: What to run.
            key: The idempotency key of the request.
            body: The request's body, which must be the same for the same key.

        Raises:
            ApiError: 404 if there is no such agent, plugin, version or action; 409 if the key was used with another
                body. Nothing is stored then.
        """
        body_hash = ""
        try:
            if key is not None:
                if not 0 < len(key) <= MAX_KEY:
                    raise ApiError(400, f"Idempotency-Key must have 1 to {MAX_KEY} characters")
                body_hash = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
                known = self.store.known_key(caller.owner, key, body_hash)
                if known is not None:
                    return known, False
            if wanted.agent not in (None, AGENT_ID):
                raise ApiError(404, f"there is no agent {wanted.agent}; this server's only agent is {AGENT_ID}")
            if wanted.directory is not None:
                release = self.releases.in_directory(wanted.plugin, wanted.directory)
            else:
                release = self.releases.find(wanted.plugin, wanted.version, debug=wanted.debug)
            if wanted.action is None:
                action = wanted.request.get("name") or wanted.entrypoint or self._only_action(release)
            else:
                action = self.releases.action_of(release, wanted.action)
            request = {name: value for name, value in wanted.request.items() if value is not None}
            if wanted.entrypoint is not None:
                request["entrypoint"] = wanted.entrypoint
            if wanted.directory is not None:
                request["directory"] = str(wanted.directory)
            agent = wanted.agent or AGENT_ID
            new = NewJob(caller.owner, release, action, wanted.params, agent, request, wanted.id)
            job, is_new = self.store.create_job(new, key, body_hash)
        except JobExists:
            raise ApiError(409, f"there is already a job {wanted.id!r}") from None
        except KeyReused:
            raise ApiError(
                409, f"Idempotency-Key {key!r} was used with another request: use a new key for a new request"
            ) from None
        if is_new:
            alternatives = wanted.alternatives or [wanted.params]
            self.runs.submit(
                Submission(
                    job.id,
                    alternatives,
                    wanted.env,
                    wanted.is_encoded,
                    wanted.caller,
                    caller_root=wanted.caller_root,
                    test=wanted.test,
                )
            )
        return job, is_new

    def stop(self, job: Job) -> Job:
        """Stop a job and return it.

        Raises:
            InvalidTransition: It has ended before.
        """
        if job.has_ended:
            raise InvalidTransition(job.status, "STOPPED")
        return self.runs.stop(job.id) or job

    async def wait(self, job_id: str, seconds: float) -> Job | None:
        """Wait until a job has ended, at most this long, and return it; None if it does not exist."""
        deadline = time.monotonic() + seconds
        with self.changes.watch(job_id) as changed:
            while True:
                changed.clear()
                job = await run_in_threadpool(self.store.job, job_id)
                remaining = deadline - time.monotonic()
                if job is None or job.has_ended or remaining <= 0 or self.changes.is_closing:
                    return job
                try:
                    await asyncio.wait_for(changed.wait(), min(remaining, 1.0))
                except TimeoutError:
                    continue

    def _only_action(self, release: Any) -> str:
        names = self.releases.actions_of(release)
        if len(names) != 1:
            problem = {"loc": ["body", "action"], "msg": "Field required", "type": "missing"}
            raise ApiError(422, [problem])
        return names[0]


@dataclass(frozen=True)
class Wanted:
    """What a client asks to run.

    Attributes:
        plugin: The plugin's code or id.
        action: The action's name. Without it, `entrypoint`, or the plugin's only action.
        params: The params to store.
        alternatives: Params to try, in order, if they are not those.
        version: The version of an uploaded release.
        debug: Whether a debug release may be taken without naming its version.
        agent: The agent.
        entrypoint: `module:Name` in the plugin.
        env: Environment variables.
        request: What else is stored of the request.
        is_encoded: Whether params are encoded as in a run record.
        directory: A plugin's directory or config file on this machine, to run instead of a release.
        caller: Settings of the caller's process.
        caller_root: The plugin's directory there.
        test: What the caller's test has set up.
        id: The job's id; a new one by default.
    """

    plugin: str
    action: str | None
    params: Any
    alternatives: list[Any] = field(default_factory=list)
    version: str | None = None
    debug: bool = False
    agent: int | None = None
    entrypoint: str | None = None
    env: Mapping[str, Any] = field(default_factory=dict, repr=False)
    request: Mapping[str, Any] = field(default_factory=dict)
    is_encoded: bool = False
    directory: Path | None = None
    caller: Mapping[str, Any] | None = field(default=None, repr=False)
    caller_root: str | None = None
    test: Mapping[str, Any] | None = field(default=None, repr=False)
    id: str | None = None


def backend_of(request: Request) -> Backend:
    """Return the backend of a request's application."""
    backend: Backend = request.app.state.backend
    return backend


# What waits for nothing is a coroutine: FastAPI runs any other function in a thread, which takes a tenth of a request.
async def _the_backend(request: Request) -> Backend:
    return backend_of(request)


def caller_of(request: Request) -> Caller:
    """Return who makes a request: by its token, else by the cookie of a session.

    Raises:
        ApiError: 401; there is no valid token or session. 403; the request would change something, has a cookie only,
            and may come from a page of another site.
    """
    backend = backend_of(request)
    token = token_in(request.headers.items())
    if token is not None:
        return authenticate(backend.store, token)
    token_hash = backend.sessions.token_hash(request.cookies.get(backend.cookie_name, ""))
    if token_hash is None:
        return authenticate(backend.store, None)
    if request.method not in _READING:
        require_page_header(request)
    return authenticate_hash(backend.store, token_hash)


def require_page_header(request: Request) -> None:
    """Refuse a request that a page of another site may have made.

    Raises:
        ApiError: 403; it lacks the header.
    """
    if request.headers.get(_PAGE_HEADER) != "1":
        raise ApiError(
            403, f"a request with the page's cookie needs the header {_PAGE_HEADER}: 1; programs use an access token"
        )


def _requiring(scope: str) -> Any:
    async def check(caller: Annotated[Caller, Depends(caller_of)]) -> Caller:
        if not caller.may(scope):
            raise ApiError(
                403, f"the access token lacks the scope {scope!r}; it has {', '.join(sorted(caller.scopes))}"
            )
        return caller

    return Depends(check)


AnyCaller = Annotated[Caller, Depends(caller_of)]
TheBackend = Annotated[Backend, Depends(_the_backend)]
Reader = Annotated[Caller, _requiring("read")]
Runner = Annotated[Caller, _requiring("run")]
Publisher = Annotated[Caller, _requiring("publish")]
Admin = Annotated[Caller, _requiring("admin")]


async def idempotency_key(request: Request) -> str | None:
    """Return the request's `Idempotency-Key`."""
    return request.headers.get("idempotency-key")


IdempotencyKey = Annotated[str | None, Depends(idempotency_key)]

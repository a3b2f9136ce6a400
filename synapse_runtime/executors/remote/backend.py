"""The API of a backend, and what a plain one and one with `/runtime/` have in common."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from synapse_runtime.errors import NotSupportedRemotely, RemoteError, nearest
from synapse_runtime.executors.remote.config import Secret, Settings, checked_host
from synapse_runtime.executors.remote.transport import Answer, Transport, shortened
from synapse_runtime.run_record import InvalidRecord, RunRecord, read_record

ENDED: Final = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
STATUSES: Final = frozenset({"PENDING", "RUNNING", *ENDED})
# Names that the v1 API has for actions.
_WIRE_NAMES: Final = {"infer": "inference", "deploy": "deployment"}
_MISSING: Final = (404, 405)
_REDIRECTS: Final = (301, 302, 303, 307, 308)  # some servers answer so for paths that they do not have
# How long the record of a job that has ended may take to appear.
_RECORD_SECONDS: Final = 10.0
_RECORD_PAUSE_SECONDS: Final = 0.2


def wire_name(action: str) -> str:
    """Return an action's name as the v1 API spells it.

    Example:
        >>> wire_name("infer"), wire_name("train")
        ('inference', 'train')
    """
    return _WIRE_NAMES.get(action, action)


@dataclass(frozen=True)
class Agent:
    """An agent, which runs jobs.

    Attributes:
        id: Its id.
        name: Its name.
        status: `connected`, or another word.
        url: Its address, if it has one.
        token: Its token, if the backend shows it.
    """

    id: int
    name: str
    status: str = ""
    url: str | None = None
    token: str | None = field(default=None, repr=False)

    @property
    def is_connected(self) -> bool:
        """Whether it can run jobs."""
        return self.status.lower() == "connected"


@dataclass(frozen=True)
class Job:
    """The state of a job.

    Attributes:
        id: Its id.
        status: `PENDING`, `RUNNING`, `STOPPED`, `SUCCEEDED` or `FAILED`.
        action: Its action's name.
        result: The action's result; of a failure what the backend knows of it.
        progress: Its `progress_record`.
        metrics: Its `metrics_record`.
        meta: Its `meta`.
        created: When it was created, as ISO 8601.
        completed: When it ended.
    """

    id: str
    status: str
    action: str = ""
    result: Any = None
    progress: Any = None
    metrics: Any = None
    meta: Any = None
    created: str = ""
    completed: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether its status is final."""
        return self.status in ENDED

    @property
    def started(self) -> datetime | None:
        """When it was created; None if unknown."""
        return _time(self.created)

    @property
    def took(self) -> float | None:
        """Seconds from then to its end, or until now; None if unknown."""
        started, ended = _time(self.created), _time(self.completed)
        if started is None or (ended is None and self.has_ended):
            return None
        return max(((ended or datetime.now(UTC)) - started).total_seconds(), 0.0)


@dataclass(frozen=True)
class Submitted:
    """A job that the backend has accepted.

    Attributes:
        id: Its id.
        plugin: `code@version`, as far as the backend says it.
        release: The id of the release that it runs, if the backend says it.
    """

    id: str
    plugin: str = ""
    release: str = ""


@dataclass(frozen=True)
class Answered:
    """The answer of a served action, which has no job."""

    value: Any


@dataclass(frozen=True)
class Release:
    """A release of a plugin.

    Attributes:
        id: Its id.
        version: Its version.
        is_live: Whether it is a directory of the backend, whose files may change.
    """

    id: str
    version: str
    is_live: bool = False


def connect(host: str, token: str) -> Backend:
    """Return the API of a backend.

    Args:
        host: Its URL.
        token: An access token.

    Raises:
        RemoteError: The host is not a URL, or the token would be sent to another machine without encryption.
    """
    return Backend(Transport(Settings(checked_host(host), Secret(token))))


class Backend:
    """The API of one backend.

    Args:
        transport: Sends the requests.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.host = transport.host
        self._features: frozenset[str] | None = None
        self._has_runtime = False

    @property
    def has_runtime(self) -> bool:
        """Whether the backend has the extensions below `/runtime/`; asked once."""
        if self._features is None:
            answer = self.transport.get("runtime/", accept=(*_MISSING, *_REDIRECTS))
            found = _features_in(answer) if answer.status == 200 else None
            self._has_runtime, self._features = found is not None, frozenset(found or ())
        return self._has_runtime

    def has_feature(self, name: str) -> bool:
        """Return whether the backend has one of the extensions, such as `releases`."""
        return self.has_runtime and name in (self._features or ())

    def require_runtime(self, what: str) -> None:
        """Raise `NotSupportedRemotely` unless the backend has the extensions.

        Args:
            what: What needs them, as the start of a sentence.
        """
        if not self.has_runtime:
            raise NotSupportedRemotely(f"{what}, which {self.host} does not support: it has no /runtime/ extension")

    def agents(self) -> list[Agent]:
        """Return the agents."""
        found = []
        for data in self.transport.pages("agents/"):
            if isinstance(data, dict) and isinstance(data.get("id"), int):
                fields = {name: data.get(name) for name in ("url", "token")}
                texts = {name: value for name, value in fields.items() if isinstance(value, str) and value}
                found.append(Agent(data["id"], str(data.get("name", "")), str(data.get("status") or ""), **texts))
        return found

    def find_agent(self, name: str | None) -> Agent:
        """Return an agent.

        Args:
            name: Its id or name; None for the only connected one.

        Raises:
            RemoteError: There is none, or several; the message lists them.
        """
        agents = self.agents()
        listed = ", ".join(f"{agent.name} (id {agent.id}, {agent.status or 'unknown'})" for agent in agents) or "none"
        if name is not None:
            found = [agent for agent in agents if name in (str(agent.id), agent.name)]
            if found:
                return found[0]
            near = nearest(name, [agent.name for agent in agents])
            hint = f" Did you mean {near!r}?" if near else ""
            raise RemoteError(f"{self.host} has no agent {name!r}.{hint} Available: {listed}")
        connected = [agent for agent in agents if agent.is_connected]
        if len(connected) != 1:
            problem = "several agents are connected" if connected else "no agent is connected"
            raise RemoteError(
                f"{problem} at {self.host}: choose one with --agent, SYNAPSE_AGENT_ID or `synapse agent select`. "
                f"Available: {listed}"
            )
        return connected[0]

    def run(self, plugin: str, request: Mapping[str, Any], *, is_served: bool) -> Submitted | Answered:
        """Run an action through the v1 API.

        Args:
            plugin: The plugin's code.
            request: The request, without fields that are None.
            is_served: Whether the action is served, so that the answer is its result.

        Raises:
            RemoteError: The backend refused it, or it is unknown whether it accepted it.
        """
        path = f"plugins/{_quoted(plugin)}/run/"
        try:
            answer = self.transport.request("POST", path, body=dict(request), repeat="if not accepted")
        except RemoteError as error:
            if not error.may_be_accepted:
                raise
            unknown = self._unknown(error, "so it was not sent again")
        else:
            data = answer.json()
            if is_served:
                return Answered(data)
            job_id = data.get("job_id") if isinstance(data, dict) else None
            if isinstance(job_id, str | int) and not isinstance(job_id, bool) and str(job_id):
                return Submitted(str(job_id))
            raise RemoteError(
                f"{answer.request} answered without a job_id: {shortened(answer.text)}", status=answer.status
            )
        raise unknown

    def submit(self, request: Mapping[str, Any]) -> Submitted:
        """Submit a job through `/runtime/`. If an answer is lost, it is sent again: the key makes it the same job."""
        key = secrets.token_hex(16)
        unknown = None
        try:
            answer = self.transport.request(
                "POST", "runtime/jobs/", body=dict(request), headers={"Idempotency-Key": key}, repeat="always"
            )
        except RemoteError as error:
            if error.status is not None and error.status < 500:
                raise
            unknown = self._unknown(error, "though its answers were lost")
        if unknown is not None:
            raise unknown
        data = answer.json(strict=True)
        if not isinstance(data, dict) or not data.get("id"):
            raise RemoteError(f"{answer.request} answered without an id: {shortened(answer.text)}")
        code, version = data.get("plugin") or request.get("plugin", ""), data.get("version")
        release = data.get("release")
        return Submitted(str(data["id"]), f"{code}@{version}" if version else str(code), _id_of(release))

    def _unknown(self, error: RemoteError, what: str) -> RemoteError:
        """Return the error of a call of which nobody here knows whether it was accepted."""
        text = f"{error}. The backend may have accepted the job, {what}; `synapse job list --host {self.host}` shows "
        return RemoteError(f"{text}whether it did", status=error.status, may_be_accepted=True)

    def jobs(self) -> list[Job]:
        """Return the jobs that this user may see."""
        return [_job(data) for data in self.transport.pages("jobs/") if isinstance(data, dict) and data.get("id")]

    def job(self, job_id: str) -> Job:
        """Return the state of a job.

        Raises:
            RemoteError: There is no such job, or its state makes no sense.
        """
        answer = self.transport.get(f"jobs/{_quoted(job_id)}/", accept=(404,))
        if answer.status == 404:
            raise RemoteError(
                f"{self.host} has no job {job_id!r}; `synapse job list --host {self.host}` lists its jobs", status=404
            )
        data = answer.json()
        if not isinstance(data, dict) or data.get("status") not in STATUSES:
            raise RemoteError(f"{answer.request} answered without a status: {shortened(answer.text)}")
        return _job({"id": job_id, **data})

    def job_here(self, job_id: str) -> Job:
        """Return the state of a job without its result, through `/runtime/`. Errors as for `job`."""
        answer = self.transport.get(f"runtime/jobs/{_quoted(job_id)}/", accept=(404,))
        data = answer.json()
        if answer.status == 404 or not isinstance(data, dict) or data.get("status") not in STATUSES:
            return self.job(job_id)
        error = data.get("error")
        meta = {"error": error} if isinstance(error, dict) else {}
        return Job(job_id, data["status"], action=str(data.get("action") or ""), meta=meta)

    def console_logs(self, job_id: str) -> list[str] | None:
        """Return the lines of a job's log so far, each without its newline; None if the backend does not give them."""
        answer = self.transport.get(f"jobs/{_quoted(job_id)}/console_logs/", accept=_MISSING)
        if answer.status in _MISSING:
            return None
        data = answer.json()
        if isinstance(data, dict):
            data = [item.get("message") for item in data.get("results") or () if isinstance(item, dict)]
        if not isinstance(data, list):
            raise RemoteError(f"{answer.request} answered with something else than a list: {shortened(answer.text)}")
        return [line for text in data for line in lines_of(str(text))]

    def stop(self, job_id: str) -> bool:
        """Request that a job stops. Returns whether it had not ended before.

        The v1 API has no request that stops a job.
        """
        answer = self.transport.request("POST", f"v2/jobs/{_quoted(job_id)}/stop/", accept=(404, 409))
        if answer.status == 409:
            return False
        if answer.status == 404:
            self.job(job_id)  # raises if there is none
            raise NotSupportedRemotely(f"{self.host} cannot stop job {job_id}: it has no agent, or the host no v2 API")
        return True

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended."""
        self.require_runtime("deleting a job needs an extension")
        answer = self.transport.request("DELETE", f"runtime/jobs/{_quoted(job_id)}/", accept=(404, 409))
        if answer.status == 404:
            raise RemoteError(f"{self.host} has no job {job_id!r}", status=404)
        if answer.status == 409:
            raise RemoteError(f"cannot delete job {job_id!r}, which has not ended: stop it first", status=409)

    def record(self, job_id: str) -> RunRecord | None:
        """Return the record of the run of a job that has ended; None if it has none, as its action did not start.

        Raises:
            RemoteError: It is not a record, or the backend still says that the job runs.
        """
        until = time.monotonic() + _RECORD_SECONDS
        while True:
            answer = self.transport.get(f"runtime/jobs/{_quoted(job_id)}/run/", accept=(404, 409))
            if answer.status == 404:
                return None
            if answer.status != 409:
                break
            if time.monotonic() > until:
                raise RemoteError(f"{answer.request}: there is no record yet, though the job has ended", status=409)
            time.sleep(_RECORD_PAUSE_SECONDS)
        try:
            return read_record(RunRecord, answer.json(strict=True))
        except InvalidRecord as error:
            raise RemoteError(f"{answer.request} answered with a malformed record: {error}", status=200) from error

    def releases_with(self, plugin: str, content: str) -> list[Release]:
        """Return the releases of a plugin that have exactly these files, the newest first.

        Args:
            plugin: The plugin's code.
            content: The hash of the files.
        """
        found = self.transport.pages("runtime/releases/", params={"plugin": plugin, "content": content})
        return [_release(data) for data in found if isinstance(data, dict) and data.get("content") == content]

    def publish(self, form: Mapping[str, str], archive: bytes) -> Release:
        """Upload a release.

        Args:
            form: `plugin`, `version`, `config` and `debug`, in this order.
            archive: The zip file.

        Raises:
            RemoteError: The backend refused it, for instance as the version exists.
        """
        answer = self.transport.request(
            "POST",
            "plugin_releases/",
            form=form,
            file=("plugin.zip", archive),
            repeat="if not accepted",
            accept=(409,),
        )
        if answer.status == 409:
            raise RemoteError(
                f"{form['plugin']}@{form['version']} exists at {self.host}: set another version in the config file, or "
                "publish a debug release with --debug",
                status=409,
            )
        data = answer.json()
        if not isinstance(data, dict) or data.get("id") is None:
            raise RemoteError(f"{answer.request} answered without an id: {shortened(answer.text)}")
        return _release({"version": form["version"], **data})


def _features_in(answer: Answer) -> list[str] | None:
    """Return the features in an answer; None if it is a page that some servers have for every path."""
    try:
        data = answer.json(strict=True)
    except RemoteError:
        return None
    features = data.get("features") if isinstance(data, dict) else None
    return [name for name in features if isinstance(name, str)] if isinstance(features, list) else None


def lines_of(text: str) -> list[str]:
    r"""Return the lines of a text without their newlines; a text without one is a line.

    Example:
        >>> lines_of("a\nb\n"), lines_of("a"), lines_of("\n")
        (['a', 'b'], ['a'], [''])
    """
    return text.removesuffix("\n").split("\n")


def _time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def _job(data: Mapping[str, Any]) -> Job:
    texts = {name: str(data.get(name) or "") for name in ("status", "action", "created", "completed")}
    return Job(
        id=str(data["id"]),
        result=data.get("result"),
        progress=data.get("progress_record"),
        metrics=data.get("metrics_record"),
        meta=data.get("meta"),
        **texts,
    )


def _release(data: Mapping[str, Any]) -> Release:
    return Release(_id_of(data.get("id")), str(data.get("version", "")), data.get("live") is True)


def _id_of(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("id")
    return "" if value is None else str(value)


def _quoted(text: str) -> str:
    return quote(text, safe="@")

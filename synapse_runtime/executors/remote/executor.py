"""Remote mode: each call is a job of a Synapse backend."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from synapse_runtime import action as actions
from synapse_runtime.core.changed_variables import changed_variables
from synapse_runtime.core.clock import Clock
from synapse_runtime.core.execution import ActionCall, ActionRun, checked_params, require_picklable
from synapse_runtime.core.patches import may_have_patches
from synapse_runtime.core.threads import reraise_dropped_interrupts
from synapse_runtime.environment import PluginEnvironment
from synapse_runtime.errors import (
    ConfigError,
    NotSupportedRemotely,
    PluginError,
    RemoteError,
    ResultNotSerializable,
    ValidationError,
)
from synapse_runtime.events import Event
from synapse_runtime.executors.base import Backend as BackendName
from synapse_runtime.executors.base import Executor, Observer, OnEvent, OnOutput, checked_timeout
from synapse_runtime.executors.protocol import caller_settings, settings_to_json
from synapse_runtime.executors.remote.backend import Answered, Backend, Job, Submitted, wire_name
from synapse_runtime.executors.remote.config import Settings, resolve_settings
from synapse_runtime.executors.remote.follow import Ended, Output, follow
from synapse_runtime.executors.remote.outcome import answer_run, run_of_job, run_of_record, ticket_of
from synapse_runtime.executors.remote.params import (
    encoded_env,
    encoded_params,
    entrypoint_of,
    plain_params,
)
from synapse_runtime.executors.remote.publish import pack, publish, published
from synapse_runtime.executors.remote.transport import Timeouts, Transport
from synapse_runtime.loggers import Logger, format_event
from synapse_runtime.plugins.plugin import is_entrypoint
from synapse_runtime.run_record import InvalidRecord

if TYPE_CHECKING:
    from synapse_runtime.executors.remote.patches import JsonPatches
    from synapse_runtime.plugins.manifest import Manifest
    from synapse_runtime.plugins.plugin import Plugin

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines
_WAIT_SECONDS = (0.5, 5.0)
_TICKET_SECONDS = (0.5, 10.0)
_SERVED = ("serve", "restapi")


class RemoteExecutor(Executor):
    """Runs actions through a Synapse backend. Params and results are sent as JSON; nothing is unpickled.

    `submit` returns the job's id immediately; `run` and `execute` wait for the end of the job, as in every mode.

    With the extensions of `synapse serve`, a run is as in any other mode, and a plugin with a local directory is
    published as a debug release if the backend does not have exactly its files. Any other backend runs what is
    released, and gives back the log, the status, and the result or the text of the error.

    Args:
        host: URL of the backend. Default: `SYNAPSE_HOST`, else that of `synapse login`.
        token: An access token. Default: `SYNAPSE_ACCESS_TOKEN`, else that of `synapse login`.
        agent: Id or name of the agent that runs the jobs. Default: `SYNAPSE_AGENT_ID`, else that of `synapse agent
            select`, else the only connected one.
        tenant: The tenant.
        plugin: The plugin whose actions are run: a `Plugin`, its directory or config file; or its code, for one that
            only the backend has.
        env: Environment variables of the action.
        timeout: Timeout of the action in seconds, counted from its start.
        logger: Sink for events, once the run has returned; the console by default.
        language: Language of messages, in two letters; the variable `SYNAPSE_LANGUAGE` by default, else English.
        version: The plugin's release to run; nothing is published. Default: the newest.
        publish: Whether to publish a plugin with a local directory.
        debug: Whether the backend may run a debug release if none is named.
        insecure: Whether to send the token without encryption to another machine.
        leave_running: Called with the job's id when Ctrl-C interrupts `run`; returns whether the job keeps running. By
            default it is stopped.
        on_note: Called with lines about what is done: the agent, the release, the job's id and host.
        settings: Host, credentials and agent, instead of the arguments above.
        timeouts: Time limits of requests.
        resources: What the action requests of the backend's cluster: `num_cpus`, `num_gpus`, `memory`, `resources`.
        api: A connection to use instead of one of its own; it is not closed.
        job_id: Id of the runs, if the backend lets clients choose it; a new one for each run by default.

    Raises:
        RemoteError: There is no host or token, or the token would be sent without encryption.

    Example:
        >>> executor = RemoteExecutor(plugin="example_plugin")  # doctest: +SKIP
        >>> job_id = executor.submit("train", {"epochs": 5})  # doctest: +SKIP
        >>> for line in executor.stream_logs(job_id):  # doctest: +SKIP
        ...     print(line, end="")
        >>> executor.get_result(job_id)  # doctest: +SKIP
    """

    mode = "remote"
    starts_process = True

    def __init__(
        self,
        host: str | None = None,
        token: str | None = None,
        agent: str | int | None = None,
        *,
        tenant: str | None = None,
        plugin: Plugin | Path | str | None = None,
        env: PluginEnvironment | Mapping[str, Any] | None = None,
        timeout: float | None = None,
        logger: Logger | None = None,
        language: str | None = None,
        version: str | None = None,
        publish: bool = True,
        debug: bool = True,
        insecure: bool = False,
        leave_running: Callable[[str], bool] | None = None,
        on_note: Callable[[str], object] | None = None,
        settings: Settings | None = None,
        timeouts: Timeouts | None = None,
        resources: Mapping[str, Any] | None = None,
        api: Backend | None = None,
        job_id: str | None = None,
    ) -> None:
        code = plugin if isinstance(plugin, str) and _is_code(plugin) else None
        super().__init__(
            env, job_id, plugin=None if code is not None else plugin, timeout=timeout, logger=logger, language=language
        )
        self._settings = settings or resolve_settings(host, token, tenant=tenant, agent=agent)
        self._settings.require_credentials()
        self._code = code or ("" if self._plugin is None else self._plugin.manifest.code or self._plugin.root.name)
        self._version = version
        self._publishes = publish and version is None
        self._debug = debug
        self._leave_running = leave_running
        self._on_note = on_note or (lambda text: None)
        self._resources = {name: value for name, value in (resources or {}).items() if value is not None}
        self._owns_api = api is None
        self._api = api or Backend(Transport(self._settings, insecure=insecure, timeouts=timeouts))
        self._agent: int | None = None
        self._calls: dict[str, ActionCall] = {}
        self._patches: dict[str, JsonPatches] = {}
        self._has_sent = False

    def submit(self, action: Any, params: Any = None) -> str:
        """Submit a job and return its id immediately.

        Args:
            action: The name of an action of the plugin, or an entrypoint.
            params: As for `run`.

        Raises:
            NotSupportedRemotely: The action or the params cannot be sent.
            RemoteError: The backend cannot be reached or refused the call, or the action is a served one, which has
                no job.
        """
        call = self.call(action, params)
        with _Refusals(self.observer):
            if self._is_served(call.name) and not self._api.has_runtime:
                raise NotSupportedRemotely(f"{call.name} is served, so its answer is no job: use `execute` or `run`")
            if self.observer is not None:
                self.observer.started(call)
            submitted = self._submit(call)
        assert isinstance(submitted, Submitted)
        return submitted.id

    def list_jobs(self) -> list[Job]:
        """Return the jobs that this user may see, as the backend lists them."""
        return self._api.jobs()

    def get_status(self, job_id: str) -> str:
        """Return `PENDING`, `RUNNING`, `STOPPED`, `SUCCEEDED` or `FAILED`.

        Raises:
            RemoteError: The backend has no such job, or does not answer.
        """
        return self._api.job(job_id).status

    def get_logs(self, job_id: str) -> str:
        """Return the output of the job's action so far, as text."""
        self._api.job(job_id)  # raises if there is none
        lines = self._api.console_logs(job_id)
        if lines is None:
            raise NotSupportedRemotely(f"{self._api.host} does not give the logs of jobs")
        return "".join(f"{line}\n" for line in lines)

    def stream_logs(self, job_id: str) -> Iterator[str]:
        """Yield the job's output and events line by line, as they come, until the job has ended."""
        rest = ""
        with closing(follow(self._api, job_id, import_root=self._import_root)) as items:
            for item in items:
                if isinstance(item, Output):
                    *lines, rest = (rest + item.text).split("\n")
                    yield from (f"{line}\n" for line in lines)
                elif isinstance(item, Event):
                    yield format_event(item) + "\n"
        if rest:
            yield rest

    def wait(self, job_id: str, timeout: float | None = None) -> str:
        """Wait until the job has ended and return its final status.

        Args:
            job_id: The job's id.
            timeout: Maximum number of seconds to wait; None for no limit.

        Raises:
            TimeoutError: The job has not ended in time; it keeps running.
            ValueError: The timeout is negative, not a number, or longer than a year.
        """
        return self._wait(job_id, _deadline(timeout)).status

    def get_run(self, job_id: str, timeout: float | None = None) -> ActionRun:
        """Wait until the job has ended and return its `ActionRun`. Arguments and errors as for `get_result`."""
        deadline = _deadline(timeout)
        run = None
        if self._api.has_runtime:
            job = self._wait(job_id, deadline)
            run = self._recorded_run(job)
        if run is None:
            run = self._follow(job_id, None, None, deadline)
        run.add_location_note()
        if self.observer is not None:
            self.observer.finished(run)
        return run

    def get_result(self, job_id: str, timeout: float | None = None) -> Any:
        """Wait until the job has ended and return the action's result.

        Args:
            job_id: Id of a job. If its result contains classes of the plugin, this executor must have the plugin.
            timeout: Maximum number of seconds to wait; None for no limit.

        Raises:
            TimeoutError: The job has not ended in time; it keeps running.
            RemoteError: The backend has no such job, or does not answer.
            ExecutionError: The action failed; the cause is the exception that it raised, if the backend has its record.
            ResultNotSerializable: The result has values that JSON does not have.
        """
        return self.get_run(job_id, timeout).unwrap()

    def stop(self, job_id: str) -> bool:
        """Request that the job stops. Returns whether it had not ended before."""
        return self._api.stop(job_id)

    def delete(self, job_id: str) -> bool:
        """Delete the status, log and result of a job that has ended.

        Returns:
            Whether the log was deleted, too, which it always is.

        Raises:
            NotSupportedRemotely: The backend has no request for it.
            RemoteError: There is no such job, or it has not ended.
        """
        self._api.delete(job_id)
        return True

    def close(self) -> None:
        """Close the connections. Jobs stay at the backend."""
        if self._owns_api:
            self._api.transport.close()
        self._calls.clear()

    @property
    def backend(self) -> BackendName | None:
        """The backend; None before the first call."""
        if not self._has_sent:
            return None
        return BackendName("backend", self._api.host, self._settings.sources.get("host", "given"))

    def _resolve(self, action: Any, manifest: Manifest | None) -> tuple[Any, str]:
        if not isinstance(action, str):
            return entrypoint_of(actions.require_action(action), self._import_root), actions.name_of(action)
        if self._code and manifest is None:
            return action, action
        return super()._resolve(action, manifest)

    def call(
        self, action: Any, params: Any = None, *, timeout: float | None = None, job_id: str | None = None
    ) -> ActionCall:
        """Return the call that `run` would make, without making it.

        Raises:
            NotSupportedRemotely: The backend cannot import the action.
        """
        with _Refusals(self.observer):
            return super().call(action, params, timeout=timeout, job_id=job_id or self._job_id or str(uuid.uuid4()))

    def _run_call(self, call: ActionCall, on_event: OnEvent | None, on_output: OnOutput | None) -> ActionRun:
        started = time.monotonic()
        try:
            with _Refusals(self.observer):
                submitted = self._submit(call)
        except (ValidationError, ConfigError, ResultNotSerializable) as error:  # found here, so nothing has been sent
            return ActionRun(call.name, error=error, mode=self.mode, job_id=call.job_id)
        if isinstance(submitted, Answered):
            return self._answered(call, submitted.value, started)
        job_id = submitted.id
        try:
            with reraise_dropped_interrupts():
                run = self._follow(job_id, on_event, on_output, float("inf"))
        except BaseException as error:  # mainly Ctrl-C: stop the job, unless the user wants it to keep running
            if isinstance(error, RemoteError) or (isinstance(error, KeyboardInterrupt) and self._is_left(job_id)):
                raise  # the backend may be away, and the job be fine
            with suppress(PluginError):
                self.stop(job_id)
            raise
        self._replay(run, events=on_event is None, output=on_output is None)
        return run

    def _is_left(self, job_id: str) -> bool:
        """Return whether a job keeps running after Ctrl-C."""
        if self._leave_running is None:
            return False
        self._logger.finish()  # a progress bar would hide the prompt
        return self._leave_running(job_id)

    def _is_served(self, name: str) -> bool:
        """Return whether the answer of an action is its result."""
        spec = None if self._plugin is None else self._plugin.manifest.actions.get(name)
        return wire_name(name) == "inference" or (spec is not None and spec.method in _SERVED)

    def _submit(self, call: ActionCall) -> Submitted | Answered:
        if not self._code:
            raise NotSupportedRemotely(
                f"{call.name}: a backend runs actions of published plugins only: pass plugin=, a directory or a code"
            )
        self._has_sent = True
        submitted = self._submit_runtime(call) if self._api.has_runtime else self._submit_plain(call)
        if isinstance(submitted, Submitted):
            self._calls[submitted.id] = call
            which = f" {submitted.plugin}" if submitted.plugin else ""
            release = f" (release {submitted.release})" if submitted.release else ""
            self._on_note(f"job {submitted.id} on {self._api.host}:{which or ' ' + self._code} {call.name}{release}")
        return submitted

    def _submit_runtime(self, call: ActionCall) -> Submitted:
        request: dict[str, Any] = {"plugin": self._code}
        params, has_caller, patches = call.params, False, None
        takes_values = self._api.has_feature("values")
        version = self._version
        if self._plugin is not None and self._publishes and self._plugin.config_path is not None:
            with checked_params(call) as checked:  # by the code that will run there
                params = checked if takes_values else params
                patches = self._patches_of(call)
            has_caller = self._api.has_feature("caller")
            if self._api.has_feature("directories"):
                request["directory"] = str(self._plugin.config_path)
            else:
                version = self._published_version(self._plugin)
        else:
            patches = self._patches_of(call)
        if self._is_named(call) and "directory" not in request:
            request["action"] = call.name
        else:
            request |= {"entrypoint": call.action, "name": call.name}
        env = dict(self._env) if has_caller else {**self._changed_variables(call), **self._env}
        optional = {
            "id": call.job_id if self._api.has_feature("job_ids") else None,
            "version": version,
            # Without a version, the newest release may be a debug one, if the backend distinguishes them.
            "debug": True if version is None and self._debug and self._api.has_feature("releases") else None,
            "agent": None if self._settings.agent is None else self._agent_id(),
            "env": encoded_env(env, values=takes_values) or None,
            "timeout": call.timeout,
            "language": self._language or os.environ.get("SYNAPSE_LANGUAGE") or None,
            "resources": self._resources or None,
            "test": self._test_setup(call, patches),
        }
        if has_caller:
            optional["caller"] = settings_to_json(caller_settings(call.import_root, with_setup=call.sends_test_setup))
            optional["caller_root"] = call.import_root
        request |= {name: value for name, value in optional.items() if value is not None}
        try:
            request["params"] = encoded_params(call.name, params, call.import_root if takes_values else None)
        except NotSupportedRemotely:
            require_picklable(call.name, call.action, params)  # else it is an error in every mode
            raise
        submitted = self._api.submit(request)
        if patches is not None:
            self._patches[submitted.id] = patches
        return submitted

    def _patches_of(self, call: ActionCall) -> JsonPatches | None:
        """Return the patches of the test, if it has any.

        Raises:
            NotSupportedRemotely: JSON cannot carry one.
        """
        if not (call.sends_test_setup and may_have_patches()):
            return None
        from synapse_runtime.executors.remote.patches import encode_patches_as_json

        return encode_patches_as_json(call.name, call.import_root)

    def _test_setup(self, call: ActionCall, patches: JsonPatches | None) -> dict[str, Any] | None:
        """Return what the test has set up for the action; None if it is nothing.

        Raises:
            NotSupportedRemotely: The backend cannot do it.
        """
        if call.around:
            raise NotSupportedRemotely(
                f"{call.name}: {call.around[0].name} runs around the action, and a backend runs no code of the test"
            )
        clock = Clock.of_this_process() if call.sends_test_setup else None
        found = {
            "patches": None if patches is None else patches.data,
            "seed": None if call.seed is None else asdict(call.seed),
            "clock": None if clock is None else asdict(clock),
        }
        found = {name: value for name, value in found.items() if value is not None}
        if found and not self._api.has_feature("test"):
            raise NotSupportedRemotely(f"{call.name}: {self._api.host} does not offer {' or '.join(found)} of a test")
        return found or None

    def _changed_variables(self, call: ActionCall) -> dict[str, str]:
        """Return the variables that the tests' process has set, for a backend that does not take its settings.

        Raises:
            NotSupportedRemotely: It has deleted one.
        """
        changed = dict(changed_variables()) if call.sends_test_setup else {}
        deleted = [variable for variable, value in changed.items() if value is None]
        if deleted:
            raise NotSupportedRemotely(
                f"{call.name}: the test has deleted environment variables ({', '.join(deleted)}), which "
                f"{self._api.host} does not offer"
            )
        config = {} if self._plugin is None else self._plugin.manifest.env
        return {variable: value for variable, value in changed.items() if value is not None and variable not in config}

    def _submit_plain(self, call: ActionCall) -> Submitted | Answered:
        request = self._plain_request(call)
        is_served = self._is_served(call.name)
        if call.timeout is not None and not is_served:
            self._api.require_runtime(f"{call.name} has a timeout")
        variables = [*self._env, *(name for name, _ in (changed_variables() if call.sends_test_setup else ()))]
        if variables:
            self._api.require_runtime(f"{call.name} has environment variables ({', '.join(variables)})")
        self._test_setup(call, self._patches_of(call))
        if self._job_id is not None:
            self._api.require_runtime(f"{call.name} has a job id")
        if self._resources:
            self._api.require_runtime(f"{call.name} requests resources ({', '.join(self._resources)})")
        if not self._is_named(call):
            self._api.require_runtime(f"{call.name!r} is an entrypoint, not the name of an action")
        return self._api.run(self._code, request, is_served=is_served)

    def _is_named(self, call: ActionCall) -> bool:
        """Return whether the action is one of the plugin's config file."""
        if self._plugin is None:
            return not is_entrypoint(call.name)
        manifest = self._plugin.manifest
        return call.name in manifest.actions and self._plugin.entrypoint_by(manifest, call.name) == call.action

    def _plain_request(self, call: ActionCall) -> dict[str, Any]:
        params = plain_params(call.name, call.params)
        request: dict[str, Any] = {"agent": self._agent_id(), "action": wire_name(call.name)}
        if params:
            request["params"] = params
        if self._debug:
            request["debug"] = True
        if self._version is not None:
            request["version"] = self._version
        return {**request, "language": self._language or os.environ.get("SYNAPSE_LANGUAGE") or "en"}

    def _answered(self, call: ActionCall, value: Any, started: float) -> ActionRun:
        """Return the run of a served action, after asking again for a deferred answer until it has come."""
        pause = _TICKET_SECONDS[0]
        run = answer_run(call.name, None, self._api.host, started=started)
        try:
            while (ticket := ticket_of(call.name, value)) is not None:
                if call.timeout is not None and time.monotonic() - started > call.timeout:
                    raise RemoteError(f"{call.name} has not answered within {call.timeout:g} s")
                time.sleep(pause)
                pause = min(1.5 * pause, _TICKET_SECONDS[1])
                request = self._plain_request(call)
                request["params"] = {**request.get("params", {}), "json": {"__synapse_poll__": ticket}}
                answer = self._api.run(self._code, request, is_served=True)
                value = answer.value if isinstance(answer, Answered) else None
        except RemoteError:
            raise
        except PluginError as error:
            run.error = error
            return run
        return answer_run(call.name, value, self._api.host, started=started)

    def _published_version(self, plugin: Plugin) -> str | None:
        """Publish the plugin unless the backend has exactly its files, and return the version to run.

        It is None for a directory of the backend, which it runs if no version is given.
        """
        archive = pack(plugin)
        release = published(self._api, archive)
        if release is None:
            release = publish(self._api, archive, debug=True)
            self._on_note(f"published {archive.code}@{release.version} as debug release {release.id}")
        return None if release.is_live else release.version

    def _agent_id(self) -> int:
        given = self._settings.agent
        if self._agent is None:
            if given is not None and given.isdecimal():
                self._agent = int(given)
            else:
                agent = self._api.find_agent(given)
                self._agent = agent.id
                if given is None:
                    self._on_note(f"agent: {agent.name} (id {agent.id}), the only connected one")
        return self._agent

    def _wait(self, job_id: str, deadline: float) -> Job:
        began = time.monotonic()
        pause = _WAIT_SECONDS[0]
        while not (job := self._api.job(job_id)).has_ended:
            now = time.monotonic()
            if now >= deadline:
                raise TimeoutError(f"job {job_id} is {job.status} after {now - began:.3g} s")
            time.sleep(min(pause, max(deadline - now, 0.0)))
            pause = min(1.25 * pause, _WAIT_SECONDS[1])
        return job

    def _follow(self, job_id: str, on_event: OnEvent | None, on_output: OnOutput | None, deadline: float) -> ActionRun:
        """Follow a job to its end and return its run."""
        started = time.monotonic()
        output: list[str] = []
        events: list[Event] = []
        ended: Ended | None = None
        # Closed at once if a callback raises, which ends its threads.
        with closing(follow(self._api, job_id, import_root=self._import_root, deadline=deadline)) as items:
            for item in items:
                if isinstance(item, Ended):
                    ended = item
                elif isinstance(item, Output):
                    output.append(item.text)
                    if on_output is not None:
                        on_output(item.stream, item.text)
                else:
                    events.append(item)
                    if on_event is not None:
                        on_event(item)
        assert ended is not None
        recorded = self._recorded_run(ended.job) if self._api.has_runtime else None
        if recorded is not None:
            return recorded
        call = self._calls.get(job_id)
        run = run_of_job(
            ended.job,
            self._api.host,
            name=call.name if call is not None else ended.job.action or job_id,
            output="".join(output),
            message=ended.message,
            started=started,
        )
        run.events = events
        return run

    def _recorded_run(self, job: Job) -> ActionRun | None:
        """Return the run of the record of a job that has ended; None if it has none, as it did not run."""
        record = self._api.record(job.id)
        if record is None:
            return None
        call = self._calls.get(job.id)
        entrypoint = call.action if call is not None else self._entrypoint(record.action)
        try:
            return run_of_record(
                record,
                job.id,
                import_root=self._import_root,
                entrypoint=entrypoint,
                patches=self._patches.pop(job.id, None),
            )
        except InvalidRecord as error:
            raise RemoteError(f"the record of job {job.id} at {self._api.host} is malformed: {error}") from error

    def _entrypoint(self, action: str) -> str | None:
        if self._plugin is None:
            return None
        try:
            return self._plugin.entrypoint(action)
        except PluginError:
            return None


class _Refusals:
    """Tells an observer, which may raise another exception, of a call that remote mode cannot make."""

    def __init__(self, observer: Observer | None) -> None:
        self._observer = observer

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._observer is not None and isinstance(error, NotSupportedRemotely):
            self._observer.refused(error)


def _is_code(text: str) -> bool:
    """Return whether a text is the code of a plugin that only the backend has: not a path, not a module's name."""
    return not os.path.exists(text) and not any(mark in text for mark in (os.sep, ".", ":")) and bool(text)


def _deadline(timeout: float | None) -> float:
    checked_timeout(timeout, or_zero=True)
    return float("inf") if timeout is None else time.monotonic() + timeout

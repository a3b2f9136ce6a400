"""The messages between a caller and a worker: a `CallRequest` to the worker, a `RunResponse` back to the caller.

A message consists of:

    synapse 1 0.1.0 LF    the protocol version and the sender's version of this package, in ASCII
    a pickled dict        the header: named fields of builtin types, and the sizes of the parts that follow
    two pickles           values that may be instances of any class
    patches               of a request, if the test has any
    buffers               large buffers of a response, if they cannot be sent out of band

The line is the same in all protocols, so that an error about different versions can always name both. The header is
read before the plugin's modules can be imported, the two pickles afterwards. Large buffers, those of arrays, may be
sent out of band.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import TypeAdapter

from synapse_runtime import __version__, serialization
from synapse_runtime.core import assertions, coverage_support, remote_exceptions
from synapse_runtime.core.changed_variables import ChangedVariables, changed_variables
from synapse_runtime.core.clock import Clock
from synapse_runtime.core.execution import ActionCall, ActionRun, checked_params, require_picklable
from synapse_runtime.core.interrupts import shielded
from synapse_runtime.core.log_capture import UnhandledHooks
from synapse_runtime.core.log_config import LoggingConfig
from synapse_runtime.core.output_capture import Captured
from synapse_runtime.core.patches import PatchesOfCall, may_have_patches
from synapse_runtime.core.process_state import process_state
from synapse_runtime.core.threads import SharedContext
from synapse_runtime.errors import (
    ClusterError,
    ConfigError,
    ExecutionError,
    PluginError,
    ResultNotSerializable,
    ValidationError,
    safe_str,
)
from synapse_runtime.events import Event
from synapse_runtime.executors.import_path import ImportPath
from synapse_runtime.executors.journal import decode_entries, encode_entries
from synapse_runtime.executors.patch_transfer import ReceivedPatches, SentPatches, encode_patches
from synapse_runtime.executors.path_mapping import PathMap
from synapse_runtime.plugins.module_scopes import top_level_names
from synapse_runtime.redaction import HiddenValues, masked_names
from synapse_runtime.sdk_compat import import_hook

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines

PROTOCOL: Final = 1
_NAME: Final = b"synapse"
# The first line of each message. On its own it is a worker's answer to a request of another version.
VERSION_LINE: Final = b"%s %d %s\n" % (_NAME, PROTOCOL, __version__.encode())
# What `encode_call` raises: the call is not sent, and the error becomes that of its run.
ENCODE_CALL_ERRORS: Final = (ValidationError, ResultNotSerializable, ConfigError)


class VersionMismatch(Exception):
    """A message comes from another version of this package.

    Args:
        line: The first line of the message.
    """

    def __init__(self, line: bytes) -> None:
        super().__init__(line)
        words = line.split()
        is_known = len(words) == 3 and words[0] == _NAME
        self.protocol = words[1].decode("ascii", "replace") if is_known else "unknown"
        self.version = words[2].decode("ascii", "replace") if is_known else "unknown"


@dataclass(frozen=True)
class CallerSettings:
    """Settings of the caller's process that apply to all its calls, until they change.

    Attributes:
        import_path: The caller's own entries of `sys.path`.
        logging: Levels of loggers and filters of warnings.
        hooks: Which unhandled errors the caller has a hook for.
        rewritten_modules: The plugin's modules whose assertions pytest rewrites in the caller.
        coverage: How the caller measures coverage, if it does.
        sdk_names: Whether `synapse_sdk` is provided by `sdk_compat` in the caller.
        masked: Names of variables and params whose values are redacted in reports, as the user says.
        environ: Environment variables that the caller's process has changed since its session of tests began.
    """

    import_path: ImportPath
    logging: LoggingConfig
    hooks: UnhandledHooks = field(default_factory=UnhandledHooks)
    rewritten_modules: tuple[str, ...] = ()
    coverage: coverage_support.CoverageSettings | None = None
    sdk_names: bool = True
    masked: tuple[str, ...] = ()
    environ: ChangedVariables = field(default=(), repr=False)  # values may be secrets


@dataclass(frozen=True)
class CallRequest:
    """A call as a worker receives it.

    Attributes:
        name: The action's name.
        job_id: The id of the run.
        timeout: The timeout of the action in seconds, or None.
        import_root: The directory of the plugin's modules, if there is a plugin.
        shares_filesystem: Whether the worker shares the caller's file system; if not, the plugin was uploaded.
        settings: Settings of the caller's process.
        patches: The patches of the test, as encoded by `patch_transfer`; empty if there are none.
        log_key: The key that a job's supervisor signs the log with.
    """

    name: str
    job_id: str
    timeout: float | None
    import_root: str | None
    shares_filesystem: bool
    settings: CallerSettings
    call_data: memoryview = field(repr=False)
    buffers: Sequence[Any] = field(default=(), repr=False)
    patches: bytes = field(default=b"", repr=False)
    log_key: bytes | None = field(default=None, repr=False)

    def received_patches(self) -> PatchesOfCall | None:
        """Return the patches of the test, if it has any."""
        return ReceivedPatches(self.patches) if self.patches else None

    def read_call(self, loads: Callable[[Any, Iterable[Any]], Any] = serialization.loads) -> ActionCall:
        """Return the call; this imports the modules of its params and its action."""
        # Writable copies: an action may modify its params.
        fields = loads(self.call_data, map(bytearray, self.buffers))
        return ActionCall(
            name=self.name, job_id=self.job_id, timeout=self.timeout, import_root=self.import_root, **fields
        )


@dataclass(frozen=True)
class EncodedCall:
    """A call that is ready to be sent.

    Attributes:
        call: The call; its params are validated if the action can be imported in this process.
        buffers: Large buffers of its params, which are sent out of band.
        patches: The patches of the test, if it has any; `decode_run` needs them.
    """

    call: ActionCall
    buffers: serialization.Buffers
    settings_data: bytes = field(repr=False)
    call_data: bytes = field(repr=False)
    patches: SentPatches | None = field(default=None, repr=False)

    def message(self, *, shares_filesystem: bool = True, log_key: bytes | None = None) -> bytes:
        """Return the message for a worker.

        Args:
            shares_filesystem: As in `CallRequest`.
            log_key: As in `CallRequest`.
        """
        call = self.call
        header: dict[str, Any] = {
            "name": call.name,
            "job_id": call.job_id,
            "timeout": call.timeout,
            "import_root": call.import_root,
            "shares_filesystem": shares_filesystem,
        }
        if log_key is not None:
            header["log_key"] = log_key
        patches = () if self.patches is None else (self.patches.data,)
        return _message(header, self.settings_data, self.call_data, *patches)


def encode_call(call: ActionCall, *, out_of_band: bool = False) -> EncodedCall:
    """Validate the params of a call, if its action can be imported in this process, and encode the call.

    Args:
        call: The call.
        out_of_band: Whether large buffers of the params may be sent out of band.

    Raises:
        ValidationError: The params are invalid; nothing has been sent.
        ConfigError: The object to run is not an action.
        ResultNotSerializable: The params, the action or a patch of the test cannot be pickled.
    """
    buffers: serialization.Buffers = []
    with shielded(), _no_bytecode(), checked_params(call) as params:
        patches = encode_patches() if call.sends_test_setup and may_have_patches() else None
        if params is not call.params:
            call = ActionCall(**{**vars(call), "params": params})  # several times as fast as dataclasses.replace
        fields = {
            "action": call.action,
            "params": params,
            "env": call.env,
            "cwd": call.cwd,
            "config_path": call.config_path,
            "category": call.category,
            "language": call.language,
        }
        clock = Clock.of_this_process() if call.sends_test_setup else None
        if call.around or clock is not None:
            fields["around"] = call.around if clock is None else (clock.around(), *call.around)
        if call.seed is not None:
            fields["seed"] = call.seed
        try:
            data = serialization.dumps(fields, buffers if out_of_band else None)
        except Exception:
            require_picklable(call.name, call.action, params)
            raise
    return EncodedCall(
        call, buffers, _settings.encoded(call.import_root, with_setup=call.sends_test_setup), data, patches
    )


def decode_request(data: bytes, buffers: Sequence[Any] = ()) -> CallRequest:
    """Decode a message of `encode_call`.

    Args:
        data: The message.
        buffers: The buffers that were sent out of band.

    Raises:
        VersionMismatch: Its sender has another version.
    """
    header, settings, fields, *patches = _parts(data)
    return CallRequest(
        **header,
        settings=_decode_settings(bytes(settings)),
        call_data=fields,
        buffers=buffers,
        patches=bytes(patches[0]) if patches else b"",
    )


@dataclass(frozen=True)
class RunResponse:
    """The header of a run as its caller receives it, without the parts that may contain instances of any class.

    Attributes:
        name: The action's name.
        duration: Seconds that the action took.
        is_started: Whether the action was started.
        mode: The mode that it ran in.
        job_id: The id of the run.
        pid: The worker's process.
        host: The worker's machine.
        node: Ray's id of that machine.
        stdout: What the action printed; None if the worker did not capture its output.
        stderr: The same for standard error.
    """

    name: str
    duration: float
    is_started: bool
    mode: str
    job_id: str
    pid: int
    host: str
    node: str
    stdout: str | None = field(repr=False)
    stderr: str | None = field(repr=False)


def encode_run(
    run: ActionRun,
    *,
    events: bytes | None = None,
    hidden: HiddenValues | None = None,
    recorder: assertions.FailureRecorder,
    collector: coverage_support.CoverageCollector,
    path_map: PathMap | None = None,
    patches: ReceivedPatches | None = None,
    out_of_band: serialization.Buffers | None = None,
) -> bytes:
    """Encode a run in the worker.

    Args:
        run: The run. If its result cannot be pickled, that becomes its error.
        events: Its events as the worker's journal has encoded them, if it has all.
        hidden: Values that must not appear in the arguments that tracebacks show.
        recorder: What this worker has recorded of failed assertions.
        collector: What it has measured of coverage.
        path_map: Maps the worker's paths to the caller's, if they do not share a file system.
        patches: The patches of the test, if it has any.
        out_of_band: If given, large buffers of the result are added to it and are not in the message.
    """
    result = b""
    buffers: serialization.Buffers = []
    error = run.error
    if error is None and run.result is not None:
        try:
            result = serialization.dumps_named(run.result, "result", buffers)
        except ResultNotSerializable as problem:
            run.result, run.error = None, problem
            error = problem
    encoded_error = None
    if error is not None:
        if path_map is not None:
            path_map.rewrite_error(error)
        with remote_exceptions.redact_values(hidden or HiddenValues({})):
            to_caller = str if path_map is None else path_map.to_caller
            encoded_error = remote_exceptions.encode_exception(error, to_caller)
    captured = Captured() if run.captured is None else run.captured
    details = {
        "events": encode_entries(map(event_to_tuple, run.events)) if events is None else events,
        "records": captured.records,
        "warnings": captured.warnings,
        "unhandled": captured.unhandled,
        "already_printed": captured.already_printed,
        "output_positions": captured.output_positions,
        "error": encoded_error,
        "failed_assertions": recorder.collect(error),
        "coverage": collector.collect(str if path_map is None else path_map.file_to_caller),
        "patch_changes": b"" if patches is None else patches.changes(),
    }
    header = {
        "name": run.name,
        "duration": run.duration,
        "is_started": run.is_started,
        "mode": run.mode,
        "job_id": run.job_id,
        "pid": run.pid,
        "host": run.host,
        "node": run.node,
        "stdout": None if run.captured is None else captured.stdout,
        "stderr": None if run.captured is None else captured.stderr,
    }
    encoded_details = serialization.dumps(details) if any(details.values()) else b""
    if error is not None:
        return _message(header, encoded_details, b"")
    if out_of_band is None:
        return _message(header, encoded_details, result, *(buffer.raw() for buffer in buffers))
    if len(result) >= serialization.OUT_OF_BAND_BYTES:
        out_of_band.append(pickle.PickleBuffer(result))
        result = b""
    out_of_band.extend(buffers)
    return _message(header, encoded_details, result)


def decode_run(
    data: bytes,
    call: ActionCall | None = None,
    *,
    import_root: str | None = None,
    buffers: Iterable[Any] = (),
    patches: SentPatches | None = None,
) -> ActionRun:
    """Decode a run in the caller's process.

    Args:
        data: The return value of `encode_run`.
        call: The call that it answers, with its validated params.
        import_root: The directory of the plugin's modules, if the call is unknown as another process made it.
        buffers: The out-of-band buffers of `encode_run`.
        patches: Those of the call, whose mocks get the calls that the worker's copies have recorded.

    Raises:
        ClusterError: The worker has another version of this package; the message names both.
    """
    try:
        header, details, result, *in_band = _parts(data)
    except VersionMismatch as error:
        raise version_error(error) from None
    response = RunResponse(**header)
    result_buffers = serialization.read_only(in_band or buffers)
    if not result and result_buffers and not in_band:
        result = result_buffers.pop(0)
    run = ActionRun(
        response.name,
        duration=response.duration,
        is_started=response.is_started,
        mode=response.mode,
        job_id=response.job_id,
        pid=response.pid,
        host=response.host,
        node=response.node,
    )
    captured = Captured(response.stdout or "", response.stderr or "")
    if response.stdout is not None:
        run.captured = captured
    if not details and (not result or is_builtin_data(result)):  # the common case needs no modules
        run.result = serialization.loads(result) if result else None
        return run
    with shielded(), _no_bytecode(), plugin_modules(import_root if call is None else call.import_root):
        if details:
            decoded = serialization.loads_in_caller(details)
            _read_details(run, captured, decoded)
            if decoded["patch_changes"] and patches is not None:
                patches.apply_changes(decoded["patch_changes"])
        if run.error is None and result:
            try:
                run.result = serialization.loads_in_caller(result, result_buffers)
            except Exception as problem:  # noqa: BLE001 - unpickling runs code of the result's classes
                run.error = ResultNotSerializable(
                    f"the result of {run.name} cannot be unpickled here: {type(problem).__name__}: {safe_str(problem)}"
                )
                run.error.__cause__ = problem
    if call is not None and run.error is not None and not run.is_started:
        run.error = _call_problem(call, run.error)
    return run


def version_error(mismatch: VersionMismatch) -> ClusterError:
    """Return the error about a worker that has another version of this package than its caller."""
    return ClusterError(
        f"the worker has version {mismatch.version} of pytest-synapse-harness (protocol {mismatch.protocol}), this "
        f"process has {__version__} (protocol {PROTOCOL}): install the same version on both. On a cluster that does "
        "not share your file system, --debug-sdk (pytest: --synapse-debug-sdk) uploads this version with the plugin"
    )


def event_to_tuple(event: Event) -> tuple[Any, ...]:
    """Return the fields of an event as a tuple, which is many times cheaper to pickle; `Event(*fields)` reverses it."""
    return event.kind, event.name, event.data, event.level, event.step, event.file, event.time


def is_builtin_data(data: bytes | memoryview) -> bool:
    """Return whether a pickle is known to contain only builtin types: no opcode in it looks up a name in a module."""
    return isinstance(data, bytes) and len(data) < serialization.OUT_OF_BAND_BYTES and pickle.STACK_GLOBAL not in data


def loads_in_plugin(data: bytes, import_root: str | None) -> Any:
    """Unpickle data that may contain objects of a plugin, in the caller's process.

    Args:
        data: The pickle.
        import_root: The directory of the plugin's modules.
    """
    with shielded(), plugin_modules(import_root):
        return serialization.loads_in_caller(data)


def _message(header: dict[str, Any], *parts: bytes | memoryview) -> bytes:
    header["sizes"] = [*map(len, parts)]
    return b"".join((VERSION_LINE, pickle.dumps(header, protocol=5), *parts))


def _parts(data: bytes) -> tuple[Any, ...]:
    """Return a message's header and its parts; small parts as bytes, large ones as views.

    Raises:
        VersionMismatch: Its sender has another version.
    """
    if not data.startswith(VERSION_LINE) or len(data) == len(VERSION_LINE):
        raise VersionMismatch(data[:100].partition(b"\n")[0])
    whole = memoryview(data)
    header: dict[str, Any] = pickle.loads(whole[len(VERSION_LINE) :])  # ignores the data after the pickle
    sizes = header.pop("sizes")
    parts: list[Any] = [header]
    start = len(data) - sum(sizes)
    for size in sizes:
        part = whole[start : start + size]
        parts.append(part if size >= serialization.OUT_OF_BAND_BYTES else bytes(part))
        start += size
    return tuple(parts)


def _read_details(run: ActionRun, captured: Captured, details: dict[str, Any]) -> None:
    run.events = [Event(*fields) for fields in decode_entries(details["events"], serialization.loads_in_caller)]
    captured.records = details["records"]
    captured.warnings = details["warnings"]
    captured.unhandled = details["unhandled"]
    captured.already_printed = details["already_printed"]
    captured.output_positions = details["output_positions"]
    coverage_support.merge(details["coverage"])
    if details["error"] is not None:
        run.error = _without_traceback(remote_exceptions.decode_exception(details["error"]))
        assertions.explain(run.error, details["failed_assertions"])


def _call_problem(call: ActionCall, error: PluginError) -> PluginError:
    """Return why an action did not start: the worker's error, or the better error that its call cannot be unpickled.

    Some params can be pickled but not unpickled; checking that before each call would be too expensive.
    """
    try:
        require_picklable(call.name, call.action, call.params)
    except PluginError as problem:
        return problem
    return error


def _without_traceback(error: BaseException) -> PluginError:
    error.__traceback__ = None  # its own frames are this package's; those of its cause show where it failed
    if isinstance(error, PluginError):
        return error
    return ExecutionError(safe_str(error))


class _SettingsCache:
    """The settings of this process, pickled again only if they have changed."""

    def __init__(self) -> None:
        self._known: dict[tuple[str | None, bool], tuple[tuple[Any, ...], bytes]] = {}
        self._path: list[str] = []
        self._directory: str | None = None  # the working directory, if `sys.path` has relative paths
        self._absent: list[str] = []
        self._import_path = ImportPath()

    def encoded(self, root: str | None, *, with_setup: bool = False) -> bytes:
        """Return the pickled `CallerSettings` for a plugin whose modules are in this directory."""
        rewritten: tuple[str, ...] = ()
        if root is not None and assertions.is_rewriting():
            rewritten = assertions.rewritten_modules(top_level_names(root))
        settings = (
            self._own_import_path(),
            LoggingConfig.current(),
            UnhandledHooks.current(),
            rewritten,
            coverage_support.current_settings(),
            import_hook.is_installed(),
            masked_names(),
            changed_variables() if with_setup else (),
        )
        known = self._known.get((root, with_setup))
        if known is None or known[0] != settings:
            known = self._known[root, with_setup] = (
                settings,
                pickle.dumps(CallerSettings(*settings), protocol=5),
            )
        return known[1]

    def _own_import_path(self) -> ImportPath:
        if (
            sys.path != self._path
            or (self._directory is not None and self._directory != os.getcwd())
            or any(map(os.path.exists, self._absent))
        ):
            self._path = list(sys.path)
            self._directory = None if all(map(os.path.isabs, self._path)) else os.getcwd()
            paths = [os.path.abspath(path) for path in self._path]
            self._absent = [path for path in paths if not os.path.exists(path)]
            self._import_path = ImportPath.of(paths)
        return self._import_path


_settings = _SettingsCache()


def caller_settings(root: str | None, *, with_setup: bool = False) -> CallerSettings:
    """Return the settings of this process for calls of the plugin in this directory.

    Args:
        root: The directory; None without a plugin.
        with_setup: Whether what a test has set up goes along.
    """
    return _decode_settings(_settings.encoded(root, with_setup=with_setup))


def settings_to_json(settings: CallerSettings) -> Any:
    """Return settings as JSON data, for a worker that is reached through HTTP: it unpickles nothing."""
    return _settings_adapter().dump_python(settings, mode="json")


def settings_of_json(data: Any) -> CallerSettings:
    """Return the settings of JSON data.

    Raises:
        ValueError: It is not that of settings.
    """
    return _settings_adapter().validate_python(data)


@functools.cache
def _settings_adapter() -> TypeAdapter[CallerSettings]:
    return TypeAdapter(CallerSettings)


@functools.lru_cache(maxsize=4)
def _decode_settings(data: bytes) -> CallerSettings:
    settings: CallerSettings = pickle.loads(data)
    return settings


@contextlib.contextmanager
def _writes_no_bytecode() -> Iterator[None]:
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


# Keeps Python from writing `__pycache__` to the plugin's directory when a call imports its modules here.
_no_bytecode = SharedContext(_writes_no_bytecode)


def plugin_modules(root: str | None) -> contextlib.AbstractContextManager[None]:
    """Return a context manager with the modules of the plugin in this directory, if there is one."""
    return process_state.modules(root) if root is not None and os.path.isdir(root) else contextlib.nullcontext()

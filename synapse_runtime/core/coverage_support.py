"""Coverage of actions in workers: measured in the worker with the caller's settings, and merged into the caller's data.

Each call contains the settings of coverage.py in the caller's process, if it measures; the worker measures with the
same settings, in memory, and returns the executed lines with the run. If the caller does not measure, coverage is not
imported.

Private names of coverage are `Coverage._data`, as `get_data` searches for source files each time, its
`_current_context`, and `Coverage._inorout`, which decides which files are measured. A test checks them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from synapse_runtime.core.tempdirs import temporary_directory
from synapse_runtime.errors import CoverageLostWarning, safe_str

if TYPE_CHECKING:
    from coverage import Coverage, CoverageData

# The options of coverage that affect the measurement, as `get_option` names them.
_OPTIONS = (
    *("run:branch", "run:concurrency", "run:core", "run:cover_pylib", "run:dynamic_context", "run:include"),
    *("run:omit", "run:patch", "run:plugins", "run:source", "run:source_dirs", "run:source_pkgs", "run:timid"),
)
# Options that name files or directories: with the plugin in another directory, the caller applies them.
_PATH_OPTIONS = ("run:include", "run:omit", "run:source", "run:source_dirs", "run:source_pkgs")
_CORE = "COVERAGE_CORE"


@dataclass(frozen=True)
class CoverageSettings:
    """The settings of coverage in a process.

    Attributes:
        options: Values of coverage's options by name; paths are absolute.
        core: The value of the environment variable `COVERAGE_CORE`, for versions without the option `run:core`.
    """

    options: Mapping[str, Any]
    core: str | None = None


@dataclass(frozen=True, slots=True)
class FileData:
    """The executed lines or branches of a file.

    Attributes:
        module: Name of its module, if it has one.
        tracer: Name of the coverage plugin that measured it; empty if coverage itself did.
        executed: Line numbers, or pairs of line numbers for branches, by dynamic context.
    """

    module: str | None
    tracer: str
    executed: dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class CoverageResult:
    """What a worker executed in a call.

    Attributes:
        branches: Whether branches were measured, not only lines.
        files: The files, by their path in the caller's file system.
        problem: Why the measurement is incomplete; empty if it is complete.
    """

    branches: bool = False
    files: dict[str, FileData] = field(default_factory=dict)
    problem: str = ""


def current_settings() -> CoverageSettings | None:
    """Return the settings of coverage in this process; None if it does not measure."""
    cov = _current()
    if cov is None:
        return None
    from coverage.exceptions import ConfigError
    from coverage.files import relative_directory

    options: dict[str, Any] = {}
    for name in _OPTIONS:
        with contextlib.suppress(ConfigError):  # not an option of this version
            options[name] = cov.get_option(name)
    base = relative_directory()
    options["run:source"] = [_absolute_source(source, base) for source in options["run:source"] or ()] or None
    for name in ("run:source_dirs", "run:include", "run:omit"):
        if options.get(name):
            options[name] = [_absolute_pattern(pattern, base) for pattern in options[name]]
    for plugin in options["run:plugins"]:
        for key, value in cov.config.get_plugin_options(plugin).items():
            options[f"{plugin}:{key}"] = value
    return CoverageSettings(options, os.environ.get(_CORE))


def merge(measured: CoverageResult | None) -> None:
    """Add what a worker executed to the data of this process, in its current context.

    Warns:
        CoverageLostWarning: The worker could not measure, or its data cannot be merged.
    """
    cov = _current()
    if measured is None or cov is None:
        return
    problem = measured.problem
    try:
        _add(cov, measured)
    except Exception as error:  # noqa: BLE001 - a failure to measure must not change the action's outcome
        problem = _describe(error)
    if problem and problem not in _reported_problems:
        _reported_problems.add(problem)
        text = f"coverage of actions is incomplete: code executed in workers could not be measured: {problem}"
        warnings.warn(text, CoverageLostWarning, stacklevel=2)


def received() -> Mapping[str, set[int]]:
    """Return the lines that workers executed for this process while coverage measured, by file."""
    return _received


class CoverageCollector:
    """Measures coverage of the calls of this process, a worker."""

    def __init__(self) -> None:
        self._settings: CoverageSettings | None = None
        self._shares_filesystem = True
        self._coverage: Coverage | None = None
        self._data: CoverageData | None = None
        self._problem = ""
        self._modules: dict[str, str | None] = {}
        self._children: Path | None = None

    def start(self, settings: CoverageSettings | None, *, shares_filesystem: bool = True) -> None:
        """Start to measure with these settings.

        Args:
            settings: The caller's settings; None to stop measuring.
            shares_filesystem: Whether this worker shares the caller's file system; if not, the caller applies the
                options that name files or directories.
        """
        if settings != self._settings or shares_filesystem != self._shares_filesystem:
            self._stop()
            self._settings, self._shares_filesystem = settings, shares_filesystem
            if settings is not None:
                self._start(settings)
        elif self._coverage is not None and sys.version_info >= (3, 12):
            sys.monitoring.restart_events()  # otherwise only the first call that executes a line reports it

    def collect(self, to_caller: Callable[[str], str | None] = str) -> CoverageResult | None:
        """Return what was executed since the last `collect`.

        Args:
            to_caller: Returns a file's path in the caller's file system; None for a file that is left out.
        """
        if self._settings is None:
            return None
        if self._coverage is None or self._data is None:
            return CoverageResult(problem=self._problem)
        files: dict[str, FileData] = {}
        try:
            with _silent():
                self._coverage.switch_context("")  # flushes the collected lines to the data
                self._read(self._data, files, to_caller)
                branches = self._data.has_arcs()
                self._data.erase()
                for data in self._data_of_children():
                    branches = branches or data.has_arcs()
                    self._read(data, files, to_caller)
        except Exception as error:  # noqa: BLE001 - as in `merge`
            return CoverageResult(problem=_describe(error))
        return CoverageResult(branches, files)

    def _start(self, settings: CoverageSettings) -> None:
        self._problem = ""
        try:
            import coverage
            from coverage.exceptions import ConfigError
        except ImportError as error:
            self._problem = f"coverage is not installed in the workers: {error}"
            return
        options = dict(settings.options)
        if not self._shares_filesystem:
            for name in _PATH_OPTIONS:
                options.pop(name, None)
        try:
            file = self._settings_for_children(options) if _measures_children(options) else False
            with _silent(), _core(settings.core):
                cov = coverage.Coverage(data_file=None, config_file=file, messages=False)
                for name, value in options.items():
                    with contextlib.suppress(ConfigError):  # not an option of this version
                        cov.set_option(name, value)
                cov.start()
                self._data = cov.get_data()
            self._coverage = cov
        except Exception as error:  # noqa: BLE001 - as in `merge`
            self._problem = _describe(error)

    def _stop(self) -> None:
        if self._coverage is not None:
            # coverage raises an AssertionError if an action started its own measurement and did not stop it.
            with _silent(), contextlib.suppress(AssertionError):
                self._coverage.stop()
        self._coverage = self._data = None
        if self._children is not None:
            shutil.rmtree(self._children, ignore_errors=True)
            self._children = None

    def _read(self, data: CoverageData, files: dict[str, FileData], to_caller: Callable[[str], str | None]) -> None:
        """Add the content of the data to the files."""
        names = {file: to_caller(file) for file in data.measured_files()}
        modules = self._modules_of(file for file, name in names.items() if name is not None)
        read = data.arcs if data.has_arcs() else data.lines
        for context in data.measured_contexts():
            data.set_query_context(context)
            for file, name in names.items():
                executed: Sequence[Any] = () if name is None else read(file) or ()
                if name is not None and executed:
                    if name not in files:
                        files[name] = FileData(modules[file], data.file_tracer(file) or "", {})
                    files[name].executed.setdefault(context, []).extend(executed)

    def _modules_of(self, files: Iterable[str]) -> Mapping[str, str | None]:
        """Return the module names of all known files, including these."""
        unknown = {file for file in files if file not in self._modules}
        if unknown:
            self._modules.update(dict.fromkeys(unknown))
            for name, module in list(sys.modules.items()):
                file = getattr(module, "__dict__", {}).get("__file__")
                if isinstance(file, str) and (real := _real_path(file)) in unknown:
                    self._modules[real] = name
        return self._modules

    def _settings_for_children(self, options: Mapping[str, Any]) -> str:
        """Write a settings file for the child processes of an action; their data files are in the same directory."""
        self._children = Path(temporary_directory("synapse-coverage-"))
        sections: dict[str, dict[str, Any]] = defaultdict(dict)
        for name, value in options.items():
            section, _, key = name.rpartition(":")
            if value is not None:
                sections[section][key] = value
        sections["run"] |= {"data_file": str(self._children / ".coverage"), "parallel": True}
        lines = []
        for section, values in sections.items():
            lines.append(f"[{section}]")
            for key, value in values.items():
                text = "\n    ".join(map(str, ["", *value])) if isinstance(value, list) else str(value)
                lines.append(f"{key} = {text}".replace("$", "$$"))
        file = self._children / "coveragerc"
        file.write_text("\n".join(lines), encoding="utf-8")
        return str(file)

    def _data_of_children(self) -> Iterator[CoverageData]:
        """Yield the data of the child processes of an action that have exited."""
        if self._children is None:
            return
        from coverage import CoverageData
        from coverage.exceptions import CoverageException

        for file in self._children.glob(".coverage.*"):
            data = CoverageData(basename=str(file))
            try:
                data.read()
            except CoverageException:  # still being written
                continue
            yield data
            data.erase()


# The lines received from workers, and the problems that a warning has reported.
_received: defaultdict[str, set[int]] = defaultdict(set)
_reported_problems: set[str] = set()
# Whether a file is measured, for each `Coverage._inorout`.
_measured_files: weakref.WeakKeyDictionary[Any, dict[str, bool]] = weakref.WeakKeyDictionary()


def _current() -> Coverage | None:
    coverage = getattr(sys.modules.get("coverage"), "Coverage", None)
    current: Coverage | None = None if coverage is None else coverage.current()
    return current


def _add(cov: Coverage, measured: CoverageResult) -> None:
    from coverage.files import relative_filename

    data = cov._data
    assert data is not None
    now = data._current_context
    static: Any = cov.get_option("run:context")
    by_context: defaultdict[str | None, dict[str, list[Any]]] = defaultdict(dict)
    tracers: dict[str, str] = {}
    for name, file in measured.files.items():
        if not _is_measured(cov, name, file):
            continue
        known = relative_filename(name) if cov.get_option("run:relative_files") else name
        if file.tracer:
            tracers[known] = file.tracer
        for context, executed in file.executed.items():
            by_context[_own_context(context, now, static)].setdefault(known, []).extend(executed)
            pairs = executed if not measured.branches else (number for pair in executed for number in pair)
            _received[name].update(number for number in pairs if number > 0)
    for own, executed_in in by_context.items():
        if own != now:
            data.set_context(own)
        (data.add_arcs if measured.branches else data.add_lines)(executed_in)
        if own != now:
            data.set_context(now)
    if tracers:
        data.add_file_tracers(tracers)


def _own_context(context: str, now: str | None, static: str | None) -> str | None:
    """Return the caller's context for a worker's: the caller's current one, if any, as in a single process."""
    if not context or (now and now != static):
        return now
    return f"{static}|{context}" if static else context


def _is_measured(cov: Coverage, name: str, file: FileData) -> bool:
    """Return whether coverage would measure a file in this process; this also registers the file as imported."""
    if file.tracer:
        return True
    rules = cov._inorout
    assert rules is not None
    known = _measured_files.setdefault(rules, {})
    if name not in known:
        frame: Any = SimpleNamespace(f_globals={"__name__": file.module} if file.module else {})
        known[name] = not rules.check_include_omit_etc(name, frame)
    return known[name]


def _absolute_source(source: str, base: str) -> str:
    """Return a directory as an absolute path, and a package name unchanged."""
    path = os.path.join(base, source)
    return os.path.realpath(path) if os.path.isdir(path) else source


def _absolute_pattern(pattern: str, base: str) -> str:
    """Return a file pattern that matches the same files in any working directory."""
    if pattern.startswith(("*", "?")) or "/" not in pattern.replace("\\", "/"):
        return pattern
    return os.path.join(base, pattern)


def _measures_children(options: Mapping[str, Any]) -> bool:
    return "multiprocessing" in (options.get("run:concurrency") or ()) or "subprocess" in (
        options.get("run:patch") or ()
    )


@functools.cache
def _real_path(file: str) -> str:
    return os.path.realpath(file)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppress coverage's warnings: the caller's coverage, which has all data, issues them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _core(name: str | None) -> Iterator[None]:
    before = os.environ.pop(_CORE, None)
    if name is not None:
        os.environ[_CORE] = name
    try:
        yield
    finally:
        os.environ.pop(_CORE, None)
        if before is not None:
            os.environ[_CORE] = before


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {safe_str(error)}"

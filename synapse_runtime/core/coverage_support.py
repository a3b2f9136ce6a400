"""Coverage: what a worker executes is measured there as it would be here, and counted here with this process's own.

Each call says how coverage.py measures in the caller's process, if it does; the worker measures in the same way, in
memory, and its run brings home what was executed. Where the caller measures nothing, coverage is not even imported.

Almost all of it goes by coverage's public API. Private are `Coverage._data`, as the public way to it looks for source
files each time, the context that it is in, and `Coverage._inorout`, which knows what is to be measured. A test watches
them.
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

# What coverage measures, and how; as its `get_option` names it.
_OPTIONS = (
    *("run:branch", "run:concurrency", "run:core", "run:cover_pylib", "run:dynamic_context", "run:include"),
    *("run:omit", "run:patch", "run:plugins", "run:source", "run:source_dirs", "run:source_pkgs", "run:timid"),
)
# What is measured, by place: a worker that has the plugin elsewhere leaves this to the caller.
_BY_PLACE = ("run:include", "run:omit", "run:source", "run:source_dirs", "run:source_pkgs")
_CORE = "COVERAGE_CORE"


@dataclass(frozen=True)
class CoverageSettings:
    """How coverage measures in a process.

    Attributes:
        options: Values of coverage's options, by name; files and directories are absolute.
        core: The technology that the environment chooses, for versions that have no option for it.
    """

    options: Mapping[str, Any]
    core: str | None = None


@dataclass(frozen=True, slots=True)
class FileData:
    """What was executed in a file.

    Attributes:
        module: Name of its module, where it has one.
        tracer: Name of coverage's plugin that measured it; empty for Python itself.
        executed: Line numbers, or pairs of them for branches, by the dynamic context that they were executed in.
    """

    module: str | None
    tracer: str
    executed: dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class CoverageResult:
    """What a worker has executed in a call.

    Attributes:
        branches: Whether branches were measured, not just lines.
        files: By name of the file on the caller's disk.
        problem: Why there is less than there should be.
    """

    branches: bool = False
    files: dict[str, FileData] = field(default_factory=dict)
    problem: str = ""


def current_settings() -> CoverageSettings | None:
    """Return how coverage measures in this process now; None where it does not."""
    cov = _current()
    if cov is None:
        return None
    from coverage.exceptions import ConfigError
    from coverage.files import relative_directory

    options: dict[str, Any] = {}
    for name in _OPTIONS:
        with contextlib.suppress(ConfigError):  # of another version
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
    """Count what a worker has executed with what this process has, in the context that it is in.

    Warns:
        CoverageLostWarning: The worker could not measure, or what it measured cannot be read.
    """
    cov = _current()
    if measured is None or cov is None:
        return
    problem = measured.problem
    try:
        _add(cov, measured)
    except Exception as error:  # noqa: BLE001 - the action's outcome is not to depend on how it is measured
        problem = _in_words(error)
    if problem and problem not in _told:
        _told.add(problem)
        text = f"coverage of actions is not complete: what workers execute could not be measured: {problem}"
        warnings.warn(text, CoverageLostWarning, stacklevel=2)


def received() -> Mapping[str, set[int]]:
    """Return the lines that workers have executed for this process while it was measured, by file."""
    return _received


class CoverageCollector:
    """Measures what this process, a worker, executes in its calls."""

    def __init__(self) -> None:
        self._settings: CoverageSettings | None = None
        self._shares_filesystem = True
        self._coverage: Coverage | None = None
        self._data: CoverageData | None = None
        self._problem = ""
        self._modules: dict[str, str | None] = {}
        self._children: Path | None = None

    def start(self, settings: CoverageSettings | None, *, shares_filesystem: bool = True) -> None:
        """Measure from now on, in this way; None ends it.

        Args:
            settings: How the caller measures.
            shares_filesystem: Whether this worker sees the caller's file system; if not, what its path there names
                is for the caller to choose.
        """
        if settings != self._settings or shares_filesystem != self._shares_filesystem:
            self._end()
            self._settings, self._shares_filesystem = settings, shares_filesystem
            if settings is not None:
                self._start(settings)
        elif self._coverage is not None and sys.version_info >= (3, 12):
            sys.monitoring.restart_events()  # which tell of each line once, also where it is executed in each call

    def collect(self, told: Callable[[str], str | None] = str) -> CoverageResult | None:
        """Return what was executed since the last time.

        Args:
            told: Gives a file's name on the caller's disk; None for one that is not to be told of.
        """
        if self._settings is None:
            return None
        if self._coverage is None or self._data is None:
            return CoverageResult(problem=self._problem)
        files: dict[str, FileData] = {}
        try:
            with _silent():
                self._coverage.switch_context("")  # which writes to the data what is in memory still
                self._read(self._data, files, told)
                branches = self._data.has_arcs()
                self._data.erase()
                for data in self._data_of_children():
                    branches = branches or data.has_arcs()
                    self._read(data, files, told)
        except Exception as error:  # noqa: BLE001 - as in `merge`
            return CoverageResult(problem=_in_words(error))
        return CoverageResult(branches, files)

    def _start(self, settings: CoverageSettings) -> None:
        self._problem = ""
        try:
            import coverage
            from coverage.exceptions import ConfigError
        except ImportError as error:
            self._problem = f"coverage is not installed where they run: {error}"
            return
        options = dict(settings.options)
        if not self._shares_filesystem:
            for name in _BY_PLACE:
                options.pop(name, None)
        try:
            file = self._settings_for_children(options) if _measures_children(options) else False
            with _silent(), _core(settings.core):
                cov = coverage.Coverage(data_file=None, config_file=file, messages=False)
                for name, value in options.items():
                    with contextlib.suppress(ConfigError):  # of another version
                        cov.set_option(name, value)
                cov.start()
                self._data = cov.get_data()
            self._coverage = cov
        except Exception as error:  # noqa: BLE001 - as in `merge`
            self._problem = _in_words(error)

    def _end(self) -> None:
        if self._coverage is not None:
            # What fails here is an assertion: an action has begun to measure itself, and has not ended it.
            with _silent(), contextlib.suppress(AssertionError):
                self._coverage.stop()
        self._coverage = self._data = None
        if self._children is not None:
            shutil.rmtree(self._children, ignore_errors=True)
            self._children = None

    def _read(self, data: CoverageData, files: dict[str, FileData], told: Callable[[str], str | None]) -> None:
        """Add what is in the data to the files."""
        names = {file: told(file) for file in data.measured_files()}
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
        """Return the names of the modules that files hold; all files' that are known."""
        unknown = {file for file in files if file not in self._modules}
        if unknown:
            self._modules.update(dict.fromkeys(unknown))
            for name, module in list(sys.modules.items()):
                file = getattr(module, "__dict__", {}).get("__file__")
                if isinstance(file, str) and (real := _real_path(file)) in unknown:
                    self._modules[real] = name
        return self._modules

    def _settings_for_children(self, options: Mapping[str, Any]) -> str:
        """Write a file with settings for the processes that an action starts, whose data goes beside it."""
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
        """Yield what processes have measured that an action has started, of those that have ended."""
        if self._children is None:
            return
        from coverage import CoverageData
        from coverage.exceptions import CoverageException

        for file in self._children.glob(".coverage.*"):
            data = CoverageData(basename=str(file))
            try:
                data.read()
            except CoverageException:  # it is being written
                continue
            yield data
            data.erase()


# The lines that came from workers, and what was told of problems.
_received: defaultdict[str, set[int]] = defaultdict(set)
_told: set[str] = set()
# Whether a file is to be measured, by the part of a `Coverage` that says so.
_admitted: weakref.WeakKeyDictionary[Any, dict[str, bool]] = weakref.WeakKeyDictionary()


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
        if not _is_admitted(cov, name, file):
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
    """Return the context that is counted for one of a worker's: the caller's, if it is in one, as in one process."""
    if not context or (now and now != static):
        return now
    return f"{static}|{context}" if static else context


def _is_admitted(cov: Coverage, name: str, file: FileData) -> bool:
    """Tell whether coverage would measure a file here; it learns by this what was imported."""
    if file.tracer:
        return True
    rules = cov._inorout
    assert rules is not None
    known = _admitted.setdefault(rules, {})
    if name not in known:
        frame: Any = SimpleNamespace(f_globals={"__name__": file.module} if file.module else {})
        known[name] = not rules.check_include_omit_etc(name, frame)
    return known[name]


def _absolute_source(source: str, base: str) -> str:
    """Return a directory as an absolute path, and a package's name as it is."""
    path = os.path.join(base, source)
    return os.path.realpath(path) if os.path.isdir(path) else source


def _absolute_pattern(pattern: str, base: str) -> str:
    """Return a pattern of file names that means in any working directory what it means in this."""
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
    """Let coverage not warn: what it has to say, it says to the caller, who sees all data."""
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


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {safe_str(error)}"

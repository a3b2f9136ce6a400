"""Tests for sending coverage settings to a worker, and for merging its coverage into the caller's."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import coverage
import pytest

from synapse_runtime.core import coverage_support
from synapse_runtime.core.coverage_support import (
    CoverageCollector,
    CoverageResult,
    CoverageSettings,
    FileData,
    current_settings,
    merge,
)
from synapse_runtime.errors import CoverageLostWarning

SOURCE = """\
def first(number):
    if number:
        return "yes"
    return "no"


def second():
    return "second"


def test_third():
    return "third"
"""


@pytest.fixture
def module_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a module `measured_here`, which is the working directory."""
    (tmp_path / "measured_here.py").write_text(SOURCE)
    (tmp_path / "package").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "measured_here", raising=False)
    monkeypatch.setattr(coverage_support, "_reported_problems", set())
    return tmp_path


@pytest.fixture
def file(module_dir: Path) -> str:
    return str((module_dir / "measured_here.py").resolve())


class Measuring:
    """Stands for a process whose coverage is measured, even if coverage does not measure these tests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, **options: object) -> coverage.Coverage:
        """Start a `Coverage` with these options."""
        cov = coverage.Coverage(data_file=None, config_file=False, **options)  # type: ignore[arg-type]
        cov.start()
        self._monkeypatch.setattr(cov, "_warn_no_data", False)
        self._monkeypatch.setattr(cov, "_warn_unimported_source", False)
        return cov


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Iterator[Measuring]:
    yield Measuring(monkeypatch)
    while cov := coverage.Coverage.current():
        cov.stop()


def lines_of(measured: CoverageResult, file: str) -> dict[str, list[int]]:
    """Return the executed lines of a file, sorted."""
    return {context: sorted(executed) for context, executed in measured.files[file].executed.items()}


@pytest.fixture
def collector() -> Iterator[CoverageCollector]:
    collector = CoverageCollector()
    yield collector
    collector.start(None)


def test_process_that_does_not_measure_has_no_settings():
    assert current_settings() is None


def test_stopped_coverage_has_no_settings(measuring):
    measuring().stop()
    assert current_settings() is None


def test_directories_and_patterns_match_the_same_files_in_any_working_directory(module_dir, measuring, monkeypatch):
    measuring(source=["package", "plugin", "."], omit=["package/*", "*/test_*", "setup.py", "/else/where"], branch=True)
    monkeypatch.chdir("/")
    options = current_settings().options
    assert options["run:source"] == [str((module_dir / "package").resolve()), "plugin", str(module_dir.resolve())]
    assert options["run:omit"] == [str(module_dir / "package/*"), "*/test_*", "setup.py", "/else/where"]
    assert options["run:branch"] is True


def test_settings_are_equal_until_something_changes(module_dir, measuring):
    cov = measuring(source=["package"])
    assert current_settings() == current_settings()
    before = current_settings()
    cov.set_option("run:omit", ["package/*"])
    assert current_settings() != before


CORES = ["ctrace", "pytrace"] + (["sysmon"] if sys.version_info >= (3, 12) else [])


@pytest.mark.parametrize("core", CORES)
def test_collector_returns_what_each_call_executed(file, collector, core):
    given = CoverageSettings({"run:branch": False, "run:source": [str(Path(file).parent)]}, core)
    collector.start(given)
    import measured_here

    measured_here.first(1)
    measured = collector.collect()
    assert (measured.branches, measured.problem, set(measured.files)) == (False, "", {file})
    assert measured.files[file].module == "measured_here"
    assert lines_of(measured, file) == {"": [1, 2, 3, 7, 11]}
    collector.start(given)
    measured_here.first(0)
    assert lines_of(collector.collect(), file) == {"": [2, 4]}
    collector.start(given)
    assert collector.collect() == CoverageResult(False, {})
    collector.start(None)
    measured_here.first(0)
    assert collector.collect() is None
    collector.start(given)
    measured_here.second()
    assert collector.collect().files[file].executed == {"": [8]}


def test_new_settings_apply_from_the_next_call(file, collector):
    collector.start(CoverageSettings({"run:source": [str(Path(file).parent)]}))
    import measured_here

    assert set(collector.collect().files) == {file}
    collector.start(CoverageSettings({"run:branch": True, "run:source": ["somewhere_else"]}))
    measured_here.second()
    assert collector.collect().files == {}
    collector.start(CoverageSettings({"run:branch": True, "run:source": ["measured_here"]}))
    measured_here.second()
    measured = collector.collect()
    assert measured.branches
    assert lines_of(measured, file) == {"": [(-7, 8), (8, -7)]}


def test_without_a_shared_filesystem_the_caller_selects_and_names_files(file, collector, measuring):
    collector.start(
        CoverageSettings({"run:source": ["/on/the/callers/disk"], "run:omit": ["*"]}, None), shares_filesystem=False
    )
    import measured_here

    measured_here.second()
    known = {file: "/home/ada/plugin/measured_here.py"}
    measured = collector.collect(known.get)
    assert set(measured.files) == {"/home/ada/plugin/measured_here.py"}
    collector.start(None)

    cov = measuring(source=["measured_here"])
    merge(replace(measured, files=measured.files | {"/home/ada/other.py": FileData("other", "", {"": [1]})}))
    assert cov.get_data().measured_files() == {"/home/ada/plugin/measured_here.py"}
    assert set(cov.get_data().lines("/home/ada/plugin/measured_here.py")) == {1, 7, 8, 11}


def test_merge_records_the_lines_that_workers_executed(file, measuring, monkeypatch):
    monkeypatch.setattr(coverage_support, "_received", type(coverage_support._received)(set))
    measuring(branch=True)
    merge(CoverageResult(True, {file: FileData("measured_here", "", {"": [(-1, 2), (2, 4), (4, -1)]})}))
    assert coverage_support.received() == {file: {2, 4}}


def test_merge_uses_the_callers_context(file, measuring):
    cov = measuring(context="nightly")
    worker = CoverageResult(False, {file: FileData("measured_here", "", {"": [2], "of the worker": [3]})})
    merge(worker)
    merge(CoverageResult(False, {file: FileData("measured_here", "", {"": [4]})}))
    cov.switch_context("test_one|run")
    merge(worker)
    data = cov.get_data()
    assert {number: sorted(names) for number, names in data.contexts_by_lineno(file).items()} == {
        2: ["nightly", "nightly|test_one|run"],
        3: ["nightly|of the worker", "nightly|test_one|run"],
        4: ["nightly"],
    }


def test_erased_data_stays_erased_and_new_data_is_merged(file, measuring):
    cov = measuring()
    merge(CoverageResult(False, {file: FileData("measured_here", "", {"": [2]})}))
    cov.stop()
    cov.erase()
    cov.start()
    merge(CoverageResult(False, {file: FileData("measured_here", "", {"": [8]})}))
    assert cov.get_data().lines(file) == [8]


def test_worker_that_cannot_measure_warns_once(file, measuring):
    program = """
    import sys
    sys.modules["coverage"] = None
    from synapse_runtime.core.coverage_support import CoverageCollector, CoverageSettings
    collector = CoverageCollector()
    for _ in range(2):
        collector.start(CoverageSettings({}))
        print(collector.collect())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == second
    assert "coverage is not installed in the workers" in first

    measuring()
    with pytest.warns(CoverageLostWarning, match="could not be measured: coverage is not installed"):
        merge(CoverageResult(problem="coverage is not installed in the workers: no module"))
    merge(CoverageResult(problem="coverage is not installed in the workers: no module"))


def test_invalid_settings_in_a_worker_are_a_problem(collector):
    collector.start(CoverageSettings({"run:plugins": ["there_is_no_such_plugin"]}))
    assert "there_is_no_such_plugin" in collector.collect().problem


def test_unknown_option_of_another_version_is_ignored(file, collector):
    collector.start(CoverageSettings({"run:of_a_later_version": True, "run:source": ["measured_here"]}))
    import measured_here

    measured_here.second()
    assert set(collector.collect().files) == {file}


def test_action_that_stops_coverage_is_a_problem(collector):
    collector.start(CoverageSettings({"run:source": ["measured_here"]}))
    coverage.Coverage.current().stop()
    assert "not started" in collector.collect().problem


def test_action_that_leaves_its_own_coverage_running_is_harmless(collector, measuring):
    collector.start(CoverageSettings({"run:source": ["measured_here"]}))
    measuring()
    collector.start(None)
    assert collector.collect() is None


def test_each_dynamic_context_has_its_lines_in_each_call(file, collector):
    given = CoverageSettings({"run:dynamic_context": "test_function", "run:source": ["measured_here"]})
    collector.start(given)
    import measured_here

    measured_here.test_third()
    assert lines_of(collector.collect(), file) == {"": [1, 7, 11], "measured_here.test_third": [12]}
    collector.start(given)
    measured_here.second()
    assert collector.collect().files[file].executed == {"": [8]}


def test_changed_rules_of_the_caller_apply_from_then_on(file, measuring):
    cov = measuring(source=["elsewhere"])
    merge(CoverageResult(False, {file: FileData("measured_here", "", {"": [2]})}))
    assert not cov.get_data().measured_files()
    cov.stop()
    cov.erase()
    cov.set_option("run:source", ["measured_here"])
    cov.start()
    merge(CoverageResult(False, {file: FileData("measured_here", "", {"": [2]})}))
    assert cov.get_data().measured_files() == {file}


def test_data_that_cannot_be_merged_warns(file, measuring):
    measuring(branch=True)
    merge(CoverageResult(True, {file: FileData("measured_here", "", {"": [(1, 2)]})}))
    with pytest.warns(CoverageLostWarning, match="is incomplete.*measurements"):
        merge(CoverageResult(False, {file: FileData("measured_here", "", {"": [1]})}))


def test_private_names_of_coverage_exist(measuring):
    cov = measuring()
    assert isinstance(cov._data, coverage.CoverageData)
    assert cov._data is cov.get_data()
    cov.switch_context("now")
    assert cov._data._current_context == "now"
    assert list(inspect.signature(cov._inorout.check_include_omit_etc).parameters) == ["filename", "frame"]
    assert cov._inorout.check_include_omit_etc(coverage.__file__, None) is not None

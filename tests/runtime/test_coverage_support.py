"""How a process measures coverage, told to a worker, and what the worker has measured, counted here."""

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
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a module `measured_here`, in which the process is."""
    (tmp_path / "measured_here.py").write_text(SOURCE)
    (tmp_path / "package").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "measured_here", raising=False)
    monkeypatch.setattr(coverage_support, "_told", set())
    return tmp_path


@pytest.fixture
def file(place: Path) -> str:
    return str((place / "measured_here.py").resolve())


class Measuring:
    """This process, as one whose coverage is measured: as coverage does not measure these tests meanwhile."""

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
    """Return what was executed in a file, which comes in any order."""
    return {context: sorted(executed) for context, executed in measured.files[file].executed.items()}


@pytest.fixture
def meter() -> Iterator[CoverageCollector]:
    meter = CoverageCollector()
    yield meter
    meter.start(None)


def test_who_does_not_measure_has_no_settings():
    assert current_settings() is None


def test_a_coverage_that_was_stopped_has_none(measuring):
    measuring().stop()
    assert current_settings() is None


def test_directories_and_patterns_mean_the_same_in_any_working_directory(place, measuring, monkeypatch):
    measuring(source=["package", "plugin", "."], omit=["package/*", "*/test_*", "setup.py", "/else/where"], branch=True)
    monkeypatch.chdir("/")
    options = current_settings().options
    assert options["run:source"] == [str((place / "package").resolve()), "plugin", str(place.resolve())]
    assert options["run:omit"] == [str(place / "package/*"), "*/test_*", "setup.py", "/else/where"]
    assert options["run:branch"] is True


def test_settings_are_equal_as_long_as_nothing_changes(place, measuring):
    cov = measuring(source=["package"])
    assert current_settings() == current_settings()
    before = current_settings()
    cov.set_option("run:omit", ["package/*"])
    assert current_settings() != before


CORES = ["ctrace", "pytrace"] + (["sysmon"] if sys.version_info >= (3, 12) else [])


@pytest.mark.parametrize("core", CORES)
def test_a_meter_tells_what_each_call_has_executed(file, meter, core):
    given = CoverageSettings({"run:branch": False, "run:source": [str(Path(file).parent)]}, core)
    meter.start(given)
    import measured_here

    measured_here.first(1)
    measured = meter.collect()
    assert (measured.branches, measured.problem, set(measured.files)) == (False, "", {file})
    assert measured.files[file].module == "measured_here"
    assert lines_of(measured, file) == {"": [1, 2, 3, 7, 11]}
    meter.start(given)
    measured_here.first(0)
    assert lines_of(meter.collect(), file) == {"": [2, 4]}
    meter.start(given)
    assert meter.collect() == CoverageResult(False, {})
    meter.start(None)
    measured_here.first(0)
    assert meter.collect() is None
    meter.start(given)
    measured_here.second()
    assert meter.collect().files[file].executed == {"": [8]}


def test_other_settings_are_followed_from_the_next_call_on(file, meter):
    meter.start(CoverageSettings({"run:source": [str(Path(file).parent)]}))
    import measured_here

    assert set(meter.collect().files) == {file}
    meter.start(CoverageSettings({"run:branch": True, "run:source": ["somewhere_else"]}))
    measured_here.second()
    assert meter.collect().files == {}
    meter.start(CoverageSettings({"run:branch": True, "run:source": ["measured_here"]}))
    measured_here.second()
    measured = meter.collect()
    assert measured.branches
    assert lines_of(measured, file) == {"": [(-7, 8), (8, -7)]}


def test_abroad_the_caller_chooses_and_names_what_is_told(file, meter, measuring):
    meter.start(
        CoverageSettings({"run:source": ["/on/the/callers/disk"], "run:omit": ["*"]}, None), shares_filesystem=False
    )
    import measured_here

    measured_here.second()
    known = {file: "/home/ada/plugin/measured_here.py"}
    measured = meter.collect(known.get)
    assert set(measured.files) == {"/home/ada/plugin/measured_here.py"}
    meter.start(None)

    cov = measuring(source=["measured_here"])
    merge(replace(measured, files=measured.files | {"/home/ada/other.py": FileData("other", "", {"": [1]})}))
    assert cov.get_data().measured_files() == {"/home/ada/plugin/measured_here.py"}
    assert set(cov.get_data().lines("/home/ada/plugin/measured_here.py")) == {1, 7, 8, 11}


def test_what_workers_executed_is_received(file, measuring, monkeypatch):
    monkeypatch.setattr(coverage_support, "_received", type(coverage_support._received)(set))
    measuring(branch=True)
    merge(CoverageResult(True, {file: FileData("measured_here", "", {"": [(-1, 2), (2, 4), (4, -1)]})}))
    assert coverage_support.received() == {file: {2, 4}}


def test_it_is_counted_in_the_callers_context(file, measuring):
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


def test_data_that_was_erased_does_not_come_back_and_new_data_is_counted(file, measuring):
    cov = measuring()
    merge(CoverageResult(False, {file: FileData("measured_here", "", {"": [2]})}))
    cov.stop()
    cov.erase()
    cov.start()
    merge(CoverageResult(False, {file: FileData("measured_here", "", {"": [8]})}))
    assert cov.get_data().lines(file) == [8]


def test_a_worker_that_cannot_measure_is_told_of_once(file, measuring):
    program = """
    import sys
    sys.modules["coverage"] = None
    from synapse_runtime.core.coverage_support import CoverageCollector, CoverageSettings
    meter = CoverageCollector()
    for _ in range(2):
        meter.start(CoverageSettings({}))
        print(meter.collect())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == second
    assert "coverage is not installed where they run" in first

    measuring()
    with pytest.warns(CoverageLostWarning, match="could not be measured: coverage is not installed"):
        merge(CoverageResult(problem="coverage is not installed where they run: no module"))
    merge(CoverageResult(problem="coverage is not installed where they run: no module"))


def test_settings_that_a_worker_cannot_follow_are_told_of(meter):
    meter.start(CoverageSettings({"run:plugins": ["there_is_no_such_plugin"]}))
    assert "there_is_no_such_plugin" in meter.collect().problem


def test_an_option_of_another_version_is_left_out(file, meter):
    meter.start(CoverageSettings({"run:of_a_later_version": True, "run:source": ["measured_here"]}))
    import measured_here

    measured_here.second()
    assert set(meter.collect().files) == {file}


def test_an_action_that_ends_the_measurement_is_told_of(meter):
    meter.start(CoverageSettings({"run:source": ["measured_here"]}))
    coverage.Coverage.current().stop()
    assert "not started" in meter.collect().problem


def test_an_action_that_leaves_a_measurement_of_its_own_does_no_harm(meter, measuring):
    meter.start(CoverageSettings({"run:source": ["measured_here"]}))
    measuring()
    meter.start(None)
    assert meter.collect() is None


def test_each_context_of_a_worker_has_its_own_lines_in_each_call(file, meter):
    given = CoverageSettings({"run:dynamic_context": "test_function", "run:source": ["measured_here"]})
    meter.start(given)
    import measured_here

    measured_here.test_third()
    assert lines_of(meter.collect(), file) == {"": [1, 7, 11], "measured_here.test_third": [12]}
    meter.start(given)
    measured_here.second()
    assert meter.collect().files[file].executed == {"": [8]}


def test_other_rules_of_the_caller_hold_from_then_on(file, measuring):
    cov = measuring(source=["elsewhere"])
    merge(CoverageResult(False, {file: FileData("measured_here", "", {"": [2]})}))
    assert not cov.get_data().measured_files()
    cov.stop()
    cov.erase()
    cov.set_option("run:source", ["measured_here"])
    cov.start()
    merge(CoverageResult(False, {file: FileData("measured_here", "", {"": [2]})}))
    assert cov.get_data().measured_files() == {file}


def test_data_that_does_not_fit_is_told_of(file, measuring):
    measuring(branch=True)
    merge(CoverageResult(True, {file: FileData("measured_here", "", {"": [(1, 2)]})}))
    with pytest.warns(CoverageLostWarning, match="is not complete.*measurements"):
        merge(CoverageResult(False, {file: FileData("measured_here", "", {"": [1]})}))


def test_the_private_names_of_coverage_are_there(measuring):
    cov = measuring()
    assert isinstance(cov._data, coverage.CoverageData)
    assert cov._data is cov.get_data()
    cov.switch_context("now")
    assert cov._data._current_context == "now"
    assert list(inspect.signature(cov._inorout.check_include_omit_etc).parameters) == ["filename", "frame"]
    assert cov._inorout.check_include_omit_etc(coverage.__file__, None) is not None

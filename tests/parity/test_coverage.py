"""Row 19: coverage measures the same lines and branches of actions in every mode, and leaves nothing else behind."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest

from tests.parity.sessions import Session, run_pytest, run_python, write

MODES = ("local", "task", "job", "remote")

CONFIG = """\
code: demo
actions:
  many: {entrypoint: "plugin.actions:many"}
  fail: {entrypoint: "plugin.actions:fail"}
  hang: {entrypoint: "plugin.actions:hang"}
  again: {entrypoint: "plugin.actions:again"}
  checked: {entrypoint: "plugin.actions:Checked"}
"""

ACTIONS = """\
import asyncio
import os
import threading
import time

from pydantic import BaseModel, field_validator

from plugin.shapes import Shape
from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action

try:
    import there_is_no_such_module
except ImportError:
    there_is_no_such_module = None

if os.environ.get("THERE_IS_NO_SUCH_VARIABLE"):
    LIMIT = 1
else:
    LIMIT = 2

SQUARES = {
    number: number**2
    for number in range(3)
    if number
}


class Params(BaseModel):
    size: int = 1

    @field_validator("size")
    @classmethod
    def check(cls, value):
        if value > 9:
            raise ValueError("too large")
        return value


class Checked(BaseAction[Params]):
    def execute(self):
        if self.params.size == 2:
            return "two"
        return self.other()

    def other(self):
        return "other"


def in_thread(found):
    for number in range(2):
        found.append(number)


async def later(number):
    await asyncio.sleep(0)
    if number:
        return number
    return None


def numbers():
    yield 1
    yield 2


@action
def many(params, context):
    found = []
    thread = threading.Thread(target=in_thread, args=(found,))
    thread.start()
    thread.join()
    found += [
        asyncio.run(later(1)),
        *numbers(),
    ]
    match params.get("kind"):
        case "a":
            found.append("a")
        case "b":
            found.append("b")
        case _:
            pass
    if params.get("more"):
        from plugin import lazy

        found.append(lazy.double(2))
    return Shape(len(found), "round" if len(found) > 4 else "edged")


@action
def fail(params, context):
    try:
        if params["soon"]:
            raise LookupError("soon")
        return 1 / 0
    except ZeroDivisionError as error:
        error.add_note("late")
        raise
    finally:
        params.clear()


@action
def hang(params, context):
    while True:
        time.sleep(0.01)
    return "never"


def unused():
    return "nothing"  # never called


def debug():  # pragma: no cover
    return "left out"


@action
def again(params, context):
    if params["first"]:
        return "first"
    return "second"
"""

SHAPES = """\
class Shape:
    def __init__(self, corners, kind):
        self.corners = corners
        self.kind = kind

    def __reduce__(self):
        return restore, (self.corners, self.kind)

    def __eq__(self, other):
        return vars(self) == vars(other)


def restore(corners, kind):
    return Shape(corners, kind)
"""

LAZY = """\
import sys

if sys.platform == "there is no such platform":
    FACTOR = 3
else:
    FACTOR = 2


def double(number):
    return FACTOR * number
"""

CONFTEST = """\
import pytest

from synapse_runtime.decorators import action


@action
def of_conftest(params, context):
    if params:
        return "params"
    return "none"


@pytest.fixture
def action_of_conftest():
    return of_conftest
"""

TESTS = """\
import pytest

from synapse_runtime.action import BaseAction
from synapse_runtime.errors import ExecutionError, ExecutionTimeout, ValidationError


class OfTest(BaseAction):
    def execute(self):
        if self.params["up"]:
            return self.up()
        return "down"

    def up(self):
        return "up"


@pytest.mark.parametrize("params", [{"kind": "a"}, {"more": True}], ids=["kind", "more"])
def test_many(synapse_executor, params):
    assert synapse_executor.execute("many", params).corners > 3


@pytest.mark.parametrize("soon", [True, False])
def test_fail(synapse_executor, soon):
    with pytest.raises(ExecutionError):
        synapse_executor.execute("fail", {"soon": soon})


@pytest.mark.synapse(timeout=1)
def test_hang(synapse_executor):
    with pytest.raises(ExecutionTimeout):
        synapse_executor.execute("hang")


def test_again(synapse_executor):
    assert synapse_executor.execute("again", {"first": True}) == "first"
    assert synapse_executor.execute("again", {"first": False}) == "second"


def test_checked(synapse_executor):
    assert synapse_executor.execute("checked", {"size": 3}) == "other"
    with pytest.raises(ValidationError):
        synapse_executor.execute("checked", {"size": 10})


def test_actions_of_tests(synapse_executor, action_of_conftest):
    assert synapse_executor.execute(OfTest, {"up": True}) == "up"
    assert synapse_executor.execute(action_of_conftest) == "none"
"""

FILES = {
    "pytest.ini": "[pytest]\nfilterwarnings = error\n",
    "demo/config.yaml": CONFIG,
    "demo/plugin/__init__.py": "",
    "demo/plugin/actions.py": ACTIONS,
    "demo/plugin/shapes.py": SHAPES,
    "demo/plugin/lazy.py": LAZY,
    "demo/tests/conftest.py": CONFTEST,
    "demo/tests/test_demo.py": TESTS,
}


class Runs:
    """Sessions in a project, each with the same arguments run once, and their coverage."""

    def __init__(self, project: Path, env: dict[str, str]) -> None:
        self._project = project
        self._env = env

    @functools.cache  # noqa: B019 - lives as long as the tests of this file
    def __call__(self, mode: str, *options: str, tool: str = "", files: str = "", **env: str) -> tuple[Session, Path]:
        """Run the project's tests in a new directory; return the session and the directory."""
        project = self._write(FILES | EXTRA.get(files, {}))
        arguments = [f"--synapse-mode={mode}", "-p", "no:cacheprovider", *options]
        if tool:
            command = ["-m", "coverage", "run", *tool.split(), "-m", "pytest", *arguments]
            done = run_python(project, *command, env=self._env | env)
            return Session(done.returncode, done.stdout), project
        return run_pytest(project, *arguments, env=self._env | env), project

    def _write(self, files: dict[str, str]) -> Path:
        project = self._project / f"run-{len(list(self._project.iterdir()))}"
        return write(project, {name: text.replace("{project}", str(project)) for name, text in files.items()})

    def report(self, mode: str, *options: str, tool: str = "", files: str = "", **env: str) -> dict[str, Any]:
        """Return lines and branches of each file from coverage's JSON report."""
        session, project = self(mode, *options, tool=tool, files=files, **env)
        assert session.status == 0, session.output
        done = run_python(project, "-m", "coverage", "json", "-q", "-o", "report.json", env={})
        assert done.returncode == 0, done.stdout
        files_measured = json.loads((project / "report.json").read_text())["files"]
        return {
            name: {key: file.get(key) for key in ("executed_lines", "missing_lines", "executed_branches")}
            for name, file in files_measured.items()
        }


EXTRA: dict[str, dict[str, str]] = {}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, reached: dict[str, str]) -> Runs:
    return Runs(tmp_path_factory.mktemp("measured"), reached)


in_each_mode = pytest.mark.parametrize("mode", MODES)
# Jobs are measured by the same code as actors; their differences are covered by the tests of lines and branches.
in_each_mode_now_and_then = pytest.mark.parametrize(
    "mode", ["local", "task", "remote", pytest.param("job", marks=pytest.mark.thorough)]
)


def lines(text: str, *parts: str) -> set[int]:
    """Return the numbers of the lines that contain one of these texts."""
    found = {number for number, line in enumerate(text.splitlines(), 1) if any(part in line for part in parts)}
    assert len(found) >= len(parts)
    return found


BRANCHES = ("--cov=.", "--cov-branch", "--cov-report=")
# Fewer tests for jobs, each of which takes a second or two.
SOME = ("-k", "(many and more) or (fail and True)")
FEW = ("-k", "again or actions_of_tests or (many and more)")


def few(mode: str) -> tuple[str, ...]:
    """Return the options that select a few tests, in remote mode without actions that only the tests can import."""
    return ("-k", "again or (many and more)") if mode == "remote" else FEW


@pytest.mark.parametrize("mode", ["job"])
@pytest.mark.parametrize(
    "several",
    [(), pytest.param(("-n", "2", "--dist", "load"), marks=pytest.mark.thorough)],
    ids=["in-one-process", "xdist"],
)
def test_19_lines_and_branches_of_a_few_jobs_are_the_same_under_pytest_cov(runs, mode, several):
    assert runs.report(mode, *FEW, *BRANCHES, *several) == runs.report("local", *FEW, *BRANCHES)


@pytest.mark.parametrize("mode", ["remote"])
@pytest.mark.parametrize("processes", [0, 2], ids=["in-one-process", "xdist"])
def test_19_lines_and_branches_are_the_same_under_pytest_cov_through_a_backend(runs, mode, processes):
    several = ("-n", "2", "--dist", "load") if processes else ()
    options = ("-k", "not actions_of_tests", *BRANCHES)
    assert runs.report(mode, *options, *several) == runs.report("local", *options)


@pytest.mark.parametrize("mode", ["local", "task"])
@pytest.mark.parametrize("processes", [0, 2], ids=["in-one-process", "xdist"])
def test_19_lines_and_branches_are_the_same_under_pytest_cov(runs, mode, processes):
    several = ("-n", "2", "--dist", "load") if processes else ()
    report = runs.report(mode, *BRANCHES, *several)
    actions = report["demo/plugin/actions.py"]
    assert set(actions["missing_lines"]) == lines(
        ACTIONS, "LIMIT = 1", "return None", 'return "two"', 'found.append("b")', "# never called"
    )
    assert report["demo/plugin/lazy.py"]["missing_lines"] == [4]
    assert set(report["demo/tests/test_demo.py"]["missing_lines"]) == lines(TESTS, 'return "down"')
    assert set(report["demo/tests/conftest.py"]["missing_lines"]) == lines(CONFTEST, 'return "params"')
    assert report == runs.report("local", *BRANCHES)


@pytest.mark.parametrize(
    "dist",
    ["loadscope", "worksteal", *(pytest.param(dist, marks=pytest.mark.thorough) for dist in ("loadfile", "loadgroup"))],
)
@pytest.mark.parametrize("mode", ["task"])
def test_19_lines_and_branches_are_the_same_however_xdist_distributes_the_tests(runs, mode, dist):
    report = runs.report(mode, *FEW, *BRANCHES, "-n", "2", "--dist", dist)
    assert report == runs.report("local", *FEW, *BRANCHES)


@in_each_mode
def test_19_lines_and_branches_are_the_same_under_coverage_run(runs, mode):
    report = runs.report(mode, *SOME, tool="--branch --source=demo")
    assert report == runs.report("local", *SOME, tool="--branch --source=demo")
    assert report == runs.report("local", *SOME, "--cov=demo", "--cov-branch", "--cov-report=")


@in_each_mode_now_and_then
def test_19_contexts_name_the_same_tests(runs, mode):
    options = (*few(mode), "--cov=plugin", "--cov-context=test", "--cov-report=")
    (session, project), (_, local) = runs(mode, *options), runs("local", *options)
    assert session.status == 0, session.output
    here, there = contexts(local), contexts(project)
    inside = set(range(ACTIONS[: ACTIONS.index("@action")].count("\n"), len(ACTIONS.splitlines())))
    inside -= lines(ACTIONS, "def ", "@action")
    for number in inside:
        assert there.get(number) == here.get(number), ACTIONS.splitlines()[number - 1]
    (first,) = lines(ACTIONS, 'return "first"')
    assert there[first] == ["demo/tests/test_demo.py::test_again|run"]
    (imported,) = lines(ACTIONS, "LIMIT = 2")
    assert set(here[imported]) <= set(there[imported])  # each new worker imports it


@contextlib.contextmanager
def measured(project: Path) -> Iterator[coverage.CoverageData]:
    """Open a project's coverage data."""
    data = coverage.CoverageData(basename=str(project / ".coverage"))
    data.read()
    yield data
    if hasattr(data, "close"):  # later versions only
        data.close()


def contexts(project: Path) -> dict[int, list[str]]:
    """Return the contexts of the lines of the plugin's actions."""
    with measured(project) as data:
        found = data.contexts_by_lineno(str((project / "demo/plugin/actions.py").resolve()))
    return {number: sorted(names) for number, names in found.items() if number > 0}


CORES = ["ctrace", "pytrace"] + (["sysmon"] if sys.version_info >= (3, 12) else [])


@pytest.mark.parametrize(("mode", "core"), [("task", core) for core in CORES])
def test_19_lines_are_the_same_with_each_core(runs, mode, core):
    options = (*FEW, "--cov=plugin", "--cov-report=")
    assert runs.report(mode, *options, COVERAGE_CORE=core) == runs.report("local", *options)


CONFIGURED = """\
[coverage:run]
branch = true
source =
    demo
    measuring
omit =
    demo/plugin/sh*
    conftest.py
relative_files = true
context = nightly
plugins = measuring

[coverage:measuring]
traced = lazy.py
"""

MEASURING = """\
import coverage


class Plugin(coverage.CoveragePlugin):
    def __init__(self, traced):
        self.traced = traced

    def file_tracer(self, filename):
        return Tracer(filename) if filename.endswith(self.traced) else None

    def file_reporter(self, filename):
        return "python"

    def dynamic_context(self, frame):
        return "in " + frame.f_code.co_name if frame.f_code.co_name in ("many", "up") else None


class Tracer(coverage.FileTracer):
    def __init__(self, filename):
        self.filename = filename

    def source_filename(self):
        return self.filename

    def line_number_range(self, frame):
        return frame.f_lineno, frame.f_lineno


def coverage_init(reg, options):
    plugin = Plugin(options["traced"])
    reg.add_file_tracer(plugin)
    reg.add_dynamic_context(plugin)
"""
EXTRA["configured"] = {"setup.cfg": CONFIGURED, "measuring.py": MEASURING}


@in_each_mode_now_and_then
def test_19_the_configuration_is_the_same(runs, mode):
    report = runs.report(mode, *few(mode), tool="--branch", files="configured")
    assert "demo/plugin/actions.py" in report
    assert not {"demo/plugin/shapes.py", "demo/tests/conftest.py"} & set(report)
    assert report == runs.report("local", *few(mode), tool="--branch", files="configured")


@in_each_mode_now_and_then
def test_19_plugins_and_contexts_of_coverage_are_the_same(runs, mode):
    found = {}
    for each in ("local", mode):
        _, project = runs(each, *few(mode), tool="--branch", files="configured")
        with measured(project) as data:
            lazy = [data.file_tracer(file) for file in data.measured_files() if file.endswith("lazy.py")]
            found[each] = (lazy, data.measured_contexts(), data.measured_files())
    assert found[mode] == found["local"]
    assert found[mode][0] == ["measuring.Plugin"]
    assert {"nightly", "nightly|in many"} <= found[mode][1]


CHILDREN = """\
[run]
branch = true
source = {project}/demo
concurrency =
    thread
    multiprocessing
data_file = {project}/.coverage
"""

KIDS = """\
import multiprocessing
import subprocess
import sys

from synapse_runtime.decorators import action


def by_fork(number):
    if number:
        return "number"
    return "none"


def by_command(number):
    if number:
        return "none"
    return "number"


@action
def spread(params, context):
    process = multiprocessing.get_context("fork").Process(target=by_fork, args=(1,))
    process.start()
    process.join()
    command = "from plugin.kids import by_command; by_command(0)"
    subprocess.run([sys.executable, "-c", command], check=True)
"""

SPREAD = """\
def test_spread(synapse_executor):
    synapse_executor.execute("spread")
"""
HAS_PATCHES = tuple(map(int, coverage.__version__.split(".")[:2])) >= (7, 10)
EXTRA["children"] = {
    ".coveragerc": CHILDREN + ("patch = subprocess\n" if HAS_PATCHES else ""),
    "demo/config.yaml": 'code: demo\nactions: {spread: {entrypoint: "plugin.kids:spread"}}\n',
    "demo/plugin/kids.py": KIDS,
    "demo/tests/test_demo.py": SPREAD,
}


@in_each_mode
def test_19_processes_that_an_action_starts_are_measured(runs, mode):
    report = runs.report(mode, "--cov", "--cov-report=", files="children")["demo/plugin/kids.py"]
    if HAS_PATCHES:
        assert set(report["missing_lines"]) == lines(KIDS, 'return "none"')
        assert report == runs.report("local", "--cov", "--cov-report=", files="children")["demo/plugin/kids.py"]
    else:
        (forked, _) = sorted(lines(KIDS, 'return "number"'))
        assert forked in report["executed_lines"]
    _, project = runs(mode, "--cov", "--cov-report=", files="children")
    assert [path.name for path in project.rglob(".coverage*") if path.name != ".coveragerc"] == [".coverage"]


KILLED = """\
import os
import signal

import pytest

from synapse_runtime.decorators import action
from synapse_runtime.errors import WorkerCrashed


@action
def die(params, context):
    os.kill(os.getpid(), signal.SIGKILL)


def test_again(synapse_executor):
    assert synapse_executor.execute("again", {"first": True}) == "first"


def test_die(synapse_executor):
    with pytest.raises(WorkerCrashed):
        synapse_executor.execute(die)


@pytest.mark.no_cover
def test_not_covered(synapse_executor):
    assert synapse_executor.execute("checked", {"size": 2}) == "two"


def test_checked(synapse_executor):
    assert synapse_executor.execute("checked", {"size": 3}) == "other"
"""
EXTRA["killed"] = {"demo/tests/test_demo.py": KILLED}


@pytest.mark.parametrize("mode", ["task"])
def test_19_killed_worker_loses_only_its_last_run_and_no_cover_measures_nothing(runs, mode):
    report = runs.report(mode, *BRANCHES, files="killed")["demo/plugin/actions.py"]
    executed = set(report["executed_lines"])
    assert executed >= lines(ACTIONS, 'return "first"', 'return "other"')
    assert not executed & lines(ACTIONS, 'return "second"', 'return "two"')


PLAIN = """\
import sys

from synapse_runtime.decorators import action


@action
def loaded(params, context):
    return [name for name in sys.modules if name.partition(".")[0] == "coverage"]


def test_loaded(synapse_executor):
    assert synapse_executor.execute(loaded) == []
"""
EXTRA["plain"] = {"demo/tests/test_demo.py": PLAIN}


@pytest.mark.parametrize("mode", ["task", "job"])
def test_19_without_coverage_no_worker_imports_it(runs, mode):
    session, _ = runs(mode, "-p", "no:cov", files="plain")
    assert session.status == 0, session.output

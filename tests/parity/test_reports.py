"""pytest's report of a failing action is the same in every mode."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.parity.sessions import Session, comparable, run_pytest, write

MODES = ("local", "task", "remote", "job")

CONFIG = """\
code: demo
actions:
  deep: {entrypoint: "plugin.work:deep"}
"""

DATA = """\
def check(size):
    # A comment
    # or two.
    if size > 2:
        raise ValueError(f"size {size} is too large")
    return size
"""

WORK = """\
import asyncio
import json
import logging
import sys
import threading
import warnings

from pydantic import BaseModel, Field

from plugin import data
from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action

log = logging.getLogger("plugin.work")


class Misfit(Exception):
    def __init__(self, name, *, size):
        super().__init__(name)
        self.size = size

    def __str__(self):
        return f"a misfit of size {self.size}"


class Loader:
    def load(self, size):
        return data.check(size=size)


@action
def deep(params, context):
    return Loader().load(params["size"])


@action
def chained_from(params, context):
    try:
        deep(params, context)
    except ValueError as error:
        raise Misfit("chained", size=params["size"]) from error


@action
def chained_context(params, context):
    try:
        deep(params, context)
    except ValueError:
        {}["nothing"]


@action
def from_none(params, context):
    try:
        deep(params, context)
    except ValueError:
        raise Misfit("alone", size=1) from None


@action
def with_notes(params, context):
    error = Misfit("noted", size=2)
    error.add_note("a note")
    error.add_note("another note\\nof two lines")
    raise error


def _caught(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return error


@action
def group(params, context):
    inner = ExceptionGroup("inner", [_caught(data.check, 7), _caught(int, "x")])
    raise ExceptionGroup("outer", [_caught(deep, {"size": 3}, context), inner])


@action
def bare_assert(params, context):
    size = params["size"]
    assert size < 2, "too large"


@action
def long_statement(params, context):
    return dict(
        first=1,
        second=data.check(
            size=params["size"],
        ),
        third=3,
    )


@action
def in_library(params, context):
    return json.loads('{"a": 1,}')


@action
def in_a_lambda(params, context):
    return sorted([3, "x"], key=lambda item: item + 1)


@action
def made_up_code(params, context):
    exec(compile("def made_up():\\n    raise KeyError('made up')", "<made up>", "exec"), names := {})
    names["made_up"]()


@action
def recursion(params, context):
    return recursion(params, context)


@action
def leave(params, context):
    sys.exit(3)


async def _later(size):
    await asyncio.sleep(0)
    return data.check(size)


@action
async def async_action(params, context):
    return await _later(params["size"])


class Sized(BaseModel):
    size: int = Field(ge=1)


class Params(BaseModel):
    shapes: list[Sized]
    name: str


class Strict(BaseAction[Params]):
    def execute(self):
        return "ran"


@action
def unpicklable(params, context):
    return {"model": [1, threading.Lock()]}


@action
def talk_and_fail(params, context):
    print("printed")
    print("complained", file=sys.stderr)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        log.log(level, "logged at %s", logging.getLevelName(level))
    try:
        data.check(5)
    except ValueError:
        log.exception("caught")
    context.logger.warning("said")
    warnings.warn("warned", UserWarning)
    data.check(4)


@action
def talk(params, context):
    print("printed by a success")
    log.warning("logged by a success")
    return 2
"""

CONFTEST = """\
from synapse_runtime.decorators import action


@action
def in_conftest(params, context):
    sizes = [1, 2]
    assert sizes == params["sizes"]
"""

TESTS = """\
import logging

import pytest
from conftest import in_conftest

from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action
from synapse_runtime.errors import ExecutionError


class Jam(Exception):
    pass


class Print(BaseAction):
    def execute(self):
        return self.feed(self.params["pages"])

    def feed(self, pages):
        raise Jam(f"at page {pages}")


@action
def compare(params, context):
    left, right = params["left"], params["right"]
    assert left == right


def test_deep(synapse_executor):
    synapse_executor.execute("deep", {"size": 3})


@pytest.mark.parametrize("name", [
    "chained_from", "chained_context", "from_none", "group", "bare_assert", "long_statement",
    "in_library", "in_a_lambda", "made_up_code", "recursion", "leave", "async_action", "unpicklable",
])
def test_work(synapse_executor, name):
    synapse_executor.execute(f"plugin.work:{name}", {"size": 3})


def test_notes(synapse_executor):
    synapse_executor.execute("plugin.work:with_notes")


def test_compare_lists(synapse_executor):
    synapse_executor.execute(compare, {"left": list(range(20)), "right": [*range(10), 0, *range(11, 20)]})


def test_compare_dicts(synapse_executor):
    synapse_executor.execute(compare, {"left": {"a": 1, "b": 2, "same": 0}, "right": {"a": 1, "b": 3, "same": 0}})


def test_compare_texts(synapse_executor):
    synapse_executor.execute(compare, {"left": "one\\ntwo\\nthree", "right": "one\\n2\\nthree"})


def test_of_the_test_file(synapse_executor):
    synapse_executor.execute(Print, {"pages": 2})


def test_of_a_conftest(synapse_executor):
    synapse_executor.execute(in_conftest, {"sizes": [1, 3]})


def test_of_a_function(synapse_executor):
    wanted = 2

    @action
    def inner(params, context):
        assert params["got"] == wanted, "not what was wanted"

    synapse_executor.execute(inner, {"got": 1})


def test_run_then_unwrap(synapse_executor):
    run = synapse_executor.run("deep", {"size": 3})
    run.unwrap()


def test_syntax_error(synapse_executor):
    synapse_executor.execute("plugin.broken:Broken")


def test_import_error(synapse_executor):
    synapse_executor.execute("plugin.needy:Needy")


def test_bad_params(synapse_executor):
    synapse_executor.execute("plugin.work:Strict", {"shapes": [{"size": 0}, {"size": "x"}]})


def test_all_output(synapse_executor, caplog):
    caplog.set_level(logging.DEBUG)
    print("printed by the test")
    synapse_executor.execute("plugin.work:talk_and_fail")


def test_output_at_default_levels(synapse_executor):
    synapse_executor.execute("plugin.work:talk_and_fail")


def test_unexpected_success(synapse_executor):
    result = synapse_executor.execute("plugin.work:talk")
    assert result == 3


def test_success(synapse_executor):
    assert synapse_executor.execute("plugin.work:talk") == 2


def test_cause(synapse_executor):
    with pytest.raises(ExecutionError) as caught:
        synapse_executor.execute("plugin.work:chained_from", {"size": 3})
    assert type(caught.value.__cause__).__name__ == "Misfit"
    assert type(caught.value.__cause__.__cause__) is ValueError


def test_silent(synapse_executor):
    synapse_executor.execute("plugin.work:in_a_lambda")
"""

TEST_FILE = "demo/tests/test_it.py"
FILES = {
    "pytest.ini": "[pytest]\n",
    "demo/config.yaml": CONFIG,
    "demo/plugin/__init__.py": "",
    "demo/plugin/data.py": DATA,
    "demo/plugin/work.py": WORK,
    "demo/plugin/broken.py": "class Broken:\n    def execute(self:\n        return 1\n",
    "demo/plugin/needy.py": "import nowhere_to_be_found\n\n\nclass Needy:\n    def execute(self):\n        return 1\n",
    "demo/tests/conftest.py": CONFTEST,
    TEST_FILE: TESTS,
}

# A job takes a second, a task almost nothing: tests that differ only in their frames run in local and task mode.
NOT_AS_JOBS = (
    "test_work[chained_context]",
    "test_work[from_none]",
    "test_work[bare_assert]",
    "test_work[long_statement]",
    "test_work[in_library]",
    "test_work[in_a_lambda]",
    "test_work[made_up_code]",
    "test_work[recursion]",
    "test_compare_lists",
    "test_compare_texts",
    "test_of_the_test_file",
    "test_of_a_conftest",
    "test_run_then_unwrap",
    "test_import_error",
    "test_output_at_default_levels",
    "test_notes",
    "test_syntax_error",
    "test_silent",
    "test_work[group]",
    "test_work[async_action]",
    "test_deep",
    "test_compare_dicts",
    "test_of_a_function",
    "test_cause",
)
# The runtime itself detects these problems; its own frames are hidden.
OF_THE_RUNTIME = ("test_bad_params", "test_syntax_error", "test_import_error", "test_work[unpicklable]")
# In every other style, which pytest applies to the transferred report, all tests run in local and task mode.
# Of actions that are defined where a backend cannot find them: skipped in remote mode.
NOT_REMOTE = (
    *("test_of_the_test_file", "test_of_a_conftest", "test_of_a_function"),
    *("test_compare_lists", "test_compare_dicts", "test_compare_texts"),
)
LEFT_OUT = {"job": NOT_AS_JOBS, "remote": NOT_REMOTE}
ONE_TEST = "test_work[chained_from]"
STYLES = ("--tb=long", "--tb=short", "--tb=native")
# With these options only `ONE_TEST` runs. A report is made here, from the same error whether a job or a worker sent it.
ONE_TEST_OPTIONS = ("--tb=line", "--showlocals", "--full-trace")

# Lines that a report must contain in every mode.
SHOWN = {
    "test_deep": [
        '>       return Loader().load(params["size"])',
        "demo/plugin/work.py:28: in load",
        "    return data.check(size=size)",
        "        # or two.",
        '>           raise ValueError(f"size {size} is too large")',
        "E           ValueError: size 3 is too large",
        "demo/plugin/data.py:5: ValueError",
        "E       synapse_runtime.errors.ExecutionError: deep failed: ValueError: size 3 is too large",
    ],
    "test_work[chained_from]": [
        "E           ValueError: size 3 is too large",
        "The above exception was the direct cause of the following exception:",
        '>           raise Misfit("chained", size=params["size"]) from error',
        "E           plugin.work.Misfit: a misfit of size 3",
    ],
    "test_work[chained_context]": [
        "During handling of the above exception, another exception occurred:",
        "E           KeyError: 'nothing'",
    ],
    "test_work[from_none]": ["E           plugin.work.Misfit: a misfit of size 1"],
    "test_notes": ["E       a note", "E       another note", "E       of two lines"],
    "test_work[group]": [
        "  | ExceptionGroup: outer (2 sub-exceptions)",
        "    | ValueError: size 3 is too large",
        "    | ExceptionGroup: inner (2 sub-exceptions)",
        "      | ValueError: invalid literal for int() with base 10: 'x'",
    ],
    "test_work[long_statement]": [">           second=data.check(", "            ),"],
    "test_work[in_library]": [">       return json.loads('{\"a\": 1,}')"],
    "test_work[in_a_lambda]": ['E   TypeError: can only concatenate str (not "int") to str'],
    "test_work[made_up_code]": ["E       KeyError: 'made up'"],
    "test_work[recursion]": ["E   RecursionError: maximum recursion depth exceeded"],
    "test_run_then_unwrap": [">       run.unwrap()", "demo/plugin/data.py:5: ValueError"],
    "test_syntax_error": ["E       def execute(self:", "E   SyntaxError: '(' was never closed"],
    "test_import_error": [
        ">   import nowhere_to_be_found",
        "E   ModuleNotFoundError: No module named 'nowhere_to_be_found'",
    ],
    "test_bad_params": ["E         shapes.0.size: Input should be greater than or equal to 1, got 0"],
    "test_work[leave]": [">       sys.exit(3)", "E       SystemExit: 3"],
    "test_work[bare_assert]": ['>       assert size < 2, "too large"', "E       AssertionError: too large"],
    "test_compare_lists": ["E         At index 10 diff: 10 != 0"],
    "test_compare_dicts": ["E         {'b': 2} != {'b': 3}"],
    "test_compare_texts": ["E         - 2", "E         + two"],
    "test_all_output": [
        "printed by the test",
        "printed",
        "complained",
        "DEBUG    plugin.work:work.py:158 logged at DEBUG",
        "ERROR    plugin.work:work.py:158 logged at ERROR",
        "ValueError: size 5 is too large",
        "WARNING  synapse.plugin.work:talk_and_fail:work.py:163 said",
    ],
    "test_output_at_default_levels": ["WARNING  plugin.work:work.py:158 logged at WARNING"],
    "test_unexpected_success": [
        "E       assert 2 == 3",
        "printed by a success",
        "WARNING  plugin.work:work.py:171 logged by a success",
    ],
    "test_silent": ['>   return sorted([3, "x"], key=lambda item: item + 1)'],
    "test_of_the_test_file": ['>       raise Jam(f"at page {pages}")', "E       test_it.Jam: at page 2"],
    "test_of_a_conftest": ['>       assert sizes == params["sizes"]', "E         At index 1 diff: 2 != 3"],
    "test_of_a_function": ['>           assert params["got"] == wanted, "not what was wanted"'],
    "test_work[async_action]": [
        '    return await _later(params["size"])',
        "E           ValueError: size 3 is too large",
    ],
    "test_work[unpicklable]": ["E           TypeError: cannot pickle '_thread.lock' object"],
}


class Sessions:
    """Sessions in the project. They start in the background, a few at a time; a getter waits for its session."""

    def __init__(self, project: Path, env: dict[str, str]) -> None:
        self._project = project
        self._env = env
        self._pool = ThreadPoolExecutor(3)
        self._sessions: dict[tuple[str, ...], Future[Session]] = {}
        for mode in reversed(MODES):
            self._start(*self._usual(mode))
        for option in (*STYLES, *ONE_TEST_OPTIONS):
            for mode in MODES[:-1]:
                self._start(*self._with(mode, option))

    def close(self) -> None:
        """Start no more sessions, and wait for the running ones."""
        self._pool.shutdown(cancel_futures=True)

    def usual(self, mode: str) -> Session:
        """Return the session with `-rA` as its only option."""
        return self._start(*self._usual(mode)).result()

    def with_option(self, mode: str, option: str) -> Session:
        """Return a session with another report style."""
        return self._start(*self._with(mode, option)).result()

    def last_failed(self, mode: str) -> Session:
        """Return a session that reruns the failures of the usual one, up to the first that fails again."""
        self.usual(mode)
        return self._start(f"--synapse-mode={mode}", "-x", "--lf", "--tb=no", "-rA", *_memory(mode)).result()

    def _usual(self, mode: str) -> list[str]:
        deselected = [f"--deselect={TEST_FILE}::{test}" for test in LEFT_OUT.get(mode, ())]
        return [f"--synapse-mode={mode}", "-rA", *deselected, *_memory(mode)]

    def _with(self, mode: str, option: str) -> list[str]:
        tests = [f"{TEST_FILE}::{ONE_TEST}"] if option in ONE_TEST_OPTIONS else []
        return [f"--synapse-mode={mode}", option, "-pno:cacheprovider", *tests]

    def _start(self, *arguments: str) -> Future[Session]:
        if arguments not in self._sessions:
            self._sessions[arguments] = self._pool.submit(run_pytest, self._project, *arguments, env=self._env)
        return self._sessions[arguments]


def _memory(mode: str) -> list[str]:
    return ["-o", f"cache_dir=.cache-{mode}"]


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory, reached: dict[str, str]) -> Iterator[Sessions]:
    project = write(tmp_path_factory.mktemp("reports"), FILES)
    with contextlib.closing(Sessions(project, reached)) as started:
        yield started


def everywhere(*tests: str) -> pytest.MarkDecorator:
    """Parametrize a test with these tests of the project, in each mode."""
    return pytest.mark.parametrize(
        ("test", "mode"),
        [
            pytest.param(test, mode, id=f"{_short(test)}-{mode}")
            for test in tests
            for mode in MODES
            if test not in LEFT_OUT.get(mode, ())
        ],
    )


in_each_mode = pytest.mark.parametrize("mode", MODES)
not_as_jobs = pytest.mark.parametrize("mode", MODES[:-1])


def _short(test: str) -> str:
    return test.removeprefix("test_work[").removeprefix("test_").removesuffix("]")


def assert_same(local: str, there: str) -> None:
    """Fail with the differing lines if two reports differ."""
    differing = difflib.unified_diff(
        comparable(local).splitlines(), comparable(there).splitlines(), "local", "there", n=2, lineterm=""
    )
    if text := "\n".join(differing):
        pytest.fail(text, pytrace=False)


def missing(lines: list[str], report: str) -> list[str]:
    """Return the lines that are missing in a report, ignoring indentation."""
    there = {" ".join(line.split()) for line in report.splitlines()}
    return [line for line in lines if " ".join(line.split()) not in there]


def check(sessions: Sessions, test: str, mode: str) -> None:
    """Check that a report contains the required lines and is the same as in local mode."""
    report = sessions.usual(mode).reports()[test]
    assert missing(SHOWN[test], report) == []
    assert_same(sessions.usual("local").reports()[test], report)


@everywhere("test_bad_params")
def test_03_report_of_bad_params_is_the_same(sessions, test, mode):
    check(sessions, test, mode)


@everywhere(
    "test_deep",
    "test_work[chained_from]",
    "test_work[chained_context]",
    "test_work[from_none]",
    "test_notes",
    "test_work[group]",
    "test_work[long_statement]",
    "test_work[in_library]",
    "test_work[in_a_lambda]",
    "test_work[made_up_code]",
    "test_work[recursion]",
    "test_run_then_unwrap",
    "test_syntax_error",
    "test_import_error",
)
def test_04_report_of_a_failure_is_the_same(sessions, test, mode):
    check(sessions, test, mode)


@everywhere("test_work[leave]")
def test_06_report_of_an_exit_is_the_same(sessions, test, mode):
    check(sessions, test, mode)


@everywhere("test_work[bare_assert]", "test_compare_lists", "test_compare_dicts", "test_compare_texts")
def test_07_report_of_an_assert_is_the_same(sessions, test, mode):
    check(sessions, test, mode)


@everywhere("test_all_output", "test_output_at_default_levels", "test_unexpected_success", "test_silent")
def test_09_captured_output_in_a_report_is_the_same(sessions, test, mode):
    check(sessions, test, mode)


@in_each_mode
def test_09_output_is_in_the_report_of_its_own_test_only(sessions, mode):
    session = sessions.usual(mode)
    reports = session.reports() | session.reports("PASSES")
    talkative = {"test_all_output", "test_output_at_default_levels"} & reports.keys()
    successful = {"test_success", "test_unexpected_success"}
    assert {test for test, report in reports.items() if "Captured" in report} == talkative | successful
    assert {test for test, report in reports.items() if "complained" in report.splitlines()} == talkative
    assert {test for test, report in reports.items() if "printed by a success" in report} == successful


@in_each_mode
def test_09_warnings_of_actions_are_in_the_warnings_summary(sessions, mode):
    warned = "demo/plugin/work.py:164: UserWarning: warned"
    assert any(line.strip().endswith(warned) for line in sessions.usual(mode).section("warnings summary"))
    if mode not in LEFT_OUT:  # otherwise fewer tests run
        assert sessions.usual(mode).section("warnings summary") == sessions.usual("local").section("warnings summary")


@everywhere("test_of_the_test_file", "test_of_a_conftest", "test_of_a_function")
def test_13_report_of_an_action_in_a_test_is_the_same(sessions, test, mode):
    check(sessions, test, mode)


@everywhere("test_work[async_action]")
def test_14_report_of_an_async_action_is_the_same(sessions, test, mode):
    check(sessions, test, mode)


@not_as_jobs
def test_14_report_of_an_async_action_contains_no_internal_exception(sessions, mode):
    report = sessions.usual(mode).reports()["test_work[async_action]"]
    assert "During handling of the above exception" not in report


@everywhere("test_work[unpicklable]")
def test_17_report_of_a_result_that_cannot_be_pickled_is_the_same(sessions, test, mode):
    check(sessions, test, mode)


@pytest.mark.parametrize(
    "test", ["test_bad_params", "test_syntax_error", "test_import_error", "test_work[unpicklable]"]
)
@not_as_jobs
def test_04_report_contains_no_frame_of_the_runtime(sessions, test, mode):
    lines = sessions.usual(mode).reports()[test].splitlines()
    assert [line for line in lines if "synapse_runtime/" in line] == []


@not_as_jobs
def test_04_exceptions_chain_for_pytest_raises(sessions, mode):
    assert sessions.usual(mode).summary()["test_cause"].startswith("PASSED")


@in_each_mode
def test_04_short_summary_is_the_same(sessions, mode):
    local = sessions.usual("local").summary()
    there = sessions.usual(mode).summary()
    assert len(there) == len(local) - len(LEFT_OUT.get(mode, ()))
    assert_same("\n".join(local[test] for test in there), "\n".join(there.values()))


@not_as_jobs
@pytest.mark.parametrize("style", STYLES)
def test_04_report_is_the_same_in_each_style(sessions, style, mode):
    local = sessions.with_option("local", style).reports()
    there = sessions.with_option(mode, style).reports()
    assert "a misfit of size 3" in there[ONE_TEST]
    assert_same("\n".join(local[test] for test in there), "\n".join(there.values()))


@not_as_jobs
def test_04_one_line_report_is_the_same(sessions, mode):
    local = sessions.with_option("local", "--tb=line").section("FAILURES")
    there = sessions.with_option(mode, "--tb=line").section("FAILURES")
    assert any("a misfit of size 3" in line for line in there)
    assert_same("\n".join(local), "\n".join(there))


@not_as_jobs
def test_04_report_with_showlocals_contains_the_action_and_nothing_made_up(sessions, mode):
    local = comparable(sessions.with_option("local", "--showlocals").reports()[ONE_TEST])
    there = comparable(sessions.with_option(mode, "--showlocals").reports()[ONE_TEST])
    assert missing(SHOWN[ONE_TEST], there) == []
    assert missing(there.splitlines(), local) == []


@not_as_jobs
def test_04_report_with_full_trace_contains_the_action(sessions, mode):
    assert missing(SHOWN[ONE_TEST], sessions.with_option(mode, "--full-trace").reports()[ONE_TEST]) == []


@not_as_jobs
def test_04_only_the_first_of_the_last_failed_runs_with_x_and_lf(sessions, mode):
    failed = [test for test, line in sessions.usual(mode).summary().items() if line.startswith("FAILED")]
    again = sessions.last_failed(mode)
    assert list(again.summary()) == failed[:1]
    assert f"rerun previous {len(failed)} failures" in again.output
    assert again.section("FAILURES") == []

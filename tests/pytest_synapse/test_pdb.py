"""`--pdb` on an action that ran in a worker: pdb stops at the call and shows how to debug the action itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pexpect
import pytest

from tests.cli.processes import Synapse, synapse_in, terminal
from tests.parity.sessions import write
from tests.patience import patience
from tests.pytest_synapse.conftest import ALONE

WORK = """\
import os
import time

from synapse_runtime.decorators import action


@action
def fail(params, context):
    inside = params["number"]
    raise ValueError(inside)  # this line fails


@action
def die(params, context):
    os._exit(4)


@action
def nap(params, context):
    time.sleep(30)


@action
def count(params, context):
    return (number for number in range(3))
"""

TESTS = """\
import pytest


def run_it(executor, number):
    mine = number
    return executor.execute("fail", {"number": mine})  # the call


@pytest.mark.parametrize("number", [7])
def test_helper(synapse_executor, number):
    run_it(synapse_executor, number)


def test_unwrap(synapse_executor):
    run = synapse_executor.run("fail", {"number": 8})
    run.unwrap()  # the result is asked for here


class TestPinned:
    @pytest.mark.synapse(mode="task")
    def test_to_task(self, synapse_executor):
        synapse_executor.execute("fail", {"number": 9})

    @pytest.mark.synapse(mode=("local", "job"))
    @pytest.mark.parametrize("text", ["a-job-b"])
    def test_to_several(self, synapse_executor, text):
        synapse_executor.execute("fail", {"number": 10})


@pytest.mark.parametrize("synapse_mode", ["task"], indirect=True, ids=["there"])
def test_own_modes(synapse_executor):
    synapse_executor.execute("fail", {"number": 11})


class TestOwnMode:
    @pytest.fixture
    def synapse_mode(self):
        return "job"

    def test_fixture(self, synapse_executor):
        synapse_executor.execute("fail", {"number": 12})


def test_dies(synapse_executor):
    synapse_executor.execute("die")


@pytest.mark.synapse(timeout=0.5)
def test_is_stuck(synapse_executor):
    synapse_executor.execute("nap")


def test_bad_result(synapse_executor):
    synapse_executor.execute("count")


@pytest.fixture
def made(synapse_executor):
    return synapse_executor.execute("fail", {"number": 13})  # in a fixture


def test_of_a_fixture(made):
    pass


def test_of_the_test_itself(synapse_executor):
    assert synapse_executor.mode == "none"


def test_unknown(synapse_executor):
    synapse_executor.execute("nothing")
"""

CONFIG = """\
actions:
  fail: {entrypoint: "plugin.work:fail"}
  die: {entrypoint: "plugin.work:die"}
  nap: {entrypoint: "plugin.work:nap"}
  count: {entrypoint: "plugin.work:count"}
"""

OWN_DEBUGGER = """\
import pdb


class Own(pdb.Pdb):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.prompt = "(Own) "
"""

FILES = {
    "pytest.ini": "[pytest]\n",
    "demo/config.yaml": CONFIG,
    "demo/plugin/__init__.py": "",
    "demo/plugin/work.py": WORK,
    "demo/tests/test_it.py": TESTS,
    # A custom debugger for --pdbcls.
    "own_debugger.py": OWN_DEBUGGER,
}

IN_WORKER = "pdb cannot attach to a worker, so it stops at the call in your test."
RUN_LOCALLY = "To stop inside the action, run the test in local mode:"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Stop:
    """A stop of the debugger on a failure.

    Attributes:
        shown: The output before the prompt.
        names: The local variables where it stopped.
    """

    shown: str
    names: str

    @property
    def line(self) -> str:
        """The line at which it stopped."""
        return self.shown.rstrip().rpartition("\n-> ")[2]

    @property
    def advice(self) -> str:
        """The section on how to debug the action."""
        title = self.shown.index("how to debug the action")
        return self.shown[self.shown.index("\n", title) + 1 : self.shown.index("\n>>>", title)]


def debugged(synapse: Synapse, *arguments: str, directory: str = ".", prompt: str = "(Pdb) ") -> dict[str, Stop]:
    """Run a session with `--pdb` on a terminal, continuing after each failure; return the stop of each test."""
    found: dict[str, Stop] = {}
    command = [sys.executable, "-m", "pytest", "-pno:cacheprovider", *ALONE.split(), "--pdb", *arguments]
    with terminal(command, synapse.cwd / directory, synapse.environment(PYTHONPATH=str(synapse.cwd))) as child:
        child.timeout = patience(60)

        def shown() -> str:
            return _COLOURS.sub("", str(child.before)).replace("\r\n", "\n")

        def ask(command: str) -> str:
            child.sendline(command)
            child.expect_exact(prompt)
            return shown().partition("\n")[2].strip()

        while child.expect_exact([prompt, pexpect.EOF]) == 0:
            before = shown()
            names = ask("print(*locals())")
            test = ask("import os; print(os.environ['PYTEST_CURRENT_TEST'])")
            found[test.partition("::")[2].partition(" (")[0]] = Stop(before, names)
            child.sendline("c")
    return found


@pytest.fixture(scope="module")
def synapse(tmp_path_factory: pytest.TempPathFactory, reached: dict[str, str]) -> Iterator[Synapse]:
    """The project; its sessions have a cluster for task and job mode."""
    with synapse_in(write(tmp_path_factory.mktemp("pdb"), FILES), **reached) as command:
        yield command


@pytest.fixture(scope="module")
def in_task(synapse: Synapse) -> dict[str, Stop]:
    return debugged(synapse, "--synapse-mode=task")


def in_local_mode(command: str) -> str:
    return f"{IN_WORKER}\n{RUN_LOCALLY}\n    {command}"


def after_a_change(what: str, mode: str, command: str) -> str:
    return (
        f"{IN_WORKER}\nTo stop inside the action, change {mode!r} to 'local' in the test's {what}, which overrides "
        f"--synapse-mode, and run:\n    {command}"
    )


def test_pdb_stops_at_the_call_and_shows_the_workers_traceback(in_task):
    stop = in_task["test_helper[7]"]
    assert re.search(r"\n> +raise ValueError\(inside\)  # this line fails[\s^]+E +ValueError: 7\n", stop.shown)
    assert "demo/plugin/work.py:10: ValueError" in stop.shown
    assert stop.line == 'return executor.execute("fail", {"number": mine})  # the call'
    assert stop.names == "executor number mine"


def test_pdb_stops_where_the_result_of_a_run_is_requested(in_task):
    stop = in_task["test_unwrap"]
    assert re.search(r"\n> +raise ValueError\(inside\)  # this line fails[\s^]+E +ValueError: 8\n", stop.shown)
    assert stop.line == "run.unwrap()  # the result is asked for here"
    assert stop.names == "synapse_executor run"


def test_pdb_stops_in_the_fixture_that_made_the_call(in_task):
    stop = in_task["test_of_a_fixture"]
    assert stop.line == 'return synapse_executor.execute("fail", {"number": 13})  # in a fixture'
    assert stop.advice == in_local_mode("pytest demo/tests/test_it.py::test_of_a_fixture --synapse-mode=local --pdb")


@pytest.mark.parametrize(
    ("test", "advice"),
    [
        (
            "test_helper[7]",
            in_local_mode("pytest 'demo/tests/test_it.py::test_helper[7]' --synapse-mode=local --pdb"),
        ),
        ("test_unwrap", in_local_mode("pytest demo/tests/test_it.py::test_unwrap --synapse-mode=local --pdb")),
        (
            "TestPinned::test_to_task",
            after_a_change("marker", "task", "pytest demo/tests/test_it.py::TestPinned::test_to_task --pdb"),
        ),
        (
            "TestPinned::test_to_several[a-job-b-job]",
            in_local_mode("pytest 'demo/tests/test_it.py::TestPinned::test_to_several[a-job-b-local]' --pdb"),
        ),
        (
            "test_own_modes[there]",
            after_a_change("parametrize", "task", "pytest demo/tests/test_it.py::test_own_modes --pdb"),
        ),
        (
            "TestOwnMode::test_fixture",
            after_a_change(
                "fixture synapse_mode", "job", "pytest demo/tests/test_it.py::TestOwnMode::test_fixture --pdb"
            ),
        ),
        (
            "test_dies",
            "The worker crashed. In local mode the crash may end pytest itself.\n"
            f"{RUN_LOCALLY}\n    pytest demo/tests/test_it.py::test_dies --synapse-mode=local --pdb",
        ),
        (
            "test_is_stuck",
            "The action timed out; its stack is shown above. In local mode it may get stuck elsewhere, or not at all.\n"
            f"{RUN_LOCALLY}\n    pytest demo/tests/test_it.py::test_is_stuck --synapse-mode=local --pdb",
        ),
    ],
)
def test_report_shows_how_to_debug_the_action(in_task, test, advice):
    assert in_task[test].advice == advice


@pytest.mark.parametrize("test", ["test_dies", "test_is_stuck", "test_bad_result", "test_unknown"])
def test_pdb_stops_at_the_call_for_any_error(in_task, test):
    assert in_task[test].line.startswith('synapse_executor.execute("')


@pytest.mark.parametrize("test", ["test_of_the_test_itself", "test_unknown"])
def test_no_section_is_added_if_no_action_failed(in_task, test):
    assert "how to debug the action" not in in_task[test].shown


def test_pdb_stops_in_the_action_in_local_mode(in_task):
    stop = in_task["TestPinned::test_to_several[a-job-b-local]"]
    assert stop.line == "raise ValueError(inside)  # this line fails"
    assert stop.names == "params context inside"
    assert "how to debug the action" not in stop.shown


def test_pdb_stops_at_the_call_in_local_mode_if_the_action_did_not_raise(synapse):
    stops = debugged(synapse, "--synapse-mode=local", "-k", "unknown or bad_result")
    assert stops["test_unknown"].line == 'synapse_executor.execute("nothing")'
    assert stops["test_bad_result"].line == 'synapse_executor.execute("count")'


def test_custom_debugger_without_capturing_stops_at_the_call_in_job_mode(synapse):
    stops = debugged(
        synapse,
        *("--synapse-mode=local,job", "-s", "--pdbcls=own_debugger:Own", "-k", "job and (helper or unwrap)"),
        directory="demo",
        prompt="(Own) ",
    )
    assert stops["test_helper[7-job]"].line == 'return executor.execute("fail", {"number": mine})  # the call'
    assert stops["test_unwrap[job]"].line == "run.unwrap()  # the result is asked for here"
    assert [each.advice for each in stops.values()] == [
        in_local_mode("pytest 'tests/test_it.py::test_helper[7]' --synapse-mode=local --pdb"),
        in_local_mode("pytest tests/test_it.py::test_unwrap --synapse-mode=local --pdb"),
    ]

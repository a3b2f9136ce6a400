"""`--pdb` where the action ran in a worker: it opens at the call, and says how to debug the action itself."""

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
    # A debugger of one's own, for --pdbcls.
    "own_debugger.py": OWN_DEBUGGER,
}

IN_WORKER = "No debugger reaches a worker: here it opens at the call, locally in the action."
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Opened:
    """A debugger that has opened on a failure.

    Attributes:
        shown: What was shown before.
        names: Names of variables where it has opened.
    """

    shown: str
    names: str

    @property
    def line(self) -> str:
        """The line that it has opened at."""
        return self.shown.rstrip().rpartition("\n-> ")[2]

    @property
    def advice(self) -> str:
        """What is said on how to debug the action."""
        title = self.shown.index("to debug the action")
        return self.shown[self.shown.index("\n", title) + 1 : self.shown.index("\n>>>", title)]


def debugged(synapse: Synapse, *arguments: str, directory: str = ".", prompt: str = "(Pdb) ") -> dict[str, Opened]:
    """Run a session with `--pdb` on a terminal and go on after each failure; return by test where it has opened."""
    found: dict[str, Opened] = {}
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
            found[test.partition("::")[2].partition(" (")[0]] = Opened(before, names)
            child.sendline("c")
    return found


@pytest.fixture(scope="module")
def synapse(tmp_path_factory: pytest.TempPathFactory, reached: dict[str, str]) -> Iterator[Synapse]:
    """The project, in whose sessions task and job mode have a cluster."""
    with synapse_in(write(tmp_path_factory.mktemp("pdb"), FILES), **reached) as command:
        yield command


@pytest.fixture(scope="module")
def in_task(synapse: Synapse) -> dict[str, Opened]:
    return debugged(synapse, "--synapse-mode=task")


def in_local_mode(command: str) -> str:
    return f"{IN_WORKER}\nTo run it in local mode:\n    {command}"


def after_a_change(what: str, mode: str, command: str) -> str:
    return (
        f"{IN_WORKER}\nTo run it in local mode, let its {what} say 'local' in place of {mode!r}, as that wins over "
        f"--synapse-mode; then:\n    {command}"
    )


def test_it_opens_at_the_call_with_the_workers_traceback_shown(in_task):
    opened = in_task["test_helper[7]"]
    assert re.search(r"\n> +raise ValueError\(inside\)  # this line fails[\s^]+E +ValueError: 7\n", opened.shown)
    assert "demo/plugin/work.py:10: ValueError" in opened.shown
    assert opened.line == 'return executor.execute("fail", {"number": mine})  # the call'
    assert opened.names == "executor number mine"


def test_it_opens_where_a_runs_result_is_asked_for(in_task):
    opened = in_task["test_unwrap"]
    assert re.search(r"\n> +raise ValueError\(inside\)  # this line fails[\s^]+E +ValueError: 8\n", opened.shown)
    assert opened.line == "run.unwrap()  # the result is asked for here"
    assert opened.names == "synapse_executor run"


def test_it_opens_in_a_fixture_that_made_the_call(in_task):
    opened = in_task["test_of_a_fixture"]
    assert opened.line == 'return synapse_executor.execute("fail", {"number": 13})  # in a fixture'
    assert opened.advice == in_local_mode("pytest demo/tests/test_it.py::test_of_a_fixture --synapse-mode=local --pdb")


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
                "own fixture synapse_mode", "job", "pytest demo/tests/test_it.py::TestOwnMode::test_fixture --pdb"
            ),
        ),
        (
            "test_dies",
            "The worker is gone. In local mode pytest itself may end in its place.\n"
            "To run it in local mode:\n    pytest demo/tests/test_it.py::test_dies --synapse-mode=local --pdb",
        ),
        (
            "test_is_stuck",
            "It was stuck as told above. In local mode it may get stuck elsewhere, or not.\n"
            "To run it in local mode:\n    pytest demo/tests/test_it.py::test_is_stuck --synapse-mode=local --pdb",
        ),
    ],
)
def test_it_says_how_to_debug_the_action(in_task, test, advice):
    assert in_task[test].advice == advice


@pytest.mark.parametrize("test", ["test_dies", "test_is_stuck", "test_bad_result", "test_unknown"])
def test_it_opens_at_the_call_whatever_the_error_is(in_task, test):
    assert in_task[test].line.startswith('synapse_executor.execute("')


@pytest.mark.parametrize("test", ["test_of_the_test_itself", "test_unknown"])
def test_nothing_is_said_where_no_action_has_failed(in_task, test):
    assert "to debug the action" not in in_task[test].shown


def test_in_local_mode_it_opens_in_the_action(in_task):
    opened = in_task["TestPinned::test_to_several[a-job-b-local]"]
    assert opened.line == "raise ValueError(inside)  # this line fails"
    assert opened.names == "params context inside"
    assert "to debug the action" not in opened.shown


def test_in_local_mode_what_is_not_the_actions_opens_at_the_call(synapse):
    opened = debugged(synapse, "--synapse-mode=local", "-k", "unknown or bad_result")
    assert opened["test_unknown"].line == 'synapse_executor.execute("nothing")'
    assert opened["test_bad_result"].line == 'synapse_executor.execute("count")'


def test_in_job_mode_too_with_a_debugger_of_ones_own_and_without_capturing(synapse):
    opened = debugged(
        synapse,
        *("--synapse-mode=local,job", "-s", "--pdbcls=own_debugger:Own", "-k", "job and (helper or unwrap)"),
        directory="demo",
        prompt="(Own) ",
    )
    assert opened["test_helper[7-job]"].line == 'return executor.execute("fail", {"number": mine})  # the call'
    assert opened["test_unwrap[job]"].line == "run.unwrap()  # the result is asked for here"
    assert [each.advice for each in opened.values()] == [
        in_local_mode("pytest 'tests/test_it.py::test_helper[7]' --synapse-mode=local --pdb"),
        in_local_mode("pytest tests/test_it.py::test_unwrap --synapse-mode=local --pdb"),
    ]

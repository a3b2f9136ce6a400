"""Rows 28 and 29: how a test ends if its action skips it, or if something fails beside the action."""

from __future__ import annotations

import pytest

from tests.parity.sessions import Session, comparable, run_pytest, write
from tests.parity.test_reports import assert_same

CONFIG = "code: ends\nactions:\n  skip:\n    entrypoint: plugin.ends:skip\n"
ACTIONS = """\
import asyncio
import threading
import unittest
import warnings

import pytest

from synapse_runtime.decorators import action


@action
def skip(params, context):
    context.log("started")
    pytest.skip("no GPU here")


@action
def import_or_skip(params, context):
    pytest.importorskip("nowhere_to_be_found")


@action
def xfail(params, context):
    pytest.xfail("known to fail")


@action
def fail(params, context):
    pytest.fail("not good enough")


@action
def skip_as_unittest(params, context):
    raise unittest.SkipTest("not on this machine")


def divide():
    return 1 / 0


@action
def fail_in_a_thread(params, context):
    thread = threading.Thread(target=divide, name="divider")
    thread.start()
    thread.join()
    return "done"


class Failing:
    def __del__(self):
        raise ValueError("in a finalizer")

    def __repr__(self):
        return "<a Failing>"


@action
def fail_in_a_finalizer(params, context):
    Failing()
    return "done"


@action
def await_nothing(params, context):
    asyncio.sleep(0)
    return "done"


@action
def all_in_the_background(params, context):
    return [part(params, context) for part in (fail_in_a_thread, fail_in_a_finalizer, await_nothing)]


@action
def warn_once(params, context):
    warnings.warn("old", UserWarning)
"""
TESTS = """\
import logging
import unittest
import warnings

import pytest

from pytest_synapse import SynapseTestCase
from synapse_runtime.errors import ExecutionError


def test_skip(synapse_executor):
    synapse_executor.run("skip")


@pytest.mark.parametrize("name", ["import_or_skip", "xfail", "fail", "skip_as_unittest"])
def test_outcome(synapse_executor, name):
    synapse_executor.execute(f"plugin.ends:{name}")


def test_skip_at_import(synapse_executor):
    synapse_executor.execute("plugin.needs_a_library:Any")


class TestCase(SynapseTestCase):
    def test_skip(self):
        self.synapse_executor.execute("plugin.ends:skip_as_unittest")


@pytest.mark.parametrize("name", ["fail_in_a_thread", "fail_in_a_finalizer", "await_nothing"])
def test_background(synapse_executor, name):
    assert synapse_executor.execute(f"plugin.ends:{name}") == "done"


def test_all_in_the_background(synapse_executor):
    assert synapse_executor.execute("plugin.ends:all_in_the_background") == ["done"] * 3


def test_warnings_are_shown_once(synapse_executor):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(2):
            synapse_executor.execute("plugin.ends:warn_once")
    assert [str(warning.message) for warning in seen] == ["old"]
"""
PROJECT = {
    "pytest.ini": "[pytest]\nfilterwarnings = error\n",
    "config.yaml": CONFIG,
    "plugin/__init__.py": "",
    "plugin/ends.py": ACTIONS,
    "plugin/needs_a_library.py": "import pytest\n\npytest.importorskip('nowhere_to_be_found')\n",
    "test_it.py": TESTS,
}
OUTCOMES = {
    "test_skip": "SKIPPED [1] plugin/ends.py:14: no GPU here",
    "test_outcome[import_or_skip]": "could not import 'nowhere_to_be_found'",
    "test_outcome[xfail]": "XFAIL test_it.py::test_outcome[xfail] - known to fail",
    "test_outcome[fail]": "FAILED test_it.py::test_outcome[fail] - Failed: not good enough",
    "test_outcome[skip_as_unittest]": "not on this machine",
    "test_background[fail_in_a_thread]": "PytestUnhandledThreadExceptionWarning: Exception in thread divider",
    "test_background[fail_in_a_finalizer]": "ValueError: in a finalizer",
    "test_background[await_nothing]": "coroutine 'sleep' was never awaited",
}
# As jobs run what is specific to them: one skip, and all that fails beside an action.
AS_JOBS = ("test_skip", "test_all_in_the_background")


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory, reached: dict[str, str]) -> dict[str, Session]:
    project = write(tmp_path_factory.mktemp("outcomes"), PROJECT)
    as_jobs = [f"test_it.py::{test}" for test in AS_JOBS]
    return {
        mode: run_pytest(project, f"--synapse-mode={mode}", "-rA", "-pno:cacheprovider", *tests, env=reached)
        for mode, tests in {"local": [], "task": [], "remote": [], "job": as_jobs}.items()
    }


def summary(session: Session) -> list[str]:
    return sorted(comparable(line) for line in session.section("short test summary info") if line)


@pytest.mark.parametrize("mode", ["local", "task", "remote"])
def test_29_outcome_that_an_action_raises_is_that_of_its_test(sessions, mode):
    text = "\n".join(summary(sessions[mode]))
    assert [outcome for outcome in OUTCOMES.values() if outcome not in sessions[mode].output] == []
    assert "PASSED test_it.py::test_warnings_are_shown_once" in text
    assert text == "\n".join(summary(sessions["local"]))


@pytest.mark.parametrize("mode", ["local", "task", "job", "remote"])
def test_28_what_fails_beside_an_action_is_reported_as_here(sessions, mode):
    report = sessions[mode].reports()["test_all_in_the_background"]
    assert "multiple unraisable exception warnings" in report or "PytestUnraisableExceptionWarning" in report
    assert "PytestUnhandledThreadExceptionWarning" in sessions[mode].output
    assert "ZeroDivisionError: division by zero" in sessions[mode].output
    assert_same(sessions["local"].reports()["test_all_in_the_background"], report)


@pytest.mark.parametrize("mode", ["job"])
def test_29_skip_in_a_job_is_a_skip(sessions, mode):
    assert OUTCOMES["test_skip"] in sessions[mode].output

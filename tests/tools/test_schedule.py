"""Tests for scheduling the suite's own test files over the processes of pytest-xdist."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from tests.conftest import pytest_xdist_make_scheduler


def test_independent_tests_are_scheduled_one_by_one_and_others_by_file(pytestconfig: pytest.Config) -> None:
    assert callable(LoadFileScheduling._split_scope)

    class Config:
        def getoption(self, name: str) -> object:
            return "loadfile" if name == "dist" else pytestconfig.getoption(name)

        def getvalue(self, name: str) -> object:
            return ["popen"] if name == "tx" else pytestconfig.getoption(name)

    scheduler = pytest_xdist_make_scheduler(Config(), Producer("test"))  # type: ignore[arg-type]
    assert isinstance(scheduler, LoadFileScheduling)
    alone, shared = "tests/ray/test_cluster.py::test_one", "tests/ray/test_task.py::test_one"
    assert scheduler._split_scope(alone) == alone
    assert scheduler._split_scope(shared) == "tests/ray/test_task.py"

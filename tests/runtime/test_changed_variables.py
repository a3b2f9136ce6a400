"""The environment of a session of tests: what has changed since it began, and what outlives a test."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_runtime.core import changed_variables
from synapse_runtime.core.changed_variables import inherited_environment, start_session
from synapse_runtime.core.process_state import variables_changed
from synapse_runtime.executors.worker import hidden_values


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment when a session began that lasts for the test."""
    monkeypatch.setattr(changed_variables, "_sessions", [])
    monkeypatch.setenv("KEPT", "kept")
    monkeypatch.setenv("CHANGED", "before")
    variables = dict(os.environ)
    end = start_session(variables)
    yield variables
    end()


def test_added_changed_and_deleted_variables(before: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert changed_variables.changed_variables() == ()
    monkeypatch.setenv("ADDED", "1")
    monkeypatch.setenv("CHANGED", "now")
    monkeypatch.delenv("KEPT")
    monkeypatch.setenv("PYTEST_OF_TOOLS", "1")
    monkeypatch.setenv("RAY_OF_TOOLS", "1")
    assert changed_variables.changed_variables() == (("ADDED", "1"), ("CHANGED", "now"), ("KEPT", None))
    monkeypatch.setenv("CHANGED", "before")
    assert dict(changed_variables.changed_variables()) == {"ADDED": "1", "KEPT": None}


def test_what_the_process_that_started_this_one_has_changed_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changed_variables, "_sessions", [])
    monkeypatch.setenv("OF_PARENT", "1")
    start_session(dict(os.environ), ["OF_PARENT", "DELETED_BY_PARENT"])
    assert changed_variables.changed_variables() == (("DELETED_BY_PARENT", None), ("OF_PARENT", "1"))


def test_process_that_outlives_a_test_gets_the_environment_of_the_session(
    before: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADDED", "1")
    monkeypatch.setenv("CHANGED", "now")
    monkeypatch.delenv("KEPT")
    found = inherited_environment()
    assert {name: found.get(name) for name in ("ADDED", "CHANGED", "KEPT")} == {
        "ADDED": None,
        "CHANGED": "before",
        "KEPT": "kept",
    }


def test_process_that_outlives_a_test_gets_what_only_a_new_process_reads(
    before: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    found = inherited_environment()
    assert (found["OMP_NUM_THREADS"], found["PYTHONPATH"]) == ("3", "elsewhere")


def test_without_a_session_nothing_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changed_variables, "_sessions", [])
    assert changed_variables.changed_variables() == ()
    assert inherited_environment() == dict(os.environ)


def test_changes_hold_during_the_block_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELETED", "before")
    monkeypatch.setattr(tempfile, "tempdir", "/chosen/by/the/plugin")
    before = dict(os.environ)
    with variables_changed({"TMPDIR": str(tmp_path), "DELETED": None}):
        assert tempfile.gettempdir() == str(tmp_path)
        assert "DELETED" not in os.environ
    assert dict(os.environ) == before
    assert tempfile.tempdir == "/chosen/by/the/plugin"


def test_secrets_among_them_are_hidden_in_what_a_worker_reports() -> None:
    hidden = hidden_values(None, (), (("API_TOKEN", "sesame-open"), ("LEVEL", "debug-level"), ("GONE", None)))
    assert hidden.of_secrets().out_of("sesame-open, debug-level") == "<API_TOKEN>, debug-level"

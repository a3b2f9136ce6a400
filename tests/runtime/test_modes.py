"""The definition of the modes, which the runner, the command, the marker and the docs read."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import get_args

import pytest

from pytest_synapse.modes import parse_modes
from synapse_runtime import modes
from synapse_runtime.cli.modes import checked_mode
from synapse_runtime.enums import ExecutionMode
from synapse_runtime.executors.base import Executor
from synapse_runtime.modes import MODES, Mode, ModeName, UnknownModeError, all_modes, find_mode, modes_requiring


def test_type_hint_and_enum_have_the_names_of_the_definition():
    assert get_args(ModeName) == tuple(MODES)
    assert [mode.value for mode in ExecutionMode] == list(MODES)
    assert all_modes() == tuple(MODES)


def test_all_leaves_out_a_mode_whose_optional_packages_are_missing(monkeypatch):
    added = Mode("elsewhere", "on the moon", "synapse_runtime.executors.local:LocalExecutor", in_all_with=("no_such",))
    monkeypatch.setitem(modes.MODES, "elsewhere", added)
    assert all_modes() == ("local", "task", "job", "remote")


@pytest.mark.parametrize("name", MODES)
def test_each_mode_has_an_executor_that_knows_it(name):
    executor = find_mode(name).executor_class()
    assert issubclass(executor, Executor)
    assert executor.mode == name


def test_only_local_mode_runs_in_the_process_of_the_caller():
    assert [name for name, mode in MODES.items() if mode.in_process] == ["local"]


def test_task_and_job_mode_require_ray_and_a_cluster(monkeypatch):
    assert modes_requiring("ray") == modes_requiring("cluster") == ["task", "job"]
    added = Mode("elsewhere", "on the moon", "synapse_runtime.executors.local:LocalExecutor", requires=("backend",))
    monkeypatch.setitem(modes.MODES, "elsewhere", added)
    assert modes_requiring("ray") == ["task", "job"]
    assert modes_requiring("backend") == ["remote", "elsewhere"]


def test_an_alias_means_its_mode_for_runner_pytest_and_command():
    assert find_mode("jobs-api") is MODES["job"]
    assert parse_modes("local,jobs-api,job", "--synapse-mode") == ("local", "job")
    assert checked_mode(" Jobs-API ") == "job"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("taks", "unknown mode 'taks', did you mean 'task'? Choose from local, task, job, remote"),
        ("jobs-ap", "unknown mode 'jobs-ap', did you mean 'jobs-api'? Choose from local, task, job, remote"),
        ("elsewhere", "unknown mode 'elsewhere'. Choose from local, task, job, remote"),
        ("", "unknown mode ''. Choose from local, task, job, remote"),
    ],
)
def test_an_unknown_mode_is_an_error_that_lists_all(word, said):
    with pytest.raises(UnknownModeError) as caught:
        find_mode(word)
    assert str(caught.value) == said


def test_a_mode_that_is_added_is_found_and_listed(monkeypatch):
    added = Mode("elsewhere", "on the moon", "synapse_runtime.executors.local:LocalExecutor", aliases=("moon",))
    monkeypatch.setitem(modes.MODES, "elsewhere", added)
    assert find_mode("moon").name == "elsewhere"
    assert dataclasses.replace(added, transfer="reference").in_process
    with pytest.raises(UnknownModeError, match="Choose from local, task, job, remote, elsewhere"):
        find_mode("nowhere")


def test_importing_the_modes_imports_the_standard_library_only():
    code = (
        "import sys; import synapse_runtime; before = {*sys.modules}; import synapse_runtime.modes; "
        "print(*sorted({name.partition('.')[0] for name in {*sys.modules} - before} - {*sys.stdlib_module_names}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["synapse_runtime"]

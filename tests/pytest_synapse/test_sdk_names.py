"""A plugin written for `synapse-sdk`, in sessions where synapse-sdk is not installed."""

from __future__ import annotations

import pytest

from tests.pytest_synapse.conftest import Project

CONFIG = """\
code: theirs
category: neural_net
actions:
  train: {entrypoint: "plugin.train:TrainAction"}
"""
TRAIN = """\
from synapse_sdk.plugins.action import BaseAction
from synapse_sdk.plugins.models.logger import LogLevel
from pydantic import BaseModel


class TrainParams(BaseModel):
    epochs: int = 1


class TrainAction(BaseAction[TrainParams]):
    def execute(self):
        self.ctx.log_message({"en": "{n} epochs", "ko": "{n} 에폭"}, LogLevel.SUCCESS, n=self.params.epochs)
        return [self.action_name, self.category, self.params.epochs]
"""
TEST = """
from synapse_sdk.plugins.errors import ValidationError
from plugin.train import TrainAction


@pytest.mark.parametrize("action", ["train", TrainAction])
def test_runs(synapse_executor, action):
    run = synapse_executor.run(action, {"epochs": 2})
    name = "train"
    assert run.unwrap() == [name, "neural_net", 2]
    (event,) = run.events
    assert (event.name, event.level) == ("2 epochs", "success")
    with pytest.raises(ValidationError):
        synapse_executor.execute(action, {"epochs": "x"})
"""


@pytest.fixture
def theirs(project: Project) -> Project:
    project.write("theirs/config.yaml", CONFIG)
    project.write("theirs/plugin/__init__.py", "")
    project.write("theirs/plugin/train.py", TRAIN)
    project.test(TEST, "theirs/tests/test_train.py")
    return project


@pytest.mark.parametrize("mode", ["local", "task"])
def test_sdk_plugin_runs_unchanged(theirs, mode, reached, monkeypatch):
    for name, value in reached.items():
        monkeypatch.setenv(name, value)
    theirs.pytest(f"--synapse-mode={mode}").assert_outcomes(passed=2)


def test_ini_option_turns_the_sdk_names_off(theirs):
    theirs.ini("synapse_sdk_names = false")
    result = theirs.pytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E   ModuleNotFoundError: No module named 'synapse_sdk'"])


def test_sdk_names_turned_off_are_off_in_workers_too(theirs, reached, monkeypatch):
    for name, value in reached.items():
        monkeypatch.setenv(name, value)
    theirs.write(
        "theirs/plugin/train.py", "def later(params, context):\n    import synapse_sdk\nlater._is_action = True\n"
    )
    theirs.test(
        """
        def test_names(synapse_executor):
            with pytest.raises(Exception, match="No module named 'synapse_sdk'"):
                synapse_executor.execute("plugin.train:later")
        """,
        "theirs/tests/test_train.py",
    )
    theirs.pytest("--synapse-mode=task").assert_outcomes(failed=1)
    theirs.ini("synapse_sdk_names = false")
    theirs.pytest("--synapse-mode=task").assert_outcomes(passed=1)


def test_sdk_names_are_missing_without_our_plugin(theirs):
    result = theirs.pytest("-p", "no:synapse")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E   ModuleNotFoundError: No module named *"])


def test_unavailable_sdk_module_is_named_in_the_report(theirs):
    theirs.write("theirs/plugin/train.py", "from synapse_sdk.plugins.steps import BaseStep\n")
    result = theirs.pytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["E   ModuleNotFoundError: synapse_sdk.plugins.steps is not available: synapse-sdk is not*"]
    )

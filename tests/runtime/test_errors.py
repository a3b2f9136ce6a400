"""Tests for the errors: their base class, their messages, and pickling."""

from __future__ import annotations

import inspect
import pickle
import traceback
from pathlib import Path

import pytest

from synapse_runtime import errors
from synapse_runtime.errors import (
    ActionNotFoundError,
    ClusterError,
    ConfigError,
    EnvironmentValueError,
    ExecutionError,
    ExecutionTimeout,
    NotSupportedRemotely,
    PatchNotSerializable,
    PluginError,
    RemoteError,
    ResultNotInJson,
    ResultNotSerializable,
    ValidationError,
    WorkerCrashed,
    nearest,
    safe_str,
)

PROBLEM = {"type": "missing", "loc": ("epochs",), "msg": "Field required", "input": {}}

EXAMPLES = [
    PluginError("nothing to run"),
    ConfigError("is empty", path="plugins/config.yaml", line=3),
    ConfigError("is empty", path=Path("plugins/config.yaml")),
    ConfigError("is no plugin"),
    EnvironmentValueError("environment value N='x' is not a valid integer"),
    ActionNotFoundError("there is no action 'trian'", available=["train", "infer"]),
    ValidationError("train: 1 invalid parameter", errors=[PROBLEM]),
    ExecutionError("train failed", details="last words", title="Last output:"),
    ExecutionTimeout("train exceeded its timeout of 1 s", details="  File ...", title="Stack of the action:"),
    WorkerCrashed("the process was killed", details="out of memory", title="Last output:"),
    ResultNotSerializable('result["lock"] cannot be sent between processes'),
    PatchNotSerializable("the patch of plugin.train.load cannot be sent to a worker"),
    ClusterError("no cluster"),
    RemoteError("HTTP 502", status=502, may_be_accepted=True),
    ResultNotInJson("the result of infer contains a numpy:ndarray, which JSON does not have"),
    NotSupportedRemotely("params['weights'] is a numpy.ndarray"),
]


def test_examples_include_every_error_of_the_package():
    defined = {
        cls
        for cls in vars(errors).values()
        if inspect.isclass(cls) and issubclass(cls, Exception) and not issubclass(cls, Warning)
    } - {errors.RemoteException}  # which stands for exceptions of users
    assert defined == {type(example) for example in EXAMPLES}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_is_a_plugin_error(error):
    assert isinstance(error, PluginError)


@pytest.mark.parametrize("protocol", [0, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_pickled_error_keeps_its_text_and_attributes(error, protocol):
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.args == error.args
    assert copy.__dict__ == error.__dict__


def test_config_error_has_its_position_once_even_if_pickled_twice():
    error = ConfigError("is empty", path="config.yaml", line=3)
    copy = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(error))))
    assert str(copy) == "config.yaml:3: is empty"
    assert (copy.path, copy.line) == (Path("config.yaml"), 3)


@pytest.mark.parametrize(
    ("where", "text"),
    [({}, "wrong"), ({"path": "c.yaml"}, "c.yaml: wrong"), ({"path": "c.yaml", "line": 1}, "c.yaml:1: wrong")],
)
def test_config_error_starts_with_file_and_line_if_known(where, text):
    assert str(ConfigError("wrong", **where)) == text


def test_action_not_found_error_lists_available_actions():
    assert ActionNotFoundError("no", available=iter(["train", "infer"])).available == ("train", "infer")
    assert ActionNotFoundError("no").available == ()


def test_validation_error_returns_a_copy_of_its_errors():
    error = ValidationError("wrong", errors=iter([PROBLEM]))
    assert error.errors() == [PROBLEM]
    error.errors().clear()
    assert error.errors() == [PROBLEM]
    assert isinstance(error, ValueError)


def test_details_are_shown_below_the_message_under_their_title():
    error = WorkerCrashed("it died", details="line 1\nline 2", title="Last output:")
    assert error.details == "line 1\nline 2"
    shown = "".join(traceback.format_exception(error))
    assert shown.endswith("WorkerCrashed: it died\nLast output:\nline 1\nline 2\n")


def test_error_without_details_has_no_note():
    error = ExecutionError("failed", title="Stack of the action:")
    assert error.details == ""
    assert not hasattr(error, "__notes__")
    assert str(error) == "failed"


def test_details_can_be_attached_later():
    error = ExecutionError("failed")
    error.attach("Last output:", "")
    assert error.details == ""
    error.attach("Last output:", "boo")
    assert error.details == "boo"
    assert error.__notes__ == ["Last output:\nboo"]


@pytest.mark.parametrize("error", [ExecutionTimeout, WorkerCrashed, ResultNotSerializable])
def test_each_failure_of_a_run_is_an_execution_error(error):
    assert issubclass(error, ExecutionError)


@pytest.mark.parametrize(
    ("name", "meant"), [("trian", "train"), ("TRAIN", "train"), ("infr", "Infer"), ("xyz", None), ("", None)]
)
def test_nearest_ignores_case(name, meant):
    assert nearest(name, ["train", "Infer", "evaluate"]) == meant


def test_nearest_of_no_names_is_none():
    assert nearest("train", []) is None


def test_safe_str_returns_a_placeholder_if_str_fails():
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    assert safe_str(Mute()) == "<str() failed: RuntimeError>"
    assert safe_str(ValueError("x")) == "x"


@pytest.mark.parametrize("error", [PluginError, ValidationError, ActionNotFoundError, ExecutionError])
def test_plugin_may_raise_errors_with_details_of_any_type(error):
    raised = error("no dataset", {"id": 7})
    assert (str(raised), raised.details) == ("no dataset", {"id": 7})
    assert not hasattr(raised, "__notes__")
    copied = pickle.loads(pickle.dumps(raised))
    assert (type(copied), str(copied), copied.details) == (error, "no dataset", {"id": 7})

"""The errors: one root, messages that help, and a pickle round trip that keeps everything."""

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
    PluginError,
    RemoteError,
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
    EnvironmentValueError("environment value N='x' is not an integer"),
    ActionNotFoundError("there is no action 'trian'", available=["train", "infer"]),
    ValidationError("train: 1 invalid parameter", errors=[PROBLEM]),
    ExecutionError("train failed", details="last words", title="Its last output:"),
    ExecutionTimeout("train did not end within 1 s", details="  File ...", title="It was here:"),
    WorkerCrashed("the process was killed", details="out of memory", title="Its last output:"),
    ResultNotSerializable('result["lock"] cannot travel'),
    ClusterError("no cluster"),
    RemoteError("HTTP 500"),
]


def test_every_error_of_the_package_is_tried_here():
    defined = {
        cls
        for cls in vars(errors).values()
        if inspect.isclass(cls) and issubclass(cls, Exception) and not issubclass(cls, Warning)
    }
    assert defined == {type(example) for example in EXAMPLES}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_has_the_one_root(error):
    assert isinstance(error, PluginError)


@pytest.mark.parametrize("protocol", [0, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_a_pickled_error_comes_back_with_its_text_and_attributes(error, protocol):
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.args == error.args
    assert copy.__dict__ == error.__dict__


def test_a_config_error_says_where_once_even_after_two_trips():
    error = ConfigError("is empty", path="config.yaml", line=3)
    copy = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(error))))
    assert str(copy) == "config.yaml:3: is empty"
    assert (copy.path, copy.line) == (Path("config.yaml"), 3)


@pytest.mark.parametrize(
    ("where", "text"),
    [({}, "wrong"), ({"path": "c.yaml"}, "c.yaml: wrong"), ({"path": "c.yaml", "line": 1}, "c.yaml:1: wrong")],
)
def test_a_config_error_begins_with_file_and_line_where_they_are_known(where, text):
    assert str(ConfigError("wrong", **where)) == text


def test_an_action_that_is_not_found_lists_those_that_are():
    assert ActionNotFoundError("no", available=iter(["train", "infer"])).available == ("train", "infer")
    assert ActionNotFoundError("no").available == ()


def test_a_validation_error_gives_out_its_problems_but_not_its_own_list():
    error = ValidationError("wrong", errors=iter([PROBLEM]))
    assert error.errors() == [PROBLEM]
    error.errors().clear()
    assert error.errors() == [PROBLEM]
    assert isinstance(error, ValueError)


def test_details_show_below_the_message_under_their_title():
    error = WorkerCrashed("it died", details="line 1\nline 2", title="Its last output:")
    assert error.details == "line 1\nline 2"
    shown = "".join(traceback.format_exception(error))
    assert shown.endswith("WorkerCrashed: it died\nIts last output:\nline 1\nline 2\n")


def test_without_details_there_is_nothing_below_the_message():
    error = ExecutionError("failed", title="It was here:")
    assert error.details == ""
    assert not hasattr(error, "__notes__")
    assert str(error) == "failed"


def test_details_can_come_later():
    error = ExecutionError("failed")
    error.attach("Its last output:", "")
    assert error.details == ""
    error.attach("Its last output:", "boo")
    assert error.details == "boo"
    assert error.__notes__ == ["Its last output:\nboo"]


@pytest.mark.parametrize("error", [ExecutionTimeout, WorkerCrashed, ResultNotSerializable])
def test_each_way_to_fail_is_an_execution_error(error):
    assert issubclass(error, ExecutionError)


@pytest.mark.parametrize(
    ("name", "meant"), [("trian", "train"), ("TRAIN", "train"), ("infr", "Infer"), ("xyz", None), ("", None)]
)
def test_the_nearest_name_is_found_whatever_the_case(name, meant):
    assert nearest(name, ["train", "Infer", "evaluate"]) == meant


def test_nothing_is_near_where_there_is_nothing():
    assert nearest("train", []) is None


def test_the_text_of_a_value_is_had_even_where_its_author_fails():
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    assert safe_str(Mute()) == "<str() failed: RuntimeError>"
    assert safe_str(ValueError("x")) == "x"


@pytest.mark.parametrize("error", [PluginError, ValidationError, ActionNotFoundError, ExecutionError])
def test_a_plugin_may_raise_it_with_details_of_any_kind(error):
    raised = error("no dataset", {"id": 7})
    assert (str(raised), raised.details) == ("no dataset", {"id": 7})
    assert not hasattr(raised, "__notes__")
    copied = pickle.loads(pickle.dumps(raised))
    assert (type(copied), str(copied), copied.details) == (error, "no dataset", {"id": 7})

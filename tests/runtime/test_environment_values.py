"""Tests for `PluginEnvironment`: accepted values of each getter, copies, and lines of files."""

from __future__ import annotations

import os
import pickle

import pytest

from synapse_runtime.environment import PluginEnvironment, as_environment
from synapse_runtime.errors import ConfigError, EnvironmentValueError, PluginError


@pytest.mark.parametrize(
    ("value", "number"), [("64", 64), (-3, -3), (2.0, 2), (True, 1), ("1_000", 1000), (2**70, 2**70)]
)
def test_get_int_returns_values_of_type_int(value, number):
    result = PluginEnvironment({"N": value}).get_int("N")
    assert result == number
    assert type(result) is int


@pytest.mark.parametrize("value", ["6.5", "", "many", float("nan"), {}])
def test_error_names_key_value_and_type_and_is_a_value_error(value):
    with pytest.raises(EnvironmentValueError) as caught:
        PluginEnvironment({"BATCH": value}).get_int("BATCH")
    shown = f"BATCH={value!r}" if isinstance(value, float) else f"BATCH (of type {type(value).__name__})"
    assert str(caught.value) == f"environment value {shown} is not a valid integer"
    assert caught.value.__context__ is None  # its message would show the value
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, PluginError)


@pytest.mark.parametrize(("value", "number"), [(3, 3.0), ("-inf", float("-inf")), (" 0.5 ", 0.5)])
def test_get_float_returns_values_of_type_float(value, number):
    result = PluginEnvironment({"RATE": value}).get_float("RATE")
    assert result == number
    assert type(result) is float


@pytest.mark.parametrize("value", ["", [1.0], 10**400])
def test_get_float_rejects_values_that_are_not_floats(value):
    with pytest.raises(EnvironmentValueError, match=r"RATE.* is not a valid float"):
        PluginEnvironment({"RATE": value}).get_float("RATE")


@pytest.mark.parametrize(("value", "truth"), [(True, True), (1, True), (False, False), (0, False)])
def test_get_bool_accepts_booleans_and_the_numbers_one_and_zero(value, truth):
    assert PluginEnvironment({"DEBUG": value}).get_bool("DEBUG") is truth


def test_get_bool_error_lists_the_accepted_words():
    with pytest.raises(EnvironmentValueError, match=r"true, 1, yes, on or false, 0, no, off"):
        PluginEnvironment({"DEBUG": "truee"}).get_bool("DEBUG")


@pytest.mark.parametrize(("value", "items"), [((1, 2), [1, 2]), (frozenset({3}), [3]), (["a,b"], ["a,b"]), (" , ", [])])
def test_get_list_accepts_collections(value, items):
    assert PluginEnvironment({"TAGS": value}).get_list("TAGS") == items


def test_get_list_returns_a_copy():
    tags = ["a"]
    PluginEnvironment({"TAGS": tags}).get_list("TAGS").append("b")
    assert tags == ["a"]


@pytest.mark.parametrize(
    ("value", "text"), [("x", "x"), (False, "false"), (0, "0"), (["a", True], "a,true"), ([[1]], "[[1]]")]
)
def test_get_str_returns_text_as_in_the_process_environment(value, text):
    env = PluginEnvironment({"V": value})
    assert env.get_str("V") == text
    assert env.as_strings() == {"V": text}


def test_get_returns_the_value_itself():
    value = {"nested": [1]}
    assert PluginEnvironment({"K": value}).get("K") is value


def test_environment_is_independent_of_the_original_dict():
    source = {"A": 1}
    env = PluginEnvironment(source)
    source["B"] = 2
    env.to_dict()["C"] = 3
    assert dict(env) == {"A": 1}
    assert len(env) == 1


def test_names_must_be_strings():
    with pytest.raises(EnvironmentValueError, match="environment variable names must be strings, got 1"):
        PluginEnvironment({1: "x"})


def test_repr_shows_the_names():
    assert repr(PluginEnvironment({"TOKEN": "hunter2", "A": "s3cret"})) == "PluginEnvironment(A, TOKEN)"


def test_environment_can_be_pickled():
    env = PluginEnvironment({"A": [1], "B": "x"})
    assert pickle.loads(pickle.dumps(env)) == env


def test_from_environ_copies_the_current_variables(monkeypatch):
    monkeypatch.setenv("ONLY_FOR_THIS", "1")
    env = PluginEnvironment.from_environ()
    assert env.to_dict() == dict(os.environ)
    monkeypatch.setenv("ONLY_FOR_THIS", "2")
    assert env.get("ONLY_FOR_THIS") == "1"


def test_prefix_is_removed_once_and_never_leaves_an_empty_name(monkeypatch):
    monkeypatch.setenv("MYAPP_MYAPP_X", "x")
    monkeypatch.setenv("MYAPP_", "nothing left of the name")
    assert PluginEnvironment.from_environ(prefix="MYAPP_").to_dict() == {"MYAPP_X": "x"}


def test_merge_does_not_change_its_arguments():
    first = PluginEnvironment({"A": 1})
    assert PluginEnvironment.merge(first, {"A": 2}) == {"A": 2}
    assert first == {"A": 1}
    assert PluginEnvironment.merge() == {}


@pytest.mark.parametrize("data", [{"": "secret"}, {"A=B": "secret"}, {"A\0": "secret"}, {"A": "secret\0"}])
def test_invalid_variable_error_does_not_show_its_value(data):
    with pytest.raises(EnvironmentValueError, match="invalid environment variable") as caught:
        PluginEnvironment(data).as_strings()
    assert "secret" not in str(caught.value)


def test_as_environment_returns_environments_and_wraps_other_mappings():
    env = PluginEnvironment({"A": 1})
    assert as_environment(env) is env
    assert as_environment({"A": 1}) == env
    assert as_environment(None) == {}


def test_toml_values_keep_their_types(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("N = 3\nRATE = 0.5\nDEBUG = true\n[table]\nx = 1\n", encoding="utf-8")
    assert PluginEnvironment.from_file(path).to_dict() == {"N": 3, "RATE": 0.5, "DEBUG": True, "table": {"x": 1}}


@pytest.mark.parametrize(
    ("line", "pair"),
    [
        ("export EXPORTED = spaced ", ("EXPORTED", "spaced")),
        ('QUOTED="a b"', ("QUOTED", "a b")),
        ("HASH='c # d'", ("HASH", "c # d")),
        ("EMPTY=", ("EMPTY", "")),
        ('HALF=x"', ("HALF", 'x"')),
        ("NAME=한국어", ("NAME", "한국어")),
    ],
)
def test_line_of_a_file_is_name_and_value(tmp_path, line, pair):
    path = tmp_path / ".env"
    path.write_text(f"\n{line}\n", encoding="utf-8")
    assert PluginEnvironment.from_file(path).to_dict() == dict([pair])


@pytest.mark.parametrize(
    ("content", "line", "text"),
    [
        (b"A=1\n\nnot a pair\n", 3, "expected NAME=value"),
        (b"=value\n", 1, "expected NAME=value"),
        (b"A=\xff\n", None, "is not UTF-8 text"),
    ],
)
def test_error_of_an_invalid_line_names_its_number(tmp_path, content, line, text):
    path = tmp_path / ".env"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        PluginEnvironment.from_file(path)
    assert caught.value.line == line
    assert text in str(caught.value)

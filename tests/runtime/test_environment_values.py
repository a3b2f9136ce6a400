"""`PluginEnvironment` further: what each getter takes and refuses, copies, and files line by line."""

from __future__ import annotations

import os
import pickle

import pytest

from synapse_runtime.environment import PluginEnvironment, as_environment
from synapse_runtime.errors import ConfigError, EnvironmentValueError, PluginError


@pytest.mark.parametrize(
    ("value", "number"), [("64", 64), (-3, -3), (2.0, 2), (True, 1), ("1_000", 1000), (2**70, 2**70)]
)
def test_get_int_gives_whole_numbers_of_type_int(value, number):
    result = PluginEnvironment({"N": value}).get_int("N")
    assert result == number
    assert type(result) is int


@pytest.mark.parametrize("value", ["6.5", "", "many", float("nan"), {}])
def test_a_refusal_says_key_value_and_type_in_one_sentence_and_is_a_value_error_too(value):
    with pytest.raises(EnvironmentValueError) as caught:
        PluginEnvironment({"BATCH": value}).get_int("BATCH")
    shown = f"BATCH={value!r}" if isinstance(value, float) else f"BATCH, a {type(value).__name__},"
    assert str(caught.value) == f"environment value {shown} is not an integer"
    assert caught.value.__context__ is None  # whose text would show the value
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, PluginError)


@pytest.mark.parametrize(("value", "number"), [(3, 3.0), ("-inf", float("-inf")), (" 0.5 ", 0.5)])
def test_get_float_gives_numbers_of_type_float(value, number):
    result = PluginEnvironment({"RATE": value}).get_float("RATE")
    assert result == number
    assert type(result) is float


@pytest.mark.parametrize("value", ["", [1.0], 10**400])
def test_get_float_refuses_what_no_float_can_be(value):
    with pytest.raises(EnvironmentValueError, match=r"RATE.* is not a float"):
        PluginEnvironment({"RATE": value}).get_float("RATE")


@pytest.mark.parametrize(("value", "truth"), [(True, True), (1, True), (False, False), (0, False)])
def test_get_bool_takes_truth_values_and_the_numbers_one_and_zero(value, truth):
    assert PluginEnvironment({"DEBUG": value}).get_bool("DEBUG") is truth


def test_get_bool_lists_the_words_that_it_knows():
    with pytest.raises(EnvironmentValueError, match=r"true, 1, yes, on or false, 0, no, off"):
        PluginEnvironment({"DEBUG": "truee"}).get_bool("DEBUG")


@pytest.mark.parametrize(("value", "items"), [((1, 2), [1, 2]), (frozenset({3}), [3]), (["a,b"], ["a,b"]), (" , ", [])])
def test_get_list_takes_collections_as_they_are(value, items):
    assert PluginEnvironment({"TAGS": value}).get_list("TAGS") == items


def test_get_list_gives_a_copy():
    tags = ["a"]
    PluginEnvironment({"TAGS": tags}).get_list("TAGS").append("b")
    assert tags == ["a"]


@pytest.mark.parametrize(
    ("value", "text"), [("x", "x"), (False, "false"), (0, "0"), (["a", True], "a,true"), ([[1]], "[[1]]")]
)
def test_text_is_written_as_it_stands_in_the_process_environment(value, text):
    env = PluginEnvironment({"V": value})
    assert env.get_str("V") == text
    assert env.as_strings() == {"V": text}


def test_get_returns_the_value_itself():
    value = {"nested": [1]}
    assert PluginEnvironment({"K": value}).get("K") is value


def test_it_does_not_follow_the_dict_it_was_made_from():
    source = {"A": 1}
    env = PluginEnvironment(source)
    source["B"] = 2
    env.to_dict()["C"] = 3
    assert dict(env) == {"A": 1}
    assert len(env) == 1


def test_names_must_be_strings():
    with pytest.raises(EnvironmentValueError, match="names of the environment are strings, not 1"):
        PluginEnvironment({1: "x"})


def test_its_repr_shows_the_names():
    assert repr(PluginEnvironment({"TOKEN": "hunter2", "A": "s3cret"})) == "PluginEnvironment(A, TOKEN)"


def test_it_pickles():
    env = PluginEnvironment({"A": [1], "B": "x"})
    assert pickle.loads(pickle.dumps(env)) == env


def test_from_environ_takes_all_variables_of_the_moment(monkeypatch):
    monkeypatch.setenv("ONLY_FOR_THIS", "1")
    env = PluginEnvironment.from_environ()
    assert env.to_dict() == dict(os.environ)
    monkeypatch.setenv("ONLY_FOR_THIS", "2")
    assert env.get("ONLY_FOR_THIS") == "1"


def test_a_prefix_is_cut_off_once_and_never_leaves_an_empty_name(monkeypatch):
    monkeypatch.setenv("MYAPP_MYAPP_X", "x")
    monkeypatch.setenv("MYAPP_", "nothing left of the name")
    assert PluginEnvironment.from_environ(prefix="MYAPP_").to_dict() == {"MYAPP_X": "x"}


def test_merging_leaves_the_parts_as_they_were():
    first = PluginEnvironment({"A": 1})
    assert PluginEnvironment.merge(first, {"A": 2}) == {"A": 2}
    assert first == {"A": 1}
    assert PluginEnvironment.merge() == {}


@pytest.mark.parametrize("data", [{"": "secret"}, {"A=B": "secret"}, {"A\0": "secret"}, {"A": "secret\0"}])
def test_what_no_process_environment_can_hold_is_refused_without_its_value(data):
    with pytest.raises(EnvironmentValueError, match="no process environment can hold the variable") as caught:
        PluginEnvironment(data).as_strings()
    assert "secret" not in str(caught.value)


def test_as_environment_passes_environments_through_and_wraps_the_rest():
    env = PluginEnvironment({"A": 1})
    assert as_environment(env) is env
    assert as_environment({"A": 1}) == env
    assert as_environment(None) == {}


def test_a_toml_file_keeps_its_types(tmp_path):
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
        ('HALF="', ("HALF", '"')),
        ("MIXED=\"x'", ("MIXED", "\"x'")),
        ("NAME=한국어", ("NAME", "한국어")),
    ],
)
def test_a_line_of_a_file_is_a_name_and_a_value(tmp_path, line, pair):
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
def test_a_broken_line_is_told(tmp_path, content, line, text):
    path = tmp_path / ".env"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        PluginEnvironment.from_file(path)
    assert caught.value.line == line
    assert text in str(caught.value)

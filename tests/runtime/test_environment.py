"""`PluginEnvironment`: constructors, typed getters, what is refused."""

from __future__ import annotations

import pytest

from synapse_runtime.environment import PluginEnvironment
from synapse_runtime.errors import ConfigError, EnvironmentValueError


@pytest.mark.parametrize("text", ["true", "1", "yes", "on", "TRUE", " Yes ", "On"])
def test_words_for_true(text):
    assert PluginEnvironment({"X": text}).get_bool("X") is True


@pytest.mark.parametrize("text", ["false", "0", "no", "off", "FALSE", " No "])
def test_words_for_false(text):
    assert PluginEnvironment({"X": text}).get_bool("X") is False


@pytest.mark.parametrize(
    ("getter", "value", "wanted"),
    [
        ("get_bool", "maybe", "a boolean"),
        ("get_bool", "", "a boolean"),
        ("get_bool", 2, "a boolean"),
        ("get_int", "6.5", "an integer"),
        ("get_int", 6.5, "an integer"),
        ("get_int", "", "an integer"),
        ("get_int", [1], "an integer"),
        ("get_int", float("inf"), "an integer"),
        ("get_float", "fast", "a float"),
        ("get_list", 5, "a list"),
        ("get_list", {"a": 1}, "a list"),
    ],
)
def test_a_bad_value_names_key_and_wanted_type_and_shows_numbers_only(getter, value, wanted):
    with pytest.raises(EnvironmentValueError) as caught:
        getattr(PluginEnvironment({"BATCH": value}), getter)("BATCH")
    assert "BATCH" in str(caught.value)
    assert (repr(value) in str(caught.value)) == isinstance(value, int | float)
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("getter", "value", "expected"),
    [
        ("get_str", 5, "5"),
        ("get_str", True, "true"),
        ("get_int", " 64 ", 64),
        ("get_int", 3.0, 3),
        ("get_float", "1e-3", 0.001),
        ("get_list", "a, b,,c ", ["a", "b", "c"]),
        ("get_list", ["a", 1], ["a", 1]),
        ("get_list", "", []),
        ("get", [1], [1]),
    ],
)
def test_a_good_value_is_converted(getter, value, expected):
    assert getattr(PluginEnvironment({"X": value}), getter)("X") == expected


@pytest.mark.parametrize("getter", ["get", "get_str", "get_int", "get_float", "get_bool", "get_list"])
def test_missing_and_none_give_the_default(getter):
    env = PluginEnvironment({"NONE": None})
    default = object()
    assert getattr(env, getter)("MISSING") is None
    assert getattr(env, getter)("MISSING", default) is default
    assert getattr(env, getter)("NONE", default=default) is (None if getter == "get" else default)


def test_a_prefix_is_cut_off(monkeypatch):
    monkeypatch.setenv("MYAPP_TOKEN", "t")
    monkeypatch.setenv("OTHER", "o")
    assert PluginEnvironment.from_environ(prefix="MYAPP_").to_dict() == {"TOKEN": "t"}
    assert PluginEnvironment.from_environ()["OTHER"] == "o"


def test_a_toml_file_and_a_file_of_lines(tmp_path):
    toml = tmp_path / "config.toml"
    toml.write_text('A = 1\nB = ["x", "y"]\n')
    lines = tmp_path / ".env"
    lines.write_text("# comment\nexport A=1\nB='two words'\n\nC=x=y\n")
    assert PluginEnvironment.from_file(toml).to_dict() == {"A": 1, "B": ["x", "y"]}
    assert PluginEnvironment.from_file(str(lines)).to_dict() == {"A": "1", "B": "two words", "C": "x=y"}


@pytest.mark.parametrize(("name", "text", "line"), [("c.toml", "A = 1\nB =\n", 2), ("c.env", "A=1\n\nnonsense\n", 3)])
def test_a_broken_file_is_told_with_its_line(tmp_path, name, text, line):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        PluginEnvironment.from_file(path)
    assert (caught.value.path, caught.value.line) == (path, line)
    assert str(caught.value).startswith(f"{path}:{line}: ")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.toml"):
        PluginEnvironment.from_file(tmp_path / "nothing.toml")


def test_later_environments_win():
    merged = PluginEnvironment.merge(PluginEnvironment({"A": 1, "B": 1}), PluginEnvironment({"B": 2}), {"C": 3})
    assert merged == {"A": 1, "B": 2, "C": 3}


def test_values_do_not_show_in_repr():
    assert "secret" not in repr(PluginEnvironment({"API_KEY": "secret"}))


def test_as_strings_is_what_a_process_can_hold():
    env = PluginEnvironment({"T": True, "N": None, "L": [1, "a"], "D": {"x": 1}, "I": 3})
    assert env.as_strings() == {"T": "true", "L": "1,a", "D": '{"x": 1}', "I": "3"}


@pytest.mark.parametrize("data", [{"A=B": 1}, {"": 1}, {"A": "x\0y"}])
def test_what_no_process_can_hold_is_refused(data):
    with pytest.raises(EnvironmentValueError):
        PluginEnvironment(data).as_strings()

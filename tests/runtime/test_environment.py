"""Tests for `PluginEnvironment`: constructors, typed getters, errors."""

from __future__ import annotations

import pytest

from synapse_runtime.environment import PluginEnvironment
from synapse_runtime.errors import ConfigError, EnvironmentValueError


@pytest.mark.parametrize("text", ["true", "1", "yes", "on", "TRUE", " Yes ", "On"])
def test_get_bool_true_values(text):
    assert PluginEnvironment({"X": text}).get_bool("X") is True


@pytest.mark.parametrize("text", ["false", "0", "no", "off", "FALSE", " No "])
def test_get_bool_false_values(text):
    assert PluginEnvironment({"X": text}).get_bool("X") is False


@pytest.mark.parametrize(
    ("getter", "value", "expected"),
    [
        ("get_bool", "maybe", "a valid boolean"),
        ("get_bool", "", "a valid boolean"),
        ("get_bool", 2, "a valid boolean"),
        ("get_int", "6.5", "a valid integer"),
        ("get_int", 6.5, "a valid integer"),
        ("get_int", "", "a valid integer"),
        ("get_int", [1], "a valid integer"),
        ("get_int", float("inf"), "a valid integer"),
        ("get_float", "fast", "a valid float"),
        ("get_list", 5, "a list"),
        ("get_list", {"a": 1}, "a list"),
    ],
)
def test_invalid_value_error_names_key_and_expected_type_and_shows_only_numbers(getter, value, expected):
    with pytest.raises(EnvironmentValueError) as caught:
        getattr(PluginEnvironment({"BATCH": value}), getter)("BATCH")
    assert "BATCH" in str(caught.value)
    assert (repr(value) in str(caught.value)) == isinstance(value, int | float)
    assert expected in str(caught.value)


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
def test_valid_value_is_converted(getter, value, expected):
    assert getattr(PluginEnvironment({"X": value}), getter)("X") == expected


@pytest.mark.parametrize("getter", ["get", "get_str", "get_int", "get_float", "get_bool", "get_list"])
def test_missing_and_none_return_the_default(getter):
    env = PluginEnvironment({"NONE": None})
    default = object()
    assert getattr(env, getter)("MISSING") is None
    assert getattr(env, getter)("MISSING", default) is default
    assert getattr(env, getter)("NONE", default=default) is (None if getter == "get" else default)


def test_prefix_is_removed_from_names(monkeypatch):
    monkeypatch.setenv("MYAPP_TOKEN", "t")
    monkeypatch.setenv("OTHER", "o")
    assert PluginEnvironment.from_environ(prefix="MYAPP_").to_dict() == {"TOKEN": "t"}
    assert PluginEnvironment.from_environ()["OTHER"] == "o"


def test_from_file_reads_toml_and_lines(tmp_path):
    toml = tmp_path / "config.toml"
    toml.write_text('A = 1\nB = ["x", "y"]\n')
    lines = tmp_path / ".env"
    lines.write_text("# comment\nexport A=1\nB='two words'\n\nC=x=y\n")
    assert PluginEnvironment.from_file(toml).to_dict() == {"A": 1, "B": ["x", "y"]}
    assert PluginEnvironment.from_file(str(lines)).to_dict() == {"A": "1", "B": "two words", "C": "x=y"}


@pytest.mark.parametrize(("name", "text", "line"), [("c.toml", "A = 1\nB =\n", 2), ("c.env", "A=1\n\nnonsense\n", 3)])
def test_error_of_an_invalid_file_names_its_line(tmp_path, name, text, line):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        PluginEnvironment.from_file(path)
    assert (caught.value.path, caught.value.line) == (path, line)
    assert str(caught.value).startswith(f"{path}:{line}: ")


def test_missing_file_raises_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.toml"):
        PluginEnvironment.from_file(tmp_path / "nothing.toml")


def test_later_environments_override_earlier_ones():
    merged = PluginEnvironment.merge(PluginEnvironment({"A": 1, "B": 1}), PluginEnvironment({"B": 2}), {"C": 3})
    assert merged == {"A": 1, "B": 2, "C": 3}


def test_repr_does_not_show_values():
    assert "secret" not in repr(PluginEnvironment({"API_KEY": "secret"}))


def test_as_strings_returns_valid_process_environment():
    env = PluginEnvironment({"T": True, "N": None, "L": [1, "a"], "D": {"x": 1}, "I": 3})
    assert env.as_strings() == {"T": "true", "L": "1,a", "D": '{"x": 1}', "I": "3"}


@pytest.mark.parametrize("data", [{"A=B": 1}, {"": 1}, {"A": "x\0y"}])
def test_invalid_variable_raises_an_error(data):
    with pytest.raises(EnvironmentValueError):
        PluginEnvironment(data).as_strings()


@pytest.mark.parametrize("name", [".env", "settings.toml"])
def test_file_that_cannot_be_read_is_a_config_error(unreadable_file, name):
    path = unreadable_file(name)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied; change its permissions") as raised:
        PluginEnvironment.from_file(path)
    assert raised.value.path == path


ENV_FILE = """\
\ufeffAPI_KEY=abc
PORT=8080 # the port
NAME="two words" # quoted
EMPTY=   # none yet
export\tEXPORTED=3
LINES="first
second"
SINGLE='a
b # not a comment'
URL=http://host:${PORT}/#top
PRICE=a$b
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_file_is_read_by_the_rules_of_python_dotenv(tmp_path, newline):
    path = tmp_path / ".env"
    path.write_text(ENV_FILE, encoding="utf-8", newline=newline)
    assert PluginEnvironment.from_file(path).to_dict() == {
        "API_KEY": "abc",
        "PORT": "8080",
        "NAME": "two words",
        "EMPTY": "",
        "EXPORTED": "3",
        "LINES": "first\nsecond",
        "SINGLE": "a\nb # not a comment",
        "URL": "http://host:8080/#top",
        "PRICE": "a$b",
    }


@pytest.mark.parametrize(
    "line", ["s3cret", "=s3cret", "s3 cret=1", "'s3 cret'=1", "s3+cret=", "\ufeffs3cret=1", 'A="s3cret', "3=s3cret"]
)
def test_line_of_a_file_that_sets_no_variable_is_an_error_that_does_not_show_it(tmp_path, line):
    path = tmp_path / ".env"
    path.write_text(f"A=1\n\n# comment\n  \n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"\.env:5: expected NAME=value") as caught:
        PluginEnvironment.from_file(path)
    assert "cret" not in str(caught.value)


def test_toml_file_may_start_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text("\ufeffPORT = 8080\n", encoding="utf-8")
    assert PluginEnvironment.from_file(path).to_dict() == {"PORT": 8080}

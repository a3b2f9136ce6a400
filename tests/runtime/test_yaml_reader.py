"""Tests for the YAML reader: invalid input is rejected in bounded time, with its line and without showing values."""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path

import pytest
import yaml

from synapse_runtime.errors import ConfigError
from synapse_runtime.plugins import yaml_reader
from synapse_runtime.plugins.discovery import MAX_CONFIG_BYTES
from synapse_runtime.plugins.yaml_reader import MAX_ALIASED, parse, read_text
from tests.patience import patience

PATH = Path("config.yaml")


@pytest.fixture(params=["C", "Python"], autouse=True)
def loader(request, monkeypatch):
    """Run with both loaders of PyYAML, because a PyYAML without libyaml has only the one in Python."""
    if request.param == "Python":
        monkeypatch.setattr(yaml_reader, "_Loader", yaml.SafeLoader)
    else:
        assert yaml_reader._Loader is yaml.CSafeLoader
    return request.param


def parse_error(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(text, PATH)
    return caught.value


def bomb(levels: int, each: str = "[{}]") -> str:
    lines = ["a0: &a0 [x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} " + each.format(", ".join([f"*a{level - 1}"] * 9)))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\n\tb: 2\n", 2, "the line is indented with a tab; indent with spaces"),
        ("a:\n  b: 1\n\t- c\n", 3, "the line is indented with a tab; indent with spaces"),
        ("a: 1\n---\nb: 2\n", 2, "a second document starts here"),
        ("a: 1\nb: *x\n", 2, "alias ('*…') without an anchor"),
        ("a: &x 1\nb: &x 2\n", 2, "duplicate anchor ('&…'), first defined in line 1"),
        ("a: 1\nb: \x01\n", 2, "the character U+0001 is not allowed"),
        ("a: 1\nb: c: d\n", 2, "invalid YAML: mapping values are not allowed"),
        ("a: 1\nb: [c\n", 3, "invalid YAML: "),
        ("a: 1\nb: !!python/object/apply:os.system ['true']\n", 2, "tag '!!python/object/apply:os.system' is not"),
        ("a: 1\nb: !!python/name:os.system\n", 2, "tag '!!python/name:os.system' is not allowed"),
        ("a: 1\nb: !!binary aGk=\n", 2, "tag '!!binary' is not allowed"),
        ("a: 1\nb: !include other.yaml\n", 2, "tags ('!…') are not allowed; quote text that starts"),
        ("a: 1\n!x b: 1\n", 2, "tags ('!…') are not allowed"),
        ("a: 1\nb: 2\na: 3\n", 3, "duplicate key 'a', first defined in line 1; remove one"),
        ("a:\n  b: 1\n  c: 1\n  b: 1\n", 4, "duplicate key 'b', first defined in line 2"),
        ("1: a\n'1': b\n", 2, "duplicate key '1', first defined in line 1"),
        ("a: 1\n[b]: 2\n", 2, "a key must be text"),
        ("a: 1\n{b: 1}: 2\n", 2, "a key must be text"),
        ("a: 1\nb: !!int hidden\n", 2, "not a valid int; quote it if it is text"),
        ("a: 1\nb: 0x_\n", 2, "not a valid int"),
        ("a: 1\nb: [x, !!bool hidden]\n", 2, "not a valid bool"),
        ("a: 1\nb:\n  <<: c\n", 3, "invalid YAML: expected a mapping"),
        ("a: 1\nb: &b [*b]\n", 2, "an alias makes this value contain itself"),
        ("a: 1\nb: &b\n  c: *b\n", 2, "an alias makes this value contain itself"),
    ],
)
def test_error_has_line_and_reason(loader, text, line, message):
    error = parse_error(text)
    if loader == "Python" and text.endswith("[c\n"):
        line = None  # the loaders report different lines for the end of the text
        error.line = None
    assert message in str(error)
    assert (error.path, error.line) == (PATH, line)
    assert "hidden" not in str(error)


def test_all_problems_are_listed(loader):
    error = parse_error("a: 1\na: 2\nb: !x y\nb: 3\n")
    assert [(problem.line, problem.text[:7]) for problem in error.problems] == [
        (2, "duplica"),
        (3, "tags ('"),
        (4, "duplica"),
    ]
    assert str(error).startswith("config.yaml:2: duplicate key 'a', first defined in line 1; remove one (and 2 more")


@pytest.mark.parametrize("secret", ["!s3cret", "!!s3cret", "*s3cret", "&s3cret &x y", "'s3cret", "[s3cret", "@s3cret"])
def test_password_that_is_invalid_yaml_is_not_shown(secret):
    error = parse_error(f"env:\n  PASSWORD: {secret}\n")
    assert "s3cret" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(bomb(9), id="lists"),
        pytest.param(bomb(9, "{{<<: [{}]}}").replace("[x, x]", "{x: y}"), id="merged mappings"),
        pytest.param(bomb(9, "{{k: [{}]}}"), id="mappings"),
    ],
)
def test_alias_bomb_is_rejected_quickly(text):
    started = time.process_time()
    error = parse_error(text)
    assert time.process_time() - started < patience(0.2)
    assert f"the aliases expand to more than {MAX_ALIASED:,} values" in str(error)
    assert error.line is not None
    assert error.line > 4


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * 100_000, id="open brackets"),
        pytest.param("a: " + "[" * 101 + "]" * 101, id="brackets"),
        pytest.param("- " * 200_000 + "a", id="lists on a line"),
        pytest.param("? " * 1_000 + "a", id="keys on a line"),
        pytest.param("\n".join(f"{' ' * level}a:" for level in range(400)), id="indented"),
    ],
)
def test_deep_nesting_is_rejected_quickly(loader, text):
    started = time.process_time()
    assert "nest" in str(parse_error(text))
    assert time.process_time() - started < patience(1)


def test_too_large_file_is_rejected_before_it_is_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("code: x\n" + "# filled up\n" * 900_000)
    started = time.process_time()
    with pytest.raises(ConfigError, match=f"the file is larger than {MAX_CONFIG_BYTES:,} bytes"):
        read_text(path)
    assert time.process_time() - started < patience(0.2)


def test_invalid_utf_8_error_has_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"code: x\nenv: {A: s\xffcret}\n")
    with pytest.raises(ConfigError, match="not UTF-8: invalid start byte at byte 18") as caught:
        read_text(path)
    assert caught.value.line == 2
    assert "cret" not in "".join(traceback.format_exception(caught.value)).replace("secret", "")


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbfcode: x\r\nname: y\r\n", b"code: x\nname: y", b"---\ncode: x\nname: y\n..."]
)
def test_byte_order_marks_and_line_endings_are_accepted(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert parse(read_text(path)).data == {"code": "x", "name": "y"}


def test_anchors_aliases_and_merge_keys_are_resolved():
    document = parse("""\
x-job: &job {method: job, tags: [a]}
x-more: &more {retries: 3}
actions:
  train:
    <<: *job
    entrypoint: a:B
  infer: {<<: [*job, *more], method: task}
  again: *job
""")
    assert document.data["actions"] == {
        "train": {"method": "job", "tags": ["a"], "entrypoint": "a:B"},
        "infer": {"method": "task", "tags": ["a"], "retries": 3},
        "again": {"method": "job", "tags": ["a"]},
    }
    assert document.line(("actions", "train", "entrypoint")) == 6
    assert document.line(("actions", "train", "method")) == 1
    assert document.line(("actions", "infer", "method")) == 7
    assert document.line(("actions", "infer", "retries")) == 2


def test_keys_are_strings_as_written():
    document = parse("on: 1\nNO: 2\n07: 3\n2024-01-01: 4\n~: 5\n1.50: 6\n")
    assert document.data == {"on": 1, "NO": 2, "07": 3, "2024-01-01": 4, "~": 5, "1.50": 6}


def test_dates_and_lone_operators_are_strings():
    assert parse("a: 2024-01-01\nb: 2024-13-45\nc: =\nd: <<\n").data == {
        "a": "2024-01-01",
        "b": "2024-13-45",
        "c": "=",
        "d": "<<",
    }


def test_numbers_at_text_paths_are_strings():
    text = "version: 3.10\nother: 3.10\nrequires: {python: 3.10}\ntags: [1.0, a]\nswitch: on\n"
    document = parse(text, text_at=[("version",), ("requires", "*"), ("tags", "*"), ("switch",), ("absent", "*")])
    assert document.data == {
        "version": "3.10",
        "other": 3.1,
        "requires": {"python": "3.10"},
        "tags": ["1.0", "a"],
        "switch": True,
    }


def test_large_file_within_the_limit_is_read(loader):
    many = 50_000 if loader == "C" else 2_000  # the Python loader is much slower
    started = time.process_time()
    assert len(parse("".join(f"key{number}: value\n" for number in range(many))).data) == many
    assert time.process_time() - started < patience(5)


def test_named_pipe_is_an_error_instead_of_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"config\.yaml: not a regular file"):
        read_text(tmp_path / "config.yaml")

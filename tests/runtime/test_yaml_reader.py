"""One YAML document: what is refused, in bounded time, with its line and without showing a value."""

from __future__ import annotations

import time
import traceback
from pathlib import Path

import pytest
import yaml

from synapse_runtime.errors import ConfigError
from synapse_runtime.plugins import yaml_reader
from synapse_runtime.plugins.yaml_reader import MAX_ALIASED, MAX_BYTES, parse, read_text
from tests.patience import patience

PATH = Path("config.yaml")


@pytest.fixture(params=["C", "Python"], autouse=True)
def loader(request, monkeypatch):
    """Both of PyYAML's loaders: where it was built without libyaml there is only the one in Python."""
    if request.param == "Python":
        monkeypatch.setattr(yaml_reader, "_Loader", yaml.SafeLoader)
    else:
        assert yaml_reader._Loader is yaml.CSafeLoader
    return request.param


def fault(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(text, PATH)
    return caught.value


def bomb(levels: int, each: str = "[{}]") -> str:
    lines = ["a0: &a0 [x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} " + each.format(", ".join([f"*a{level - 1}"] * 9)))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\n\tb: 2\n", 2, "the line is indented with a tab; indent with spaces"),
        ("a:\n  b: 1\n\t- c\n", 3, "the line is indented with a tab; indent with spaces"),
        ("a: 1\n---\nb: 2\n", 2, "a second document begins here"),
        ("a: 1\nb: *x\n", 2, "an alias ('*…') of something that is not anchored"),
        ("a: &x 1\nb: &x 2\n", 2, "the anchor ('&…') is there twice, first in line 1"),
        ("a: 1\nb: \x01\n", 2, "has a character that no text has: U+0001"),
        ("a: 1\nb: c: d\n", 2, "broken YAML: mapping values are not allowed"),
        ("a: 1\nb: [c\n", 3, "broken YAML: "),
        ("a: 1\nb: !!python/object/apply:os.system ['true']\n", 2, "the tag '!!python/object/apply:os.system' is not"),
        ("a: 1\nb: !!python/name:os.system\n", 2, "the tag '!!python/name:os.system' is not allowed"),
        ("a: 1\nb: !!binary aGk=\n", 2, "the tag '!!binary' is not allowed"),
        ("a: 1\nb: !include other.yaml\n", 2, "tags ('!…') are not allowed: put quotes around a text that begins"),
        ("a: 1\n!x b: 1\n", 2, "tags ('!…') are not allowed"),
        ("a: 1\nb: 2\na: 3\n", 3, "the key 'a' is there twice, first in line 1; remove one"),
        ("a:\n  b: 1\n  c: 1\n  b: 1\n", 4, "the key 'b' is there twice, first in line 2"),
        ("1: a\n'1': b\n", 2, "the key '1' is there twice"),
        ("a: 1\n[b]: 2\n", 2, "a key must be a text"),
        ("a: 1\n{b: 1}: 2\n", 2, "a key must be a text"),
        ("a: 1\nb: !!int hidden\n", 2, "this is no int; put quotes around a text"),
        ("a: 1\nb: 0x_\n", 2, "this is no int"),
        ("a: 1\nb: [x, !!bool hidden]\n", 2, "this is no bool"),
        ("a: 1\nb:\n  <<: c\n", 3, "broken YAML: expected a mapping"),
        ("a: 1\nb: &b [*b]\n", 2, "contains itself, by an alias"),
        ("a: 1\nb: &b\n  c: *b\n", 2, "contains itself, by an alias"),
    ],
)
def test_each_fault_is_told_with_its_line(loader, text, line, said):
    error = fault(text)
    if loader == "Python" and text.endswith("[c\n"):
        line = None  # the two loaders differ in where they see the end
        error.line = None
    assert said in str(error)
    assert (error.path, error.line) == (PATH, line)
    assert "hidden" not in str(error)


def test_several_faults_are_all_told(loader):
    error = fault("a: 1\na: 2\nb: !x y\nb: 3\n")
    assert [(problem.line, problem.text[:9]) for problem in error.problems] == [
        (2, "the key '"),
        (3, "tags ('!…"),
        (4, "the key '"),
    ]
    assert str(error).startswith("config.yaml:2: the key 'a' is there twice, first in line 1; remove one (and 2 more")


@pytest.mark.parametrize("secret", ["!s3cret", "!!s3cret", "*s3cret", "&s3cret &x y", "'s3cret", "[s3cret", "@s3cret"])
def test_a_password_that_is_no_yaml_is_not_shown(secret):
    error = fault(f"env:\n  PASSWORD: {secret}\n")
    assert "s3cret" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(bomb(9), id="lists"),
        pytest.param(bomb(9, "{{<<: [{}]}}").replace("[x, x]", "{x: y}"), id="merged mappings"),
        pytest.param(bomb(9, "{{k: [{}]}}"), id="mappings"),
    ],
)
def test_an_alias_bomb_is_refused_by_counting(text):
    started = time.process_time()
    error = fault(text)
    assert time.process_time() - started < patience(0.2)
    assert f"the aliases here stand for more than {MAX_ALIASED:,} values" in str(error)
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
def test_what_is_nested_deeply_is_refused(loader, text):
    started = time.process_time()
    assert "nest" in str(fault(text))
    assert time.process_time() - started < patience(1)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("code: x\n" + "# filled up\n" * 900_000)
    started = time.process_time()
    with pytest.raises(ConfigError, match=f"is too large: a config file may have {MAX_BYTES:,} bytes"):
        read_text(path)
    assert time.process_time() - started < patience(0.2)


def test_what_is_not_utf_8_is_told_with_its_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"code: x\nenv: {A: s\xffcret}\n")
    with pytest.raises(ConfigError, match="is not UTF-8 text: invalid start byte at byte 18") as caught:
        read_text(path)
    assert caught.value.line == 2
    assert "cret" not in "".join(traceback.format_exception(caught.value)).replace("secret", "")


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbfcode: x\r\nname: y\r\n", b"code: x\nname: y", b"---\ncode: x\nname: y\n..."]
)
def test_marks_and_ends_of_lines_do_not_matter(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert parse(read_text(path)).data == {"code": "x", "name": "y"}


def test_anchors_aliases_and_merge_keys_work():
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


def test_keys_are_text_as_they_are_written():
    document = parse("on: 1\nNO: 2\n07: 3\n2024-01-01: 4\n~: 5\n1.50: 6\n")
    assert document.data == {"on": 1, "NO": 2, "07": 3, "2024-01-01": 4, "~": 5, "1.50": 6}


def test_dates_and_lone_signs_are_text():
    assert parse("a: 2024-01-01\nb: 2024-13-45\nc: =\nd: <<\n").data == {
        "a": "2024-01-01",
        "b": "2024-13-45",
        "c": "=",
        "d": "<<",
    }


def test_numbers_are_text_where_that_is_wanted():
    text = "version: 3.10\nother: 3.10\nrequires: {python: 3.10}\ntags: [1.0, a]\nswitch: on\n"
    document = parse(text, text_at=[("version",), ("requires", "*"), ("tags", "*"), ("switch",), ("absent", "*")])
    assert document.data == {
        "version": "3.10",
        "other": 3.1,
        "requires": {"python": "3.10"},
        "tags": ["1.0", "a"],
        "switch": True,
    }


def test_a_large_file_within_the_limit_is_read(loader):
    many = 50_000 if loader == "C" else 2_000  # what the loader in C is there for
    started = time.process_time()
    assert len(parse("".join(f"key{number}: value\n" for number in range(many))).data) == many
    assert time.process_time() - started < patience(5)

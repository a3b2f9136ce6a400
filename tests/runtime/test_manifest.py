"""Tests for reading a config file, and for the errors about invalid ones."""

from __future__ import annotations

import pytest

from synapse_runtime.errors import ConfigError
from synapse_runtime.plugins.manifest import line_of, read_manifest

FULL = """\
# a comment
code: digits
name: Digits
version: 1.2.3
description: Learns digits.
colour: blue
env:
  API_KEY: k
  DEBUG: true
  BATCH_SIZE: 32
  TAGS: [a, b]
actions:
  train:
    entrypoint: plugin.train:TrainAction
    method: job
    description: Learn.
    gpu: 1
  infer: plugin.infer.InferAction
  later:
"""


@pytest.fixture
def config(tmp_path):
    """Write a config file and return its path."""

    def write(content: str | bytes, name: str = "config.yaml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def read_error(path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_manifest(path)
    return caught.value


def test_all_fields_are_read(config):
    manifest = read_manifest(config(FULL))
    assert (manifest.code, manifest.name, manifest.version) == ("digits", "Digits", "1.2.3")
    assert manifest.description == "Learns digits."
    assert manifest.env == {"API_KEY": "k", "DEBUG": True, "BATCH_SIZE": 32, "TAGS": ["a", "b"]}
    train = manifest.actions["train"]
    assert (train.name, train.entrypoint, train.method) == ("train", "plugin.train:TrainAction", "job")
    assert train.description == "Learn."


def test_actions_keep_their_order_in_the_file(config):
    assert list(read_manifest(config(FULL)).actions) == ["train", "infer", "later"]


def test_action_may_be_just_an_entrypoint_or_empty(config):
    actions = read_manifest(config(FULL)).actions
    assert actions["infer"].entrypoint == "plugin.infer.InferAction"
    assert actions["infer"].name == "infer"
    assert actions["later"].entrypoint == ""


def test_unknown_keys_are_kept(config):
    manifest = read_manifest(config(FULL))
    assert manifest.model_extra == {"colour": "blue"}
    assert manifest.actions["train"].model_extra == {"gpu": 1}


def test_actions_may_be_a_list_of_named_entries(config):
    manifest = read_manifest(config("code: x\nactions:\n  - name: train\n    entrypoint: a:B\n  - name: infer\n"))
    assert {name: spec.entrypoint for name, spec in manifest.actions.items()} == {"train": "a:B", "infer": ""}


def test_name_defaults_to_code(config):
    assert read_manifest(config("code: digits\n")).name == "digits"


@pytest.mark.parametrize(("written", "read"), [("1", "1"), ("1.5", "1.5"), ("'1.0.0'", "1.0.0")])
def test_version_that_looks_like_a_number_is_text(config, written, read):
    assert read_manifest(config(f"code: x\nversion: {written}\n")).version == read


def test_sections_without_values_are_empty(config):
    manifest = read_manifest(config("code: x\nenv:\nactions:\n"))
    assert (manifest.env, manifest.actions) == ({}, {})


@pytest.mark.parametrize("name", ["config.yaml", "config.yml", "synapse.yaml", "synapse.yml"])
def test_directory_is_resolved_to_its_config_file(config, name):
    path = config("code: here\n", name)
    assert read_manifest(path.parent).code == "here"


def test_directory_without_config_file_raises_config_error(tmp_path):
    error = read_error(tmp_path)
    assert str(error) == f"{tmp_path}: no config.yaml or synapse.yaml in this directory"


def test_missing_file_raises_config_error(tmp_path):
    error = read_error(tmp_path / "config.yaml")
    assert "cannot read the file: No such file or directory" in str(error)
    assert error.path == tmp_path / "config.yaml"


@pytest.mark.parametrize(
    ("content", "line", "text"),
    [
        ("", None, "the file is empty; a plugin needs at least 'code' and 'actions'"),
        ("# nothing but a comment\n", None, "the file is empty"),
        ("- a\n- b\n", 1, "expected a mapping of keys to values, got a list"),
        ("just text", 1, "expected a mapping of keys to values, got a str"),
        ("code: x\nactions: {train: [\n", 3, "invalid YAML"),
        ("code: [x]\n", 1, "code: Input should be a valid string"),
        ("code: x\nversion: true\n", 2, "version: Input should be a valid string"),
        ("code: x\nenv:\n  - A=1\n", 2, "env: Input should be a valid dictionary"),
        ("code: x\nactions: train\n", 2, "actions: Input should be a valid dictionary"),
        ("code: x\nactions:\n  train: 3\n", 3, "actions.train: Input should be a valid dictionary"),
        (
            "code: x\nactions:\n  train:\n    method: task\n    entrypoint: train\n",
            5,
            "actions.train.entrypoint: expected 'module:Name' or 'module.Name', got 'train'",
        ),
        (
            "code: x\nactions:\n  - name: infer\n  - name: train\n    entrypoint: 'a b:C'\n",
            5,
            "actions.train.entrypoint: expected 'module:Name' or 'module.Name', got 'a b:C'",
        ),
    ],
)
def test_error_has_file_and_line(config, content, line, text):
    path = config(content)
    error = read_error(path)
    assert (error.path, error.line) == (path, line)
    assert str(error).startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert text in str(error)


def test_error_shows_the_first_problem_and_counts_the_others(config):
    error = read_error(config("code: [x]\nversion: [1]\nactions:\n  train:\n    entrypoint: nonsense\n"))
    assert error.line == 1
    assert "code: Input should be a valid string (and 2 more; run `synapse plugin check` to list them)" in str(error)
    assert [(problem.line, problem.text.partition(":")[0]) for problem in error.problems] == [
        (1, "code"),
        (2, "version"),
        (5, "actions.train.entrypoint"),
    ]


@pytest.mark.parametrize(
    "entrypoint", ["train", "a:", ":B", "a b:C", "a:B:C", "1a:B", "a/b:C", "a..b:C", "plugin/train.py:Train"]
)
def test_invalid_entrypoint_is_rejected(config, entrypoint):
    error = read_error(config(f"code: x\nactions:\n  train: '{entrypoint}'\n"))
    assert f"expected 'module:Name' or 'module.Name', got {entrypoint!r}" in str(error)
    assert error.line == 3


@pytest.mark.parametrize("entrypoint", ["a:B", "a.B", "a.b.c:D", "a:B.C", "a.b.c.D", "_x:_Y"])
def test_both_entrypoint_forms_are_accepted(config, entrypoint):
    manifest = read_manifest(config(f"code: x\nactions:\n  train: '{entrypoint}'\n"))
    assert manifest.actions["train"].entrypoint == entrypoint


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (("code",), 2),
        (("env",), 7),
        (("env", "BATCH_SIZE"), 10),
        (("actions", "train", "method"), 15),
        (("actions", "infer", "entrypoint"), 18),
        (("actions", "absent"), 12),
        (("nothing",), None),
        ((), None),
    ],
)
def test_line_of_returns_the_line_of_the_deepest_existing_key(keys, line):
    assert line_of(FULL, keys) == line

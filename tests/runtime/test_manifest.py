"""The config file: what is read from it, and how each of its faults is told."""

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


def fault(path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_manifest(path)
    return caught.value


def test_everything_in_the_file_is_read(config):
    manifest = read_manifest(config(FULL))
    assert (manifest.code, manifest.name, manifest.version) == ("digits", "Digits", "1.2.3")
    assert manifest.description == "Learns digits."
    assert manifest.env == {"API_KEY": "k", "DEBUG": True, "BATCH_SIZE": 32, "TAGS": ["a", "b"]}
    train = manifest.actions["train"]
    assert (train.name, train.entrypoint, train.method) == ("train", "plugin.train:TrainAction", "job")
    assert train.description == "Learn."


def test_actions_keep_the_order_of_the_file(config):
    assert list(read_manifest(config(FULL)).actions) == ["train", "infer", "later"]


def test_an_action_may_be_its_entrypoint_alone_or_nothing_yet(config):
    actions = read_manifest(config(FULL)).actions
    assert actions["infer"].entrypoint == "plugin.infer.InferAction"
    assert actions["infer"].name == "infer"
    assert actions["later"].entrypoint == ""


def test_keys_that_are_not_ours_are_kept(config):
    manifest = read_manifest(config(FULL))
    assert manifest.model_extra == {"colour": "blue"}
    assert manifest.actions["train"].model_extra == {"gpu": 1}


def test_actions_may_be_a_list_with_names(config):
    manifest = read_manifest(config("code: x\nactions:\n  - name: train\n    entrypoint: a:B\n  - name: infer\n"))
    assert {name: spec.entrypoint for name, spec in manifest.actions.items()} == {"train": "a:B", "infer": ""}


def test_the_code_names_a_plugin_that_has_no_name(config):
    assert read_manifest(config("code: digits\n")).name == "digits"


@pytest.mark.parametrize(("written", "read"), [("1", "1"), ("1.5", "1.5"), ("'1.0.0'", "1.0.0")])
def test_a_version_may_look_like_a_number(config, written, read):
    assert read_manifest(config(f"code: x\nversion: {written}\n")).version == read


def test_empty_sections_are_empty(config):
    manifest = read_manifest(config("code: x\nenv:\nactions:\n"))
    assert (manifest.env, manifest.actions) == ({}, {})


@pytest.mark.parametrize("name", ["config.yaml", "config.yml", "synapse.yaml", "synapse.yml"])
def test_a_directory_stands_for_the_config_file_in_it(config, name):
    path = config("code: here\n", name)
    assert read_manifest(path.parent).code == "here"


def test_a_directory_without_a_config_file_is_told(tmp_path):
    error = fault(tmp_path)
    assert str(error) == f"{tmp_path}: there is no config.yaml or synapse.yaml in this directory"


def test_a_missing_file_is_told(tmp_path):
    error = fault(tmp_path / "config.yaml")
    assert "cannot be read: No such file or directory" in str(error)
    assert error.path == tmp_path / "config.yaml"


@pytest.mark.parametrize(
    ("content", "line", "text"),
    [
        ("", None, "is empty; a plugin has at least 'code' and 'actions'"),
        ("# nothing but a comment\n", None, "is empty"),
        ("- a\n- b\n", 1, "must be a mapping of keys to values, not a list"),
        ("just text", 1, "must be a mapping of keys to values, not a str"),
        ("code: x\nactions: {train: [\n", 3, "broken YAML"),
        ("code: [x]\n", 1, "code: Input should be a valid string"),
        ("code: x\nversion: true\n", 2, "version: Input should be a valid string"),
        ("code: x\nenv:\n  - A=1\n", 2, "env: Input should be a valid dictionary"),
        ("code: x\nactions: train\n", 2, "actions: Input should be a valid dictionary"),
        ("code: x\nactions:\n  train: 3\n", 3, "actions.train: Input should be a valid dictionary"),
        (
            "code: x\nactions:\n  train:\n    method: task\n    entrypoint: train\n",
            5,
            "actions.train.entrypoint: must be 'module:Name' or 'module.Name', not 'train'",
        ),
        (
            "code: x\nactions:\n  - name: infer\n  - name: train\n    entrypoint: 'a b:C'\n",
            5,
            "actions.train.entrypoint: must be 'module:Name' or 'module.Name', not 'a b:C'",
        ),
    ],
)
def test_each_fault_is_told_with_file_and_line(config, content, line, text):
    path = config(content)
    error = fault(path)
    assert (error.path, error.line) == (path, line)
    assert str(error).startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert text in str(error)


def test_several_faults_are_counted_and_the_first_is_told(config):
    error = fault(config("code: [x]\nversion: [1]\nactions:\n  train:\n    entrypoint: nonsense\n"))
    assert error.line == 1
    assert "code: Input should be a valid string (and 2 more: `synapse plugin check` tells all)" in str(error)
    assert [(problem.line, problem.text.partition(":")[0]) for problem in error.problems] == [
        (1, "code"),
        (2, "version"),
        (5, "actions.train.entrypoint"),
    ]


@pytest.mark.parametrize(
    "entrypoint", ["train", "a:", ":B", "a b:C", "a:B:C", "1a:B", "a/b:C", "a..b:C", "plugin/train.py:Train"]
)
def test_what_is_no_entrypoint_is_refused(config, entrypoint):
    error = fault(config(f"code: x\nactions:\n  train: '{entrypoint}'\n"))
    assert f"must be 'module:Name' or 'module.Name', not {entrypoint!r}" in str(error)
    assert error.line == 3


@pytest.mark.parametrize("entrypoint", ["a:B", "a.B", "a.b.c:D", "a:B.C", "a.b.c.D", "_x:_Y"])
def test_both_forms_of_an_entrypoint_are_taken(config, entrypoint):
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
        (("actions", "nobody"), 12),
        (("nothing",), None),
        ((), None),
    ],
)
def test_the_line_is_that_of_the_deepest_key_there_is(keys, line):
    assert line_of(FULL, keys) == line

"""Tests for loading plugins: config files, entrypoints, discovery, and errors with file and line."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from synapse_runtime.errors import ActionNotFoundError, ConfigError, ExecutionError
from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.loggers import NullLogger
from synapse_runtime.plugins.plugin import Plugin


def make_plugin(root: Path, answer: int = 1, config: str | None = None) -> Path:
    (root / "plugin").mkdir(parents=True)
    (root / "plugin" / "__init__.py").touch()
    (root / "plugin" / "values.py").write_text(f"ANSWER = {answer}\n")
    (root / "plugin" / "work.py").write_text(
        textwrap.dedent(
            """
            from synapse_runtime.action import BaseAction
            from .values import ANSWER

            class Answer(BaseAction):
                def execute(self):
                    return ANSWER
            """
        )
    )
    default = "code: demo\nactions:\n  answer:\n    entrypoint: plugin.work:Answer\n"
    (root / "config.yaml").write_text(default if config is None else textwrap.dedent(config))
    return root


def execute(source: Path | str, action: str = "answer"):
    return LocalExecutor(plugin=source, logger=NullLogger()).execute(action)


def test_plugin_is_found_by_directory_and_by_config_file(tmp_path):
    root = make_plugin(tmp_path)
    assert execute(root) == execute(str(root)) == execute(root / "config.yaml") == 1


def test_synapse_yaml_is_accepted_as_config_file(tmp_path):
    root = make_plugin(tmp_path)
    (root / "config.yaml").rename(root / "synapse.yaml")
    assert execute(root) == 1


def test_config_file_of_another_program_is_ignored(tmp_path):
    root = make_plugin(tmp_path)
    (root / "config.yaml").rename(root / "synapse.yaml")
    (root / "config.yaml").write_text("optimizer: adam\n")
    assert execute(root) == 1


@pytest.mark.parametrize(
    "actions",
    [
        "actions:\n  answer: {entrypoint: plugin.work.Answer}",
        "actions:\n  answer: plugin.work:Answer",
        "actions:\n- name: answer\n  entrypoint: plugin.work:Answer",
    ],
)
def test_actions_are_accepted_in_several_notations(tmp_path, actions):
    assert execute(make_plugin(tmp_path, config=f"code: demo\n{actions}\n")) == 1


def test_module_without_config_file_provides_its_own_actions(tmp_path, monkeypatch):
    (tmp_path / "loose_actions.py").write_text(
        "from synapse_runtime.action import BaseAction\n"
        "from synapse_runtime.decorators import action\n"
        "class MakeTeaAction(BaseAction):\n    def execute(self):\n        return 'tea'\n"
        "@action\ndef pour(params, context):\n    return params\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plugin = Plugin.load("loose_actions")
    assert plugin.action_names == ("make_tea", "pour")
    assert execute("loose_actions", "make_tea") == "tea"


def test_package_with_config_file_is_a_plugin(tmp_path, monkeypatch):
    make_plugin(tmp_path / "packaged_demo")
    (tmp_path / "packaged_demo" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert execute("packaged_demo") == 1


@pytest.mark.parametrize("source", ["no_such_module_x", "./no/such/directory", "missing.yaml"])
def test_missing_plugin_error_names_the_source(source):
    with pytest.raises(ConfigError, match=Path(source).name):
        Plugin.load(source)


def test_directory_without_config_file_raises_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.yaml or synapse\.yaml"):
        Plugin.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "line", "words"),
    [
        ("code: demo\nactions: [unclosed\n", 3, "invalid YAML"),
        ("code: demo\nactions:\n\t- x\n", 3, "invalid YAML"),
        ("code: demo\nactions:\n  answer:\n    entrypoint: 5 + 5\n", 4, "expected 'module:Name'"),
        ("code: [1]\nactions: {}\n", 1, "code"),
        ("code: demo\nactions: 5\n", 2, "actions"),
        ("- a\n- b\n", 1, "expected a mapping"),
        ("", None, "is empty"),
    ],
)
def test_invalid_config_file_error_has_line(tmp_path, config, line, words):
    root = make_plugin(tmp_path, config=config)
    with pytest.raises(ConfigError) as caught:
        Plugin.load(root)
    place = f"{root / 'config.yaml'}:{line}: " if line else f"{root / 'config.yaml'}: "
    assert str(caught.value).startswith(place)
    assert words in str(caught.value)


def test_unknown_action_error_lists_actions_and_suggests_one(tmp_path):
    with pytest.raises(ActionNotFoundError, match=r"Did you mean 'answer'\? Available: answer") as caught:
        execute(make_plugin(tmp_path), "anwser")
    assert caught.value.available == ("answer",)


@pytest.mark.parametrize(
    ("entrypoint", "words"),
    [
        ("plugin.wrk:Answer", "module 'plugin.wrk' does not exist"),
        ("plugin.work:Anser", "has no 'Anser'; did you mean 'Answer'"),
        ("plugin.values:ANSWER", "is not an action"),
    ],
)
def test_invalid_entrypoint_error_has_line(tmp_path, entrypoint, words):
    root = make_plugin(tmp_path, config=f"code: demo\nactions:\n  answer:\n    entrypoint: {entrypoint}\n")
    with pytest.raises(ConfigError) as caught:
        execute(root)
    assert str(caught.value).startswith(f"{root / 'config.yaml'}:4: action 'answer': ")
    assert words in str(caught.value)
    with pytest.raises(ConfigError, match=r"config\.yaml:4: action 'answer'"):
        Plugin.load(root).load_action("answer")


def test_failing_import_raises_execution_error_with_cause(tmp_path):
    root = make_plugin(tmp_path)
    (root / "plugin" / "work.py").write_text("import no_such_dependency\n")
    with pytest.raises(ExecutionError, match=r"importing plugin\.work failed") as caught:
        execute(root)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_plugins_with_the_same_package_name_are_separate(tmp_path):
    first, second = make_plugin(tmp_path / "a", 1), make_plugin(tmp_path / "b", 2)
    assert [execute(root) for root in (first, second, first, second)] == [1, 2, 1, 2]


def test_sys_path_is_restored(tmp_path):
    before = list(sys.path)
    execute(make_plugin(tmp_path))
    assert sys.path == before


def test_public_names_are_importable():
    import synapse_runtime

    for name in synapse_runtime._LAZY_IMPORTS:
        assert getattr(synapse_runtime, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = synapse_runtime.nothing_such

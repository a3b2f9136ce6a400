"""Plugins on disk: config files, entrypoints, discovery, and errors that say where."""

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


def test_a_plugin_is_found_by_its_directory_and_by_its_config_file(tmp_path):
    root = make_plugin(tmp_path)
    assert execute(root) == execute(str(root)) == execute(root / "config.yaml") == 1


def test_synapse_yaml_is_a_config_file_too(tmp_path):
    root = make_plugin(tmp_path)
    (root / "config.yaml").rename(root / "synapse.yaml")
    assert execute(root) == 1


def test_another_programs_config_file_beside_the_plugins_is_passed_over(tmp_path):
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
def test_actions_may_be_written_in_several_ways(tmp_path, actions):
    assert execute(make_plugin(tmp_path, config=f"code: demo\n{actions}\n")) == 1


def test_a_module_without_a_config_file_gives_its_own_actions(tmp_path, monkeypatch):
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


def test_a_package_with_a_config_file_is_a_plugin(tmp_path, monkeypatch):
    make_plugin(tmp_path / "packaged_demo")
    (tmp_path / "packaged_demo" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert execute("packaged_demo") == 1


@pytest.mark.parametrize("source", ["no_such_module_x", "./no/such/directory", "missing.yaml"])
def test_what_is_no_plugin_is_told(source):
    with pytest.raises(ConfigError, match=Path(source).name):
        Plugin.load(source)


def test_a_directory_without_a_config_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no config\.yaml or synapse\.yaml"):
        Plugin.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "line", "words"),
    [
        ("code: demo\nactions: [unclosed\n", 3, "broken YAML"),
        ("code: demo\nactions:\n\t- x\n", 3, "broken YAML"),
        ("code: demo\nactions:\n  answer:\n    entrypoint: 5 + 5\n", 4, "must be 'module:Name'"),
        ("code: [1]\nactions: {}\n", 1, "code"),
        ("code: demo\nactions: 5\n", 2, "actions"),
        ("- a\n- b\n", 1, "must be a mapping"),
        ("", None, "is empty"),
    ],
)
def test_a_broken_config_file_is_told_with_its_line(tmp_path, config, line, words):
    root = make_plugin(tmp_path, config=config)
    with pytest.raises(ConfigError) as caught:
        Plugin.load(root)
    place = f"{root / 'config.yaml'}:{line}: " if line else f"{root / 'config.yaml'}: "
    assert str(caught.value).startswith(place)
    assert words in str(caught.value)


def test_an_unknown_action_lists_those_there_are_and_the_nearest(tmp_path):
    with pytest.raises(ActionNotFoundError, match=r"Did you mean 'answer'\? Available: answer") as caught:
        execute(make_plugin(tmp_path), "anwser")
    assert caught.value.available == ("answer",)


@pytest.mark.parametrize(
    ("entrypoint", "words"),
    [
        ("plugin.wrk:Answer", "there is no module 'plugin.wrk'"),
        ("plugin.work:Anser", "has no 'Anser'; did you mean 'Answer'"),
        ("plugin.values:ANSWER", "is not an action"),
    ],
)
def test_an_entrypoint_that_leads_nowhere_is_told_with_its_line(tmp_path, entrypoint, words):
    root = make_plugin(tmp_path, config=f"code: demo\nactions:\n  answer:\n    entrypoint: {entrypoint}\n")
    with pytest.raises(ConfigError) as caught:
        execute(root)
    assert str(caught.value).startswith(f"{root / 'config.yaml'}:4: action 'answer': ")
    assert words in str(caught.value)
    with pytest.raises(ConfigError, match=r"config\.yaml:4: action 'answer'"):
        Plugin.load(root).load_action("answer")


def test_a_module_that_fails_on_import_is_an_execution_error_with_its_cause(tmp_path):
    root = make_plugin(tmp_path)
    (root / "plugin" / "work.py").write_text("import no_such_dependency\n")
    with pytest.raises(ExecutionError, match=r"importing plugin\.work failed") as caught:
        execute(root)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_each_plugin_gets_its_own_package_of_the_same_name(tmp_path):
    first, second = make_plugin(tmp_path / "a", 1), make_plugin(tmp_path / "b", 2)
    assert [execute(root) for root in (first, second, first, second)] == [1, 2, 1, 2]


def test_sys_path_looks_untouched_afterwards(tmp_path):
    before = list(sys.path)
    execute(make_plugin(tmp_path))
    assert sys.path == before


def test_the_names_of_the_public_face():
    import synapse_runtime

    for name in synapse_runtime._HOMES:
        assert getattr(synapse_runtime, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = synapse_runtime.nothing_such

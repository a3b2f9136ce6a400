"""Tests for the section "Using run_plugin" of the specification."""

from __future__ import annotations

import inspect
import typing
from pathlib import Path

import pytest

from synapse_runtime.errors import ActionNotFoundError, ConfigError
from tests.seed.conftest import Names, Plugins


class TestBasicUsage:
    def test_via_module_path(self, names: Names, plugins: Plugins) -> None:
        result = names.run_plugin("my_plugins.yolov8", "train", {"epochs": 10})
        assert result["params"]["epochs"] == 10

    def test_via_filesystem_path(self, names: Names, plugins: Plugins) -> None:
        result = names.run_plugin(str(plugins.path), "train", {"epochs": 10})
        assert result["params"]["epochs"] == 10

    def test_via_config_yaml_path(self, names: Names, plugins: Plugins) -> None:
        result = names.run_plugin(str(plugins.config), "train", {"epochs": 10})
        assert result["params"]["epochs"] == 10

    def test_via_module_path_from_the_directory_that_the_module_is_in(
        self, names: Names, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(plugins.root)
        assert names.run_plugin("my_plugin", "train", {"epochs": 10})["params"]["epochs"] == 10
        assert names.run_plugin("my_plugins.yolov8", "train", {"epochs": 10})["params"]["epochs"] == 10

    def test_via_module_path_without_a_config_file(self, names: Names, plugins: Plugins) -> None:
        result = names.run_plugin("my_plugin", "train", {"epochs": 10})
        assert result["params"]["epochs"] == 10


class TestSignature:
    def test_names_defaults_and_kinds(self, names: Names) -> None:
        parameters = inspect.signature(names.run_plugin).parameters.values()
        positional, keyword, rest = (
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
            inspect.Parameter.VAR_KEYWORD,
        )
        empty = inspect.Parameter.empty
        assert [(p.name, p.default, p.kind) for p in parameters] == [
            ("plugin_code", empty, positional),
            ("action", empty, positional),
            ("params", None, positional),
            ("mode", "local", keyword),
            ("executor_kwargs", empty, rest),
        ]

    def test_modes_are_local_task_job_and_remote(self, names: Names) -> None:
        hints = typing.get_type_hints(names.run_plugin)
        assert typing.get_args(hints["mode"]) == ("local", "task", "job", "remote")


class TestParameters:
    def test_plugin_code_that_is_none_is_told(self, names: Names, plugins: Plugins) -> None:
        with pytest.raises(ConfigError, match="no_such_plugin"):
            names.run_plugin("no_such_plugin", "train", {"epochs": 10})

    def test_action_that_is_none_is_told(self, names: Names, plugins: Plugins) -> None:
        with pytest.raises(ActionNotFoundError, match="Did you mean 'train'"):
            names.run_plugin("my_plugins.yolov8", "trian", {"epochs": 10})

    def test_params_default_to_none(self, names: Names, plugins: Plugins) -> None:
        assert names.run_plugin("my_plugins.yolov8", "infer") == {}

    def test_mode_that_is_none_is_told(self, names: Names, plugins: Plugins) -> None:
        with pytest.raises(ValueError, match="local, task, job"):
            names.run_plugin("my_plugins.yolov8", "train", {"epochs": 10}, mode="cloud")


class TestExecutorKwargs:
    def test_job_id(self, names: Names, plugins: Plugins) -> None:
        assert (
            names.run_plugin("my_plugins.yolov8", "train", {"epochs": 1}, job_id="train-001")["job_id"] == "train-001"
        )


class TestWithCustomEnvironment:
    def test_as_a_dictionary(self, names: Names, plugins: Plugins) -> None:
        result = names.run_plugin("my_plugins.yolov8", "train", {"epochs": 10}, env={"API_KEY": "xxx", "DEBUG": "true"})
        assert (result["env"]["API_KEY"], result["env"]["DEBUG"]) == ("xxx", "true")

    def test_as_a_plugin_environment(self, names: Names, plugins: Plugins) -> None:
        env = names.PluginEnvironment({"API_KEY": "xxx", "BATCH_SIZE": "64"})
        result = names.run_plugin("my_plugins.yolov8", "train", {"epochs": 10}, env=env)
        assert (result["env"]["API_KEY"], result["env"]["BATCH_SIZE"]) == ("xxx", "64")


class TestWithExplicitActionClass:
    def test_plugin_code_is_ignored(self, names: Names, plugins: Plugins) -> None:
        from my_plugin.train import TrainAction

        result = names.run_plugin("yolov8", "train", {"epochs": 10}, action_cls=TrainAction)
        assert result["params"]["epochs"] == 10

    def test_discovery_is_skipped_even_where_the_plugin_is_broken(
        self, names: Names, plugins: Plugins, tmp_path: Path
    ) -> None:
        from my_plugin.train import TrainAction

        (tmp_path / "config.yaml").write_text("code: [broken")
        assert names.run_plugin(str(tmp_path), "train", {"epochs": 1}, action_cls=TrainAction)["status"] == "done"

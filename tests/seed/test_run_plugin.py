"""The part "Using run_plugin" of the text."""

from __future__ import annotations

import inspect
import typing
from pathlib import Path

import pytest

from synapse_runtime.context import PluginEnvironment
from synapse_runtime.errors import ActionNotFoundError, ConfigError
from synapse_runtime.runner import run_plugin
from tests.seed.conftest import Plugins


class TestBasicUsage:
    def test_via_module_path(self, plugins: Plugins) -> None:
        result = run_plugin("my_plugins.yolov8", "train", {"epochs": 10})
        assert result["params"]["epochs"] == 10

    def test_via_filesystem_path(self, plugins: Plugins) -> None:
        result = run_plugin(str(plugins.path), "train", {"epochs": 10})
        assert result["params"]["epochs"] == 10

    def test_via_config_yaml_path(self, plugins: Plugins) -> None:
        result = run_plugin(str(plugins.config), "train", {"epochs": 10})
        assert result["params"]["epochs"] == 10

    def test_via_module_path_without_a_config_file(self, plugins: Plugins) -> None:
        result = run_plugin("my_plugin", "train", {"epochs": 10})
        assert result["params"]["epochs"] == 10


class TestSignature:
    def test_names_defaults_and_kinds(self) -> None:
        parameters = inspect.signature(run_plugin).parameters.values()
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

    def test_modes_are_local_task_and_job(self) -> None:
        hints = typing.get_type_hints(run_plugin)
        assert typing.get_args(hints["mode"]) == ("local", "task", "job")


class TestParameters:
    def test_plugin_code_that_is_none_is_told(self, plugins: Plugins) -> None:
        with pytest.raises(ConfigError, match="no_such_plugin"):
            run_plugin("no_such_plugin", "train", {"epochs": 10})

    def test_action_that_is_none_is_told(self, plugins: Plugins) -> None:
        with pytest.raises(ActionNotFoundError, match="Did you mean 'train'"):
            run_plugin("my_plugins.yolov8", "trian", {"epochs": 10})

    def test_params_default_to_none(self, plugins: Plugins) -> None:
        assert run_plugin("my_plugins.yolov8", "infer") == {}

    def test_mode_that_is_none_is_told(self, plugins: Plugins) -> None:
        with pytest.raises(ValueError, match="local, task, job"):
            run_plugin("my_plugins.yolov8", "train", {"epochs": 10}, mode="cloud")


class TestExecutorKwargs:
    def test_job_id(self, plugins: Plugins) -> None:
        assert run_plugin("my_plugins.yolov8", "train", {"epochs": 1}, job_id="train-001")["job_id"] == "train-001"


class TestWithCustomEnvironment:
    def test_as_a_dictionary(self, plugins: Plugins) -> None:
        result = run_plugin("my_plugins.yolov8", "train", {"epochs": 10}, env={"API_KEY": "xxx", "DEBUG": "true"})
        assert (result["env"]["API_KEY"], result["env"]["DEBUG"]) == ("xxx", "true")

    def test_as_a_plugin_environment(self, plugins: Plugins) -> None:
        env = PluginEnvironment({"API_KEY": "xxx", "BATCH_SIZE": "64"})
        result = run_plugin("my_plugins.yolov8", "train", {"epochs": 10}, env=env)
        assert (result["env"]["API_KEY"], result["env"]["BATCH_SIZE"]) == ("xxx", "64")


class TestWithExplicitActionClass:
    def test_plugin_code_is_ignored(self, plugins: Plugins) -> None:
        from my_plugin.train import TrainAction

        result = run_plugin("yolov8", "train", {"epochs": 10}, action_cls=TrainAction)
        assert result["params"]["epochs"] == 10

    def test_discovery_is_skipped_even_where_the_plugin_is_broken(self, plugins: Plugins, tmp_path: Path) -> None:
        from my_plugin.train import TrainAction

        (tmp_path / "config.yaml").write_text("code: [broken")
        assert run_plugin(str(tmp_path), "train", {"epochs": 1}, action_cls=TrainAction)["status"] == "done"

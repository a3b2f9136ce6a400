"""Tests for the section "Environment Setup" of the specification."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from tests.cli.processes import Synapse
from tests.seed.conftest import Names, Plugins


@pytest.fixture
def config_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file `config.toml` of the specification, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.toml"
    path.write_text('API_KEY = "from-file"\nDEBUG = false\nBATCH_SIZE = 64\nLEARNING_RATE = 0.5\nTAGS = ["a", "b"]\n')
    return path


class TestPluginEnvironment:
    def test_loads_from_os_environ(self, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("API_KEY", "xxx")
        env = names.PluginEnvironment.from_environ()
        assert env.get("API_KEY") == "xxx"

    def test_loads_with_prefix_filtering(self, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MYAPP_API_KEY", "xxx")
        monkeypatch.setenv("OTHER_API_KEY", "yyy")
        env = names.PluginEnvironment.from_environ(prefix="MYAPP_")
        assert env.to_dict() == {"API_KEY": "xxx"}

    def test_loads_from_a_toml_file(self, names: Names, config_toml: Path) -> None:
        env = names.PluginEnvironment.from_file("config.toml")
        assert env.to_dict() == {
            "API_KEY": "from-file",
            "DEBUG": False,
            "BATCH_SIZE": 64,
            "LEARNING_RATE": 0.5,
            "TAGS": ["a", "b"],
        }

    def test_is_created_from_a_dictionary(self, names: Names) -> None:
        env = names.PluginEnvironment({"API_KEY": "xxx", "DEBUG": True})
        assert (env.get("API_KEY"), env.get("DEBUG")) == ("xxx", True)


class TestTypedAccessors:
    def test_read_what_is_set(self, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
        values = {"API_KEY": "xxx", "BATCH_SIZE": "64", "DEBUG": "true", "LEARNING_RATE": "0.01", "TAGS": "a, b,c"}
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        assert _read_as_in_the_text(names.PluginEnvironment.from_environ()) == ("xxx", 64, True, 0.01, ["a", "b", "c"])

    def test_give_the_default_where_nothing_is_set(self, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("API_KEY", "BATCH_SIZE", "DEBUG", "LEARNING_RATE", "TAGS"):
            monkeypatch.delenv(name, raising=False)
        assert _read_as_in_the_text(names.PluginEnvironment.from_environ()) == (None, 32, False, 0.001, [])

    def test_read_the_types_of_toml(self, names: Names, config_toml: Path) -> None:
        env = names.PluginEnvironment.from_file("config.toml")
        assert _read_as_in_the_text(env) == ("from-file", 64, False, 0.5, ["a", "b"])


class TestMethodTable:
    @pytest.mark.parametrize("method", ["get", "get_str", "get_int", "get_float", "get_bool", "get_list"])
    def test_takes_key_and_default_and_gives_none_without(self, names: Names, method: str) -> None:
        accessor = getattr(names.PluginEnvironment({}), method)
        assert list(inspect.signature(accessor).parameters) == ["key", "default"]
        assert accessor("MISSING") is None

    def test_get_returns_the_raw_value(self, names: Names) -> None:
        value = {"nested": [1]}
        assert names.PluginEnvironment({"KEY": value}).get("KEY", "default") is value

    def test_get_str_converts_to_string(self, names: Names) -> None:
        assert names.PluginEnvironment({"KEY": 5}).get_str("KEY", "default") == "5"

    def test_get_int_converts_to_integer(self, names: Names) -> None:
        assert names.PluginEnvironment({"KEY": "5"}).get_int("KEY", 1) == 5

    def test_get_float_converts_to_float(self, names: Names) -> None:
        assert names.PluginEnvironment({"KEY": "0.5"}).get_float("KEY", 1.0) == 0.5

    @pytest.mark.parametrize("word", ["true", "1", "yes", "TRUE", "Yes"])
    def test_get_bool_converts_to_boolean(self, names: Names, word: str) -> None:
        assert names.PluginEnvironment({"KEY": word}).get_bool("KEY", False) is True

    @pytest.mark.parametrize("word", ["false", "0", "no"])
    def test_get_bool_knows_the_opposites(self, names: Names, word: str) -> None:
        assert names.PluginEnvironment({"KEY": word}).get_bool("KEY", True) is False

    @pytest.mark.parametrize("value", ["a,b", "a, b", ["a", "b"]])
    def test_get_list_converts_to_list(self, names: Names, value: object) -> None:
        assert names.PluginEnvironment({"KEY": value}).get_list("KEY", []) == ["a", "b"]


class TestEnvironmentPriority:
    def test_os_environ_is_the_default(self, names: Names, plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OUTSIDE", "process")
        assert names.run_plugin(str(plugins.path), "train", {"epochs": 1})["env"]["OUTSIDE"] == "process"

    def test_config_env_overrides_os_environ(
        self, names: Names, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("API_KEY", "process")
        assert names.run_plugin(str(plugins.path), "train", {"epochs": 1})["env"]["API_KEY"] == "your-api-key"

    def test_env_parameter_overrides_both(
        self, names: Names, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("API_KEY", "process")
        result = names.run_plugin(str(plugins.path), "train", {"epochs": 1}, env={"API_KEY": "code"})
        assert result["env"]["API_KEY"] == "code"

    def test_env_option_overrides_both(self, names: Names, synapse: Synapse) -> None:
        arguments = ("train", "--mode", "local", "--params", '{"epochs": 1}', "--json")
        done = synapse.run(*arguments, "--env", "API_KEY=option", API_KEY="process")
        assert done.result["env"]["API_KEY"] == "option"


class TestConfigEnvSection:
    def test_gives_the_action_its_variables(
        self, names: Names, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("OUTSIDE", raising=False)
        assert names.run_plugin(str(plugins.path), "train", {"epochs": 1})["env"] == {
            "API_KEY": "your-api-key",
            "DEBUG": "true",
            "BATCH_SIZE": "32",
            "LEARNING_RATE": "0.001",
        }


class TestMerging:
    def test_later_takes_precedence(self, names: Names, config_toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("API_KEY", "process")
        monkeypatch.setenv("OUTSIDE", "process")
        base_env = names.PluginEnvironment.from_environ()
        config_env = names.PluginEnvironment.from_file("config.toml")
        override_env = names.PluginEnvironment({"DEBUG": "true"})

        merged = names.PluginEnvironment.merge(base_env, config_env, override_env)

        assert isinstance(merged, names.PluginEnvironment)
        assert (merged.get("OUTSIDE"), merged.get("API_KEY"), merged.get("DEBUG")) == ("process", "from-file", "true")
        assert (base_env.get("API_KEY"), config_env.get("DEBUG")) == ("process", False)


def _read_as_in_the_text(env: Any) -> tuple[object, ...]:
    api_key = env.get_str("API_KEY")
    batch_size = env.get_int("BATCH_SIZE", default=32)
    debug = env.get_bool("DEBUG", default=False)
    learning_rate = env.get_float("LEARNING_RATE", default=0.001)
    tags = env.get_list("TAGS", default=[])
    return api_key, batch_size, debug, learning_rate, tags

"""The parts "Overview", "At a Glance", "LocalExecutor" and "Limitations" of the text."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import threading

import pytest

from synapse_runtime.action import BaseAction
from synapse_runtime.environment import PluginEnvironment
from synapse_runtime.errors import ExecutionError, ValidationError
from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor
from tests.seed.conftest import Plugins


@pytest.fixture
def train_action(plugins: Plugins) -> type[BaseAction]:
    """`from my_plugin.actions import TrainAction`."""
    from my_plugin.actions import TrainAction

    return TrainAction


@pytest.fixture
def fail_action(plugins: Plugins) -> type[BaseAction]:
    """An action that raises."""
    from my_plugin.train import FailAction

    return FailAction


class TestAtAGlance:
    def test_location_is_the_current_process_and_thread(self, train_action: type[BaseAction]) -> None:
        result = LocalExecutor().execute(train_action, {"epochs": 1})
        assert (result["process"], result["thread"]) == (os.getpid(), threading.get_ident())

    def test_logging_is_on_the_console_at_once(self, capsys: pytest.CaptureFixture[str], plugins: Plugins) -> None:
        seen = []

        class Speaks(BaseAction):
            def execute(self) -> None:
                self.ctx.log("first", {})
                seen.append(capsys.readouterr().out)

        LocalExecutor().execute(Speaks, {})
        assert "first" in seen[0]

    def test_requirements_are_none(self, plugins: Plugins) -> None:
        script = (
            "import sys\n"
            "sys.modules['ray'] = None\n"
            "from synapse_runtime.executors.local import LocalExecutor\n"
            "from my_plugin.actions import TrainAction\n"
            "assert LocalExecutor().execute(TrainAction, {'epochs': 10})['status'] == 'done'\n"
        )
        subprocess.run([sys.executable, "-c", script], cwd=plugins.root, check=True, timeout=30)


class TestSignature:
    def test_of_init(self) -> None:
        signature = inspect.signature(LocalExecutor.__init__)
        env, job_id = list(signature.parameters.values())[1:3]
        assert [(p.name, p.default, p.kind) for p in (env, job_id)] == [
            ("env", None, inspect.Parameter.POSITIONAL_OR_KEYWORD),
            ("job_id", None, inspect.Parameter.POSITIONAL_OR_KEYWORD),
        ]
        assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in _others(signature, 3))

    def test_of_execute(self) -> None:
        parameters = inspect.signature(LocalExecutor.execute).parameters
        assert list(parameters) == ["self", "action_cls", "params", "kwargs"]
        assert parameters["action_cls"].default is inspect.Parameter.empty
        assert parameters["kwargs"].kind is inspect.Parameter.VAR_KEYWORD


class TestInitParameters:
    @pytest.mark.parametrize("wrap", [dict, PluginEnvironment])
    def test_env_may_be_a_dict_or_a_plugin_environment(self, train_action: type[BaseAction], wrap: type) -> None:
        executor = LocalExecutor(wrap({"API_KEY": "xxx"}))
        assert executor.execute(train_action, {"epochs": 1})["env"]["API_KEY"] == "xxx"

    def test_env_is_os_environ_where_none_is_given(
        self, train_action: type[BaseAction], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OUTSIDE", "here")
        assert LocalExecutor().execute(train_action, {"epochs": 1})["env"]["OUTSIDE"] == "here"

    def test_env_reaches_the_context_as_a_plugin_environment(self) -> None:
        class Tells(BaseAction):
            def execute(self) -> bool:
                return isinstance(self.ctx.env, PluginEnvironment)

        assert LocalExecutor(env={"A": "1"}).execute(Tells, {}) is True

    def test_job_id_is_passed_on(self, train_action: type[BaseAction]) -> None:
        assert LocalExecutor(None, "train-001").execute(train_action, {"epochs": 1})["job_id"] == "train-001"


class TestReturns:
    def test_the_very_object_of_the_actions_execute(self) -> None:
        made = object()

        class Makes(BaseAction):
            def execute(self) -> object:
                return made

        assert LocalExecutor().execute(Makes, {}) is made


class TestErrors:
    def test_validation_error_where_params_do_not_fit(self, train_action: type[BaseAction]) -> None:
        with pytest.raises(ValidationError, match="epochs") as caught:
            LocalExecutor().execute(train_action, {"epochs": "many"})
        assert caught.value.errors()[0]["loc"] == ("epochs",)

    def test_validation_error_where_a_value_is_out_of_bounds(self, train_action: type[BaseAction]) -> None:
        with pytest.raises(ValidationError, match="epochs: Input should be greater than or equal to 1, got 0"):
            LocalExecutor().execute(train_action, {"epochs": 0})

    def test_execution_error_where_the_action_raises(self, fail_action: type[BaseAction]) -> None:
        with pytest.raises(ExecutionError, match="out of memory") as caught:
            LocalExecutor().execute(fail_action, {"epochs": 1})
        assert isinstance(caught.value.__cause__, RuntimeError)


class TestExample:
    def test_basic_usage(self, train_action: type[BaseAction]) -> None:
        executor = LocalExecutor()
        result = executor.execute(train_action, {"epochs": 10})
        assert result["params"] == {"epochs": 10, "batch_size": 16, "sample_size": None}

    def test_with_custom_environment_and_job_id(self, train_action: type[BaseAction]) -> None:
        executor = LocalExecutor(env={"API_KEY": "xxx", "DEBUG": "true"}, job_id="train-001")
        result = executor.execute(train_action, {"epochs": 10, "batch_size": 32})
        assert result["params"] == {"epochs": 10, "batch_size": 32, "sample_size": None}
        assert result["env"] | {"API_KEY": "xxx", "DEBUG": "true"} == result["env"]
        assert result["job_id"] == "train-001"


class TestLimitations:
    @pytest.mark.parametrize("option", ["num_gpus", "num_cpus"])
    def test_no_gpu_allocation_in_local_mode(self, option: str) -> None:
        with pytest.raises(TypeError, match=option):
            LocalExecutor(**{option: 1})

    @pytest.mark.parametrize("executor", [RayActorExecutor, RayJobsApiExecutor])
    def test_gpus_can_be_asked_for_in_the_ray_modes(self, executor: type) -> None:
        assert inspect.signature(executor).parameters["num_gpus"].default is None


def _others(signature: inspect.Signature, after: int) -> list[inspect.Parameter]:
    return list(signature.parameters.values())[after:]

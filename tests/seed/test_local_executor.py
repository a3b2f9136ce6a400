"""Tests for the sections "Overview", "At a Glance", "LocalExecutor" and "Limitations" of the specification."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from synapse_runtime.errors import ClusterError
from tests.patience import patience
from tests.seed.conftest import BY_ITS_OWN_NAMES, Names, Plugins

WITHOUT_RAY = "import sys\nsys.modules['ray'] = None\n"


@pytest.fixture
def train_action(plugins: Plugins) -> type:
    """`from my_plugin.actions import TrainAction`."""
    from my_plugin.actions import TrainAction

    return TrainAction


@pytest.fixture
def fail_action(plugins: Plugins) -> type:
    """An action that raises."""
    from my_plugin.train import FailAction

    return FailAction


class TestAtAGlance:
    def test_location_is_the_current_process_and_thread(self, names: Names, train_action: type) -> None:
        result = names.LocalExecutor().execute(train_action, {"epochs": 1})
        assert (result["process"], result["thread"]) == (os.getpid(), threading.get_ident())

    @BY_ITS_OWN_NAMES
    def test_start_is_immediate(self, names: Names, train_action: type) -> None:
        began = time.monotonic()
        names.LocalExecutor().execute(train_action, {"epochs": 1})
        assert time.monotonic() - began < patience(1)

    def test_logging_is_on_the_console_at_once(self, names: Names, capsys: pytest.CaptureFixture[str]) -> None:
        seen = []

        class Speaks(names.BaseAction):
            def execute(self) -> None:
                self.ctx.log("first", {})
                seen.append(capsys.readouterr().out)

        names.LocalExecutor().execute(Speaks, {})
        assert "first" in seen[0]

    def test_requirements_of_local_mode_are_none(self, names: Names, plugins: Plugins) -> None:
        run = (
            "from {names}.executors.local import LocalExecutor\n"
            "from my_plugin.actions import TrainAction\n"
            "assert LocalExecutor().execute(TrainAction, {'epochs': 10})['status'] == 'done'\n"
        )
        _python(WITHOUT_RAY + names.script(run), plugins.root)

    @BY_ITS_OWN_NAMES
    def test_requirement_of_task_and_job_mode_is_a_ray_cluster(self, names: Names, plugins: Plugins) -> None:
        run = (
            "from {names}.runner import run_plugin\n"
            "for mode in ('task', 'job'):\n"
            "    try:\n"
            "        run_plugin('my_plugin', 'train', {'epochs': 1}, mode=mode)\n"
            "    except Exception as error:\n"
            "        print(type(error).__name__, error)\n"
        )
        said = _python(WITHOUT_RAY + names.script(run), plugins.root).splitlines()
        assert len(said) == 2
        assert all(line.startswith(f"{ClusterError.__name__} task and job mode require Ray") for line in said)


class TestSignature:
    def test_of_init(self, names: Names) -> None:
        signature = inspect.signature(names.LocalExecutor.__init__)
        env, job_id, *others = list(signature.parameters.values())[1:]
        assert [(p.name, p.default, p.kind) for p in (env, job_id)] == [
            ("env", None, inspect.Parameter.POSITIONAL_OR_KEYWORD),
            ("job_id", None, inspect.Parameter.POSITIONAL_OR_KEYWORD),
        ]
        assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in others)

    def test_of_execute(self, names: Names) -> None:
        parameters = inspect.signature(names.LocalExecutor.execute).parameters
        assert list(parameters) == ["self", "action_cls", "params", "kwargs"]
        assert parameters["action_cls"].default is inspect.Parameter.empty
        assert parameters["kwargs"].kind is inspect.Parameter.VAR_KEYWORD


class TestInitParameters:
    def test_env_may_be_a_dict(self, names: Names, train_action: type) -> None:
        executor = names.LocalExecutor({"API_KEY": "xxx"})
        assert executor.execute(train_action, {"epochs": 1})["env"]["API_KEY"] == "xxx"

    def test_env_may_be_a_plugin_environment(self, names: Names, train_action: type) -> None:
        executor = names.LocalExecutor(names.PluginEnvironment({"API_KEY": "xxx"}))
        assert executor.execute(train_action, {"epochs": 1})["env"]["API_KEY"] == "xxx"

    def test_env_is_os_environ_where_none_is_given(
        self, names: Names, train_action: type, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OUTSIDE", "here")
        assert names.LocalExecutor().execute(train_action, {"epochs": 1})["env"]["OUTSIDE"] == "here"

    def test_env_reaches_the_context_as_a_plugin_environment(self, names: Names) -> None:
        class Tells(names.BaseAction):
            def execute(self) -> bool:
                return isinstance(self.ctx.env, names.PluginEnvironment)

        assert names.LocalExecutor(env={"A": "1"}).execute(Tells, {}) is True

    def test_job_id_is_passed_on(self, names: Names, train_action: type) -> None:
        assert names.LocalExecutor(None, "train-001").execute(train_action, {"epochs": 1})["job_id"] == "train-001"


class TestExecuteParameters:
    def test_may_be_named(self, names: Names, train_action: type) -> None:
        result = names.LocalExecutor().execute(action_cls=train_action, params={"epochs": 2})
        assert result["params"]["epochs"] == 2

    def test_action_cls_is_required(self, names: Names) -> None:
        with pytest.raises(TypeError, match="action_cls"):
            names.LocalExecutor().execute(params={"epochs": 2})


class TestReturns:
    def test_the_very_object_of_the_actions_execute(self, names: Names) -> None:
        made = object()

        class Makes(names.BaseAction):
            def execute(self) -> object:
                return made

        assert names.LocalExecutor().execute(Makes, {}) is made


class TestErrors:
    def test_validation_error_where_params_do_not_fit(self, names: Names, train_action: type) -> None:
        with pytest.raises(names.ValidationError, match="epochs") as caught:
            names.LocalExecutor().execute(train_action, {"epochs": "many"})
        assert caught.value.errors()[0]["loc"] == ("epochs",)

    def test_validation_error_where_a_value_is_out_of_bounds(self, names: Names, train_action: type) -> None:
        with pytest.raises(names.ValidationError, match="epochs: Input should be greater than or equal to 1, got 0"):
            names.LocalExecutor().execute(train_action, {"epochs": 0})

    def test_execution_error_where_the_action_raises(self, names: Names, fail_action: type) -> None:
        with pytest.raises(names.ExecutionError, match="out of memory") as caught:
            names.LocalExecutor().execute(fail_action, {"epochs": 1})
        assert isinstance(caught.value.__cause__, RuntimeError)


class TestExample:
    def test_basic_usage(self, names: Names, train_action: type) -> None:
        executor = names.LocalExecutor()
        result = executor.execute(train_action, {"epochs": 10})
        assert result["params"] == {"epochs": 10, "batch_size": 16, "sample_size": None}

    def test_with_custom_environment_and_job_id(self, names: Names, train_action: type) -> None:
        executor = names.LocalExecutor(env={"API_KEY": "xxx", "DEBUG": "true"}, job_id="train-001")
        result = executor.execute(train_action, {"epochs": 10, "batch_size": 32})
        assert result["params"] == {"epochs": 10, "batch_size": 32, "sample_size": None}
        assert result["env"] | {"API_KEY": "xxx", "DEBUG": "true"} == result["env"]
        assert result["job_id"] == "train-001"


@BY_ITS_OWN_NAMES
class TestLimitations:
    def test_single_process_runs_one_call_after_another(self, names: Names) -> None:
        said: list[str] = []

        class Speaks(names.BaseAction):
            def execute(self) -> int:
                said.append("begin")
                time.sleep(0.01)
                said.append("end")
                return os.getpid()

        executor = names.LocalExecutor()
        assert [executor.execute(Speaks, {}) for _ in range(2)] == [os.getpid()] * 2
        assert said == ["begin", "end"] * 2

    def test_no_resource_isolation_as_the_action_has_the_hosts_limits(self, names: Names) -> None:
        import resource

        class Measures(names.BaseAction):
            def execute(self) -> object:
                return resource.getrlimit(resource.RLIMIT_AS), os.sched_getaffinity(0)

        assert names.LocalExecutor().execute(Measures, {}) == (
            resource.getrlimit(resource.RLIMIT_AS),
            os.sched_getaffinity(0),
        )

    def test_no_scalability_as_there_is_no_cluster_to_name(self, names: Names) -> None:
        with pytest.raises(TypeError, match="ray_address"):
            names.LocalExecutor(ray_address="host:6379")

    @pytest.mark.parametrize("option", ["num_gpus", "num_cpus"])
    def test_no_gpu_allocation_in_local_mode(self, names: Names, option: str) -> None:
        with pytest.raises(TypeError, match=option):
            names.LocalExecutor(**{option: 1})

    @pytest.mark.parametrize("executor", ["RayActorExecutor", "RayJobsApiExecutor"])
    def test_resources_and_clusters_can_be_named_in_the_ray_modes(self, names: Names, executor: str) -> None:
        parameters = inspect.signature(getattr(names, executor)).parameters
        for option in ("num_gpus", "num_cpus", "ray_address"):
            assert parameters[option].default is None


def _python(program: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=directory, check=True, timeout=patience(30), capture_output=True, text=True
    )
    return done.stdout

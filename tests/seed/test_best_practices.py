"""The part "Best Practices" of the text: small data first, debug mode, then the same code on Ray."""

from __future__ import annotations

import os
from typing import Any

import pytest

from synapse_runtime.executors.ray import RayJobsApiExecutor
from synapse_runtime.runner import run_plugin
from tests.seed.conftest import Plugins

PARAMS = {"epochs": 2}


class TestDevelopmentWorkflow:
    def test_small_dataset_for_development(self, plugins: Plugins) -> None:
        result = run_plugin("my_plugin", "train", {"epochs": 1, "batch_size": 4, "sample_size": 100})
        assert result["params"] == {"epochs": 1, "batch_size": 4, "sample_size": 100}

    def test_leverage_debug_mode(self, plugins: Plugins) -> None:
        env = {"DEBUG": "true"}
        result = run_plugin("my_plugin", "train", PARAMS, env=env)
        assert result["env"]["DEBUG"] == "true"


class TestMigrationToRay:
    @pytest.fixture(autouse=True)
    def _no_other_cluster(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def test_during_development_local_mode(self, plugins: Plugins) -> None:
        result = run_plugin("my_plugin", "train", PARAMS, mode="local")
        assert result["process"] == os.getpid()
        assert _comparable(result) == _expected()

    def test_after_testing_ray_actor_mode(self, plugins: Plugins, capsys: pytest.CaptureFixture[str]) -> None:
        result = run_plugin("my_plugin", "train", PARAMS, mode="task")
        assert result["process"] != os.getpid()
        assert _comparable(result) == _expected()
        assert "progress: 2/2 (100%)" in capsys.readouterr().out

    def test_debugger_of_local_mode_is_still_pythons_own_after_ray_was_used(self, plugins: Plugins) -> None:
        run_plugin("my_plugin", "train", PARAMS, mode="task")
        assert not os.environ.get("PYTHONBREAKPOINT", "").startswith("ray.")

    def test_production_ray_job_mode(self, plugins: Plugins) -> None:
        job_id = run_plugin("my_plugin", "train", PARAMS, mode="job")
        assert isinstance(job_id, str)
        result = RayJobsApiExecutor().get_result(job_id)
        assert result["process"] != os.getpid()
        assert result["job_id"] == job_id
        assert _comparable(result) == _expected()

    @pytest.mark.parametrize("mode", ["task", "job"])
    def test_options_of_run_plugin_hold_in_ray_modes(self, plugins: Plugins, mode: Any) -> None:
        job_id = f"train-{os.getpid()}-{mode}"
        outcome = run_plugin("my_plugins.yolov8", "train", PARAMS, mode=mode, env={"API_KEY": "xxx"}, job_id=job_id)
        result = RayJobsApiExecutor().get_result(outcome) if mode == "job" else outcome
        assert result["job_id"] == job_id
        assert result["env"]["API_KEY"] == "xxx"
        assert result["env"]["BATCH_SIZE"] == "32"


def _comparable(result: dict[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("status", "params")}


def _expected() -> dict[str, Any]:
    return {"status": "done", "params": {"epochs": 2, "batch_size": 16, "sample_size": None}}

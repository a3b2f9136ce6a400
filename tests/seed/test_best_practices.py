"""Tests for the section "Best Practices" of the specification, and for task and job mode in "At a Glance"."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.patience import patience
from tests.seed.conftest import BY_ITS_OWN_NAMES, Names, Plugins

PARAMS = {"epochs": 2}


@pytest.fixture(autouse=True)
def _no_other_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


class TestDevelopmentWorkflow:
    def test_small_dataset_for_development(self, names: Names, plugins: Plugins) -> None:
        result = names.run_plugin("my_plugin", "train", {"epochs": 1, "batch_size": 4, "sample_size": 100})
        assert result["params"] == {"epochs": 1, "batch_size": 4, "sample_size": 100}

    def test_leverage_debug_mode(self, names: Names, plugins: Plugins) -> None:
        env = {"DEBUG": "true"}
        result = names.run_plugin("my_plugin", "train", PARAMS, env=env)
        assert result["env"]["DEBUG"] == "true"


class TestMigrationToRay:
    def test_during_development_local_mode(self, names: Names, plugins: Plugins) -> None:
        result = names.run_plugin("my_plugin", "train", PARAMS, mode="local")
        assert result["process"] == os.getpid()
        assert _comparable(result) == _expected()

    def test_after_testing_ray_actor_mode(
        self, names: Names, plugins: Plugins, capsys: pytest.CaptureFixture[str]
    ) -> None:
        result = names.run_plugin("my_plugin", "train", PARAMS, mode="task")
        assert result["process"] != os.getpid()
        assert _comparable(result) == _expected()
        assert "progress: 2/2 (100%)" in capsys.readouterr().out

    def test_production_ray_job_mode(self, names: Names, plugins: Plugins) -> None:
        job_id = names.run_plugin("my_plugin", "train", PARAMS, mode="job")
        assert isinstance(job_id, str)
        result = names.RayJobsApiExecutor().get_result(job_id)
        assert result["process"] != os.getpid()
        assert result["job_id"] == job_id
        assert _comparable(result) == _expected()

    @BY_ITS_OWN_NAMES
    def test_debugger_of_local_mode_is_still_pythons_own_after_ray_was_used(
        self, names: Names, plugins: Plugins
    ) -> None:
        names.run_plugin("my_plugin", "train", PARAMS, mode="task")
        assert not os.environ.get("PYTHONBREAKPOINT", "").startswith("ray.")

    @BY_ITS_OWN_NAMES
    @pytest.mark.parametrize("mode", ["task", "job"])
    def test_options_of_run_plugin_hold_in_ray_modes(self, names: Names, plugins: Plugins, mode: Any) -> None:
        job_id = f"train-{os.getpid()}-{mode}"
        options: dict[str, Any] = {"mode": mode, "env": {"API_KEY": "xxx"}, "job_id": job_id}
        outcome = names.run_plugin("my_plugins.yolov8", "train", PARAMS, **options)
        result = names.RayJobsApiExecutor().get_result(outcome) if mode == "job" else outcome
        assert result["job_id"] == job_id
        assert result["env"]["API_KEY"] == "xxx"
        assert result["env"]["BATCH_SIZE"] == "32"


@BY_ITS_OWN_NAMES
class TestAtAGlance:
    def test_a_task_starts_within_a_second_as_its_worker_is_used_again(self, names: Names, plugins: Plugins) -> None:
        with names.RayActorExecutor(plugin=plugins.path) as executor:
            first = executor.execute("train", PARAMS)
            began = time.monotonic()
            second = executor.execute("train", PARAMS)
            assert time.monotonic() - began < patience(1)
        assert first["process"] == second["process"] != os.getpid()

    def test_a_job_is_deferred_and_its_log_can_be_followed_while_it_runs(
        self, names: Names, plugins: Plugins, tmp_path: Path
    ) -> None:
        go_on = tmp_path / "go_on"
        job_id = names.run_plugin(str(plugins.path), "wait", {"file": str(go_on)}, mode="job")
        jobs = names.RayJobsApiExecutor()
        assert jobs.get_status(job_id) in ("PENDING", "RUNNING")
        seen = ""
        for part in jobs.stream_logs(job_id):
            seen += part
            if "waiting for" in seen:
                go_on.touch()
        assert "waiting for" in seen
        assert jobs.get_status(job_id) == "SUCCEEDED"
        assert jobs.get_result(job_id) == "it came"


def _comparable(result: dict[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("status", "params")}


def _expected() -> dict[str, Any]:
    return {"status": "done", "params": {"epochs": 2, "batch_size": 16, "sample_size": None}}

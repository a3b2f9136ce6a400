"""Task mode's own: the warm worker."""

from __future__ import annotations

import gc
import os
import warnings

import pytest

from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.ray import RayActorExecutor
from synapse_runtime.loggers import NullLogger
from tests.ray.conftest import PLUGIN


def test_the_same_worker_runs_one_call_after_another(task):
    assert task.execute("identify")["pid"] == task.execute("identify")["pid"]


def test_a_closed_executor_starts_a_new_worker_when_it_is_used_again():
    with RayActorExecutor(plugin=PLUGIN, logger=NullLogger()) as executor:
        first = executor.execute("identify")["pid"]
        executor.close()
        assert executor.execute("identify")["pid"] != first


def test_resources_that_nobody_has_are_told_at_once():
    executor = RayActorExecutor(plugin=PLUGIN, num_gpus=7, logger=NullLogger())
    with pytest.raises(ClusterError, match=r"num_gpus=7, but the cluster has 2 GPU"):
        executor.execute("echo")


@pytest.mark.parametrize("wrong", [{"num_cpus": -1}, {"num_gpus": "two"}, {"timeout": 0}])
def test_wrong_options_are_refused_by_the_constructor(wrong):
    with pytest.raises(ValueError, match="must be a"):
        RayActorExecutor(plugin=PLUGIN, **wrong)


def test_a_job_id_that_was_given_is_the_runs(worker):
    executor = RayActorExecutor(job_id="train-001", plugin=PLUGIN, worker=worker, logger=NullLogger())
    run = executor.run("identify")
    assert run.job_id == run.result["job_id"] == "train-001"


def test_a_worker_that_nobody_closes_leaves_no_open_files_and_no_warning():
    executor = RayActorExecutor(plugin=PLUGIN, logger=NullLogger())
    executor.execute("echo")
    before = len(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        del executor
        gc.collect()
    assert [str(warning.message) for warning in told if "/proc/" in str(warning.message)] == []
    assert len(os.listdir("/proc/self/fd")) <= before - 3

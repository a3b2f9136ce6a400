"""Task mode: the warm worker."""

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


def test_closed_executor_starts_a_new_worker_at_the_next_call():
    with RayActorExecutor(plugin=PLUGIN, logger=NullLogger()) as executor:
        first = executor.execute("identify")["pid"]
        executor.close()
        assert executor.execute("identify")["pid"] != first


def test_unavailable_resources_raise_an_error_with_a_hint_immediately():
    executor = RayActorExecutor(plugin=PLUGIN, num_gpus=7, logger=NullLogger())
    message = r"requested num_gpus=7, but the cluster has 2 GPUs in total .*; add --synapse-num-gpus=7 "
    with pytest.raises(ClusterError, match=message):
        executor.execute("echo")


@pytest.mark.parametrize("wrong", [{"num_cpus": -1}, {"num_gpus": "two"}, {"timeout": 0}])
def test_constructor_rejects_invalid_options(wrong):
    with pytest.raises(ValueError, match="must be a"):
        RayActorExecutor(plugin=PLUGIN, **wrong)


def test_given_job_id_is_used_by_the_run(worker):
    executor = RayActorExecutor(job_id="train-001", plugin=PLUGIN, worker=worker, logger=NullLogger())
    run = executor.run("identify")
    assert run.job_id == run.result["job_id"] == "train-001"


def test_worker_that_is_never_closed_leaves_no_open_files_and_no_warnings():
    executor = RayActorExecutor(plugin=PLUGIN, logger=NullLogger())
    executor.execute("echo")
    before = len(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del executor
        gc.collect()
    assert [str(warning.message) for warning in caught if "/proc/" in str(warning.message)] == []
    assert len(os.listdir("/proc/self/fd")) <= before - 3

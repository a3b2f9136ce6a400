"""One cluster for all tests here: the first executor that needs it starts it, and it ends with the process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor
from synapse_runtime.executors.ray.task import WarmWorker
from synapse_runtime.loggers import NullLogger

collect_ignore = ["remote_plugin"]  # its tests run on other machines
PLUGIN = Path(__file__).parent / "worker_plugin"


@pytest.fixture(scope="session")
def worker() -> Iterator[WarmWorker]:
    worker = WarmWorker()
    yield worker
    worker.close()


@pytest.fixture
def task(worker: WarmWorker) -> RayActorExecutor:
    return RayActorExecutor(plugin=PLUGIN, worker=worker, logger=NullLogger())


@pytest.fixture(scope="session")
def job() -> Iterator[RayJobsApiExecutor]:
    with RayJobsApiExecutor(plugin=PLUGIN, logger=NullLogger()) as executor:
        yield executor


@pytest.fixture(params=["task", "job"])
def executor(request: pytest.FixtureRequest) -> RayActorExecutor | RayJobsApiExecutor:
    return request.getfixturevalue(request.param)

"""Actions defined in a conftest, a plugin module whose assertions are rewritten, and jobs that several tests share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action

pytest.register_assert_rewrite("lab.rewritten_assert")

FACTOR = 2


class TimesOfConftest(BaseAction):
    def execute(self):
        return FACTOR * self.params["number"]


@action
def times_of_conftest(params, context):
    return FACTOR * params["number"]


@pytest.fixture
def actions_of_conftest():
    return TimesOfConftest, times_of_conftest


@pytest.fixture(scope="module")
def job_executor(request: pytest.FixtureRequest, reached: object) -> Iterator[Callable[..., Any]]:
    """Create executors for jobs that several tests of a module look at, on the cluster of this run."""
    from synapse_runtime.executors.ray import RayJobsApiExecutor
    from synapse_runtime.loggers import NullLogger

    made = []

    def create(*args: Any, **options: Any) -> RayJobsApiExecutor:
        address = request.config.getoption("synapse_ray_address")
        plugin = Path(__file__).parent
        made.append(RayJobsApiExecutor(*args, plugin=plugin, ray_address=address, logger=NullLogger(), **options))
        return made[-1]

    yield create
    for executor in made:
        executor.close()


@pytest.fixture(autouse=True)
def _record_mode(request):
    """Add a test's mode to its properties, as its id contains the mode only if it runs in several."""
    if "synapse_mode" in request.fixturenames:
        request.node.user_properties.append(("synapse_mode", request.getfixturevalue("synapse_mode")))
    elif "job_executor" in request.fixturenames:
        request.node.user_properties.append(("synapse_mode", "job"))

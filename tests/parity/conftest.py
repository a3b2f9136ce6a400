"""Actions defined in a conftest, and the registration of a plugin module whose assertions are rewritten."""

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


@pytest.fixture(autouse=True)
def _record_mode(request):
    """Add a test's mode to its properties, as its id contains the mode only if it runs in several."""
    if "synapse_mode" in request.fixturenames:
        request.node.user_properties.append(("synapse_mode", request.getfixturevalue("synapse_mode")))

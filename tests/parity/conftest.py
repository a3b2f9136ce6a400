"""An action of a conftest, for the test that runs one; and a module of the plugin whose assertions are rewritten."""

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
def _tells_its_mode(request):
    """Let the results say which mode a test ran in: its name does only where it runs in several."""
    if "synapse_mode" in request.fixturenames:
        request.node.user_properties.append(("synapse_mode", request.getfixturevalue("synapse_mode")))

import socket

import conftest
import helper_module

from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action


class OfTheTest(BaseAction):
    def execute(self):
        return helper_module.WORD, socket.gethostname()


@action
def of_the_test(params, context):
    raise LookupError("nothing found")


def test_action_class_of_a_test_runs_remotely_with_a_module_of_its_directory(synapse_executor):
    word, host = synapse_executor.execute(OfTheTest)
    assert word == "helper"
    assert host != socket.gethostname()


def test_action_function_of_a_conftest_runs_remotely(synapse_executor):
    place, host = synapse_executor.execute(conftest.of_the_conftest)
    assert place == "conftest"
    assert host != socket.gethostname()


def test_failure_in_the_plugin(synapse_executor):
    synapse_executor.execute("fail")


def test_failure_in_the_test(synapse_executor):
    synapse_executor.execute(of_the_test)

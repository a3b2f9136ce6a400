import socket

import beside
import conftest

from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action


class OfTheTest(BaseAction):
    def execute(self):
        return beside.WORD, socket.gethostname()


@action
def of_the_test(params, context):
    raise LookupError("no way on")


def test_a_class_of_the_test_travels_with_what_is_beside_it(synapse_executor):
    word, host = synapse_executor.execute(OfTheTest)
    assert word == "beside"
    assert host != socket.gethostname()


def test_a_function_of_the_conftest_travels(synapse_executor):
    place, host = synapse_executor.execute(conftest.of_the_conftest)
    assert place == "conftest"
    assert host != socket.gethostname()


def test_that_fails_in_the_plugin(synapse_executor):
    synapse_executor.execute("fail")


def test_that_fails_in_the_test(synapse_executor):
    synapse_executor.execute(of_the_test)

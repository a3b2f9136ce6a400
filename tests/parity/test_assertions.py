"""Row 7: an assertion in an action has the same message in every mode, including pytest's assertion rewriting."""

import sys

import pytest
from lab import plain_assert, rewritten_assert
from pydantic import BaseModel

from synapse_runtime.action import BaseAction
from synapse_runtime.errors import ExecutionError
from tests.parity.modes import as_a_job, not_as_jobs

pytestmark = not_as_jobs


class Params(BaseModel):
    left: object = None
    right: object = None


class Compare(BaseAction[Params]):
    def execute(self):
        left, right = self.params.left, self.params.right
        assert left == right


class Explain(BaseAction[Params]):
    def execute(self):
        def double(value):
            return value * 2

        assert double(self.params.left) in [self.params.right], f"100 % wrong with {self.params.left}"


class Both(BaseAction[Params]):
    def execute(self):
        assert self.params.left and self.params.left["a"] == self.params.right["a"]  # noqa: PT018


class Caught(BaseAction[Params]):
    def execute(self):
        try:
            assert self.params.left == self.params.right
        except AssertionError as error:
            self.log("caught", {"message": str(error)})
            raise ValueError("below") from error


def message_of(executor, action, left, right):
    with pytest.raises(ExecutionError) as caught:
        executor.execute(action, {"left": left, "right": right})
    cause = caught.value.__cause__
    assert type(cause) is AssertionError
    assert str(cause) in str(caught.value)
    return str(cause)


COMPARED = {
    "int": (1, 2),
    "list": ([1, 2, 3], [1, 5, 3]),
    "dict": ({"a": 1, "b": 2}, {"a": 1, "b": 3}),
    "str": ("one\ntwo % {x}\nthree", "one\n2\nthree"),
    "set": ({1, 2}, {2, 3}),
    "long": ([{"deep": list(range(50))}], [{"deep": list(range(1, 51))}]),
}


@pytest.mark.parametrize(("left", "right"), COMPARED.values(), ids=COMPARED)
def test_07_comparison_is_explained_as_by_pytest(synapse_executor, left, right):
    with pytest.raises(AssertionError) as here:
        assert left == right
    assert message_of(synapse_executor, Compare, left, right) == str(here.value)


@pytest.mark.parametrize(("left", "right"), COMPARED.values(), ids=COMPARED)
def test_07_comparison_in_a_module_of_the_plugin_is_explained_as_by_pytest(synapse_executor, left, right):
    with pytest.raises(AssertionError) as here:
        assert left == right
    assert message_of(synapse_executor, "lab.rewritten_assert:Compare", left, right) == str(here.value)


class CompareAll(BaseAction):
    def execute(self):
        problems = []
        for left, right in self.params["pairs"]:
            try:
                assert left == right
            except AssertionError as error:
                problems.append(error)
        raise ExceptionGroup("all", problems)


def explained_here():
    explained = []
    for left, right in COMPARED.values():
        with pytest.raises(AssertionError) as here:
            assert left == right
        explained.append(str(here.value))
    return explained


def test_07_comparisons_in_an_exception_group_are_explained_as_by_pytest(synapse_executor):
    group = synapse_executor.run(CompareAll, {"pairs": list(COMPARED.values())}).error.__cause__
    assert [str(error) for error in group.exceptions] == explained_here()


class CompareEverywhere(BaseAction):
    """Fails here, in a module that pytest rewrites, and in one that it does not."""

    def execute(self):
        problems = []
        for other in (CompareAll, plain_assert.Check, rewritten_assert.Check):
            try:
                other.execute(self)
            except Exception as error:  # noqa: BLE001 - a group or an assertion
                problems.append(error)
        raise ExceptionGroup("everywhere", problems)


@as_a_job
def test_07_comparisons_in_a_job_are_explained_as_by_pytest(synapse_executor):
    cause = synapse_executor.run(CompareEverywhere, {"pairs": list(COMPARED.values())}).error.__cause__
    compared, plain, rewritten = cause.exceptions
    assert [str(error) for error in compared.exceptions] == explained_here()
    check_modules(plain, rewritten)


def test_07_explanation_contains_the_assert_message_and_where_values_come_from(synapse_executor):
    message = message_of(synapse_executor, Explain, 2, 5)
    assert message.startswith("100 % wrong with 2\nassert 4 in [5]\n +  where 4 = ")
    either = message_of(synapse_executor, Both, {"a": [1]}, {"a": [2]})
    assert either.startswith("assert ({'a': [1]} and [1] == [2]\n")
    assert "At index 0 diff: 1 != 2" in either


def test_07_assertion_caught_by_the_action_is_readable_and_explained_in_the_chain(synapse_executor):
    run = synapse_executor.run(Caught, {"left": [1, 2], "right": [1, 3]})
    assert "\x1e" not in run.logs[0].data["message"]
    assert run.logs[0].data["message"].startswith("assert [1, 2] == [1, 3]")
    below = run.error.__cause__.__cause__
    assert "At index 1 diff: 2 != 3" in str(below)


class Unpicklable:
    def __init__(self):
        self.generator = (number for number in ())

    def __repr__(self):
        return "<unpicklable>"


class CompareOdd(BaseAction):
    def execute(self):
        assert Unpicklable() == 3


def test_07_operands_that_cannot_be_pickled_are_shown_as_text(synapse_executor):
    with pytest.raises(ExecutionError) as caught:
        synapse_executor.execute(CompareOdd)
    assert str(caught.value.__cause__).startswith("assert <unpicklable> == 3")


def test_07_registered_module_is_rewritten_and_a_plain_one_is_not(synapse_executor):
    names = ("lab.plain_assert:Check", "lab.rewritten_assert:Check")
    check_modules(*(synapse_executor.run(name).error.__cause__ for name in names))


def check_modules(plain, explained):
    assert (type(plain), str(plain)) == (AssertionError, "")
    assert str(explained).splitlines()[0] == "assert [1, 2] == [1, 3]"
    assert "At index 1 diff: 2 != 3" in str(explained)


def test_07_pytest_still_has_the_private_names_that_are_used():
    rewrite, util = sys.modules["_pytest.assertion.rewrite"], sys.modules["_pytest.assertion.util"]
    assert callable(rewrite._call_reprcompare)
    assert callable(rewrite._format_explanation)
    assert callable(util._reprcompare)
    assert callable(util.format_explanation)
    assert any(hasattr(finder, "_must_rewrite") for finder in sys.meta_path)

"""Tests of this plugin's actions in every mode, with and without synapse-sdk installed."""

import traceback
from pathlib import Path

import pytest
from cases import CASES, Case, log, message
from plainly import outcome_of

from synapse_runtime.errors import ExecutionError, ExecutionTimeout, ResultMismatchWarning, ValidationError

NAMED = [pytest.param(case, id=name, marks=pytest.mark.synapse(env=case.env)) for name, case in CASES.items()]


@pytest.mark.parametrize("case", NAMED)
def test_outcome_is_the_same_in_every_mode(case: Case, synapse_executor):
    run = synapse_executor.run(case.action, case.params)
    assert outcome_of(run) == case.outcome()


def test_decorated_function_gets_params_and_context(synapse_executor):
    run = synapse_executor.run("function", {"number": 4})
    assert outcome_of(run)["result"] == {"NumberResult": {"number": 8}}
    assert outcome_of(run)["events"] == [list(log("called", {"number": 4}))]


@pytest.mark.synapse(env={"GIVEN": "3", "LISTED": "a,b", "ON": "true"})
def test_environment_of_an_action(synapse_executor, synapse_plugin):
    run = synapse_executor.run("environment", {"any": "thing"})
    assert run.unwrap() == {
        "params": {"any": "thing"},
        "job id": run.job_id,
        "clients": [None] * 5,
        "language": None,
        "env is one": True,
        "from config": ["config", "config"],
        "given": [3, ["a", "b"], True, 0.5],
        "directory": "handwritten",
    }


@pytest.mark.parametrize(
    ("action", "params", "kinds"),
    [
        ("speak", {"count": 0}, {("count",): "greater_than_equal"}),
        ("function", {"number": "many"}, {("number",): "int_parsing"}),
        ("checked", {"project": 404}, {("name",): "missing", ("project",): "value_error"}),
    ],
    ids=["of_a_class", "of_a_function", "by_a_validator_that_uses_the_client"],
)
def test_invalid_params_are_rejected_before_the_action_starts(synapse_executor, action, params, kinds):
    run = synapse_executor.run(action, params)
    assert type(run.error) is ValidationError
    assert {problem["loc"]: problem["type"] for problem in run.error.errors()} == kinds
    assert run.events == []


def test_failure_is_raised_with_its_cause_and_the_plugins_lines(synapse_executor):
    with pytest.raises(ExecutionError, match="LookupError: no half") as caught:
        synapse_executor.execute("fail", {"number": 3})
    error = caught.value.__cause__
    assert (type(error), type(error.__cause__)) == (LookupError, ValueError)
    assert str(error.__cause__) == "3 is odd"
    (last,) = traceback.extract_tb(error.__cause__.__traceback__)[-1:]
    plugin = Path(__file__).parents[1] / "plugin"
    assert (Path(last.filename), last.name, last.line) == (
        plugin / "helpers.py",
        "half",
        'raise ValueError(f"{number} is odd")',
    )


def test_timeout_stops_a_hanging_action(synapse_executor):
    run = synapse_executor.run("sleep", timeout=1)
    assert type(run.error) is ExecutionTimeout
    assert "time.sleep(60)" in run.error.details
    assert outcome_of(run)["events"] == [list(message("asleep"))]


@pytest.mark.filterwarnings("ignore:Support for class-based `config`")  # of the SDK, when a worker first imports it
def test_invalid_result_is_returned_with_a_warning(synapse_executor):
    with pytest.warns(ResultMismatchWarning, match="NumberResult: number: Input should be a valid integer"):
        run = synapse_executor.run("other_result")
    assert run.result == {"number": "many"}
    assert [(event.level, event.name) for event in run.events] == [("warning", "result_mismatch")]

"""Tests of features that only synapse-sdk has: steps and the base class of training actions."""

import pytest
from cases import CASES_OF_SDK, Case
from plainly import outcome_of


@pytest.mark.parametrize("case", CASES_OF_SDK.values(), ids=CASES_OF_SDK)
@pytest.mark.synapse(mode=("local", "task", "job"))  # with a backend, the SDK's training uploads the model to it
def test_outcome_is_the_same_in_every_mode(case: Case, synapse_executor, tmp_path):
    assert outcome_of(synapse_executor.run(case.action, case.params_in(tmp_path))) == case.outcome()
    assert [path.read_text() for path in tmp_path.iterdir()] == (["0.75"] if case.action == "train" else [])

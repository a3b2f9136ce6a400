"""Tests of the SDK's own sample actions."""

from __future__ import annotations

import pytest
from synapse_sdk.plugins.testing import sample_actions as samples

from synapse_runtime.errors import ValidationError

CALLS = {
    samples.DownloadAction: (
        {"dataset": 7},
        samples.Step1Result(dataset=7, dataset_path="/tmp/datasets/7"),
        "Downloading dataset 7...",
    ),
    samples.ConvertAction: (
        {"dataset_path": "/tmp/datasets/7"},
        samples.Step2Result(dataset_path="/tmp/datasets/7", converted_path="/tmp/datasets/7/yolo"),
        "Converting dataset at /tmp/datasets/7...",
    ),
    samples.TrainAction: (
        {"converted_path": "/tmp/datasets/7/yolo"},
        samples.Step3Result(model_path="/tmp/models/best.pt", metrics={"mAP50": 0.85, "mAP50-95": 0.72}),
        "Training on /tmp/datasets/7/yolo for 5 epochs...",
    ),
}


@pytest.mark.parametrize("action", CALLS, ids=lambda action: action.__name__)
def test_sample_action_succeeds(action, synapse_executor):
    params, result, said = CALLS[action]
    run = synapse_executor.run(action, params)
    assert run.unwrap() == result
    assert type(run.result) is type(result)
    assert [(event.kind, event.name, event.level) for event in run.events] == [("message", said, "info")]


@pytest.mark.parametrize("action", CALLS, ids=lambda action: action.__name__)
def test_invalid_params_are_rejected(action, synapse_executor):
    params = dict.fromkeys(CALLS[action][0], ("not", "this"))
    run = synapse_executor.run(action, params)
    assert type(run.error) is ValidationError
    assert [problem["loc"] for problem in run.error.errors()] == [(name,) for name in params]
    assert run.events == []

"""The action `evaluate`: its counts, and its error for missing weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plugin.digits import load_split
from plugin.evaluate import EvaluateResult, evaluate
from plugin.train import TrainResult
from synapse_runtime.errors import ExecutionError
from synapse_runtime.executors.base import Executor


def test_confusion_counts_every_held_out_digit(synapse_executor: Executor, trained: TrainResult) -> None:
    result = synapse_executor.execute(evaluate, {"weights": trained.weights})

    assert isinstance(result, EvaluateResult)
    assert result.accuracy == pytest.approx(trained.accuracy)
    confusion = np.array(result.confusion)
    assert confusion.shape == (10, 10)
    assert confusion.sum() == result.images == 360
    assert confusion.sum(axis=1).tolist() == np.bincount(load_split().held_out.labels).tolist()
    assert confusion.trace() / confusion.sum() == pytest.approx(result.accuracy)


def test_missing_weights_error_names_their_path(synapse_executor: Executor, tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="run the action 'train' first") as caught:
        synapse_executor.execute("evaluate", {"weights": tmp_path / "nowhere.npz"})

    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert str(tmp_path / "nowhere.npz") in str(caught.value.__cause__)

"""The action `train`: accuracy, reported events, written weights, and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugin.train import TrainAction, TrainResult
from synapse_runtime.environment import PluginEnvironment
from synapse_runtime.errors import ValidationError
from synapse_runtime.executors.base import Executor


def test_training_learns_digits(synapse_executor: Executor, tmp_path: Path) -> None:
    result = synapse_executor.execute(TrainAction, {"output_dir": tmp_path})

    assert isinstance(result, TrainResult)
    assert result.accuracy > 0.93
    assert result.epochs == 20
    assert result.weights == tmp_path / "digits.npz"
    with np.load(result.weights) as arrays:
        assert {name: array.shape for name, array in arrays.items()} == {"weights": (64, 10), "bias": (10,)}


def test_training_reports_every_epoch(synapse_executor: Executor, tmp_path: Path) -> None:
    run = synapse_executor.run("train", {"epochs": 5, "output_dir": tmp_path})

    losses = [metrics["loss"] for metrics in run.metrics["training"].history]
    assert len(losses) == 5
    assert losses == sorted(losses, reverse=True)
    assert run.metrics["training"] == {"loss": run.result.loss, "accuracy": run.result.accuracy}
    assert run.progress == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert [event.name for event in run.logs] == ["epoch_complete"] * 5 + ["weights_written"]
    assert run.logs[-1].file == str(run.result.weights)


def test_same_seed_gives_same_weights(synapse_executor: Executor, tmp_path: Path) -> None:
    def weights(seed: int, directory: str) -> np.ndarray:
        params = {"epochs": 1, "seed": seed, "output_dir": tmp_path / directory}
        with np.load(synapse_executor.execute("train", params).weights) as arrays:
            return arrays["weights"]

    first = weights(seed=1, directory="first")

    assert np.array_equal(first, weights(seed=1, directory="again"))
    assert not np.array_equal(first, weights(seed=2, directory="other"))


def test_batch_size_defaults_to_config(
    synapse_executor: Executor, plugin_env: PluginEnvironment, tmp_path: Path
) -> None:
    result = synapse_executor.execute("train", {"epochs": 1, "output_dir": tmp_path})

    assert result.batch_size == plugin_env.get_int("BATCH_SIZE") == 16


@pytest.mark.synapse(env={"BATCH_SIZE": "64"})
def test_marker_overrides_batch_size(synapse_executor: Executor, tmp_path: Path) -> None:
    result = synapse_executor.execute("train", {"epochs": 1, "output_dir": tmp_path})

    assert result.batch_size == 64


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("learning_rate", -0.1), ("batchsize", 8)])
def test_invalid_param_is_named_and_nothing_is_written(
    synapse_executor: Executor, tmp_path: Path, name: str, value: Any
) -> None:
    with pytest.raises(ValidationError, match=name) as caught:
        synapse_executor.execute("train", {name: value, "output_dir": tmp_path / "weights"})

    assert [problem["loc"] for problem in caught.value.errors()] == [(name,)]
    assert list(tmp_path.iterdir()) == []

"""The action `infer`: both image formats, and weights from a param or from WEIGHTS_DIR."""

from __future__ import annotations

from typing import Any

import pytest

from plugin.digits import Digits, load_split
from plugin.infer import InferResult
from plugin.train import TrainResult
from synapse_runtime.errors import ValidationError
from synapse_runtime.executors.base import Executor


@pytest.fixture
def unseen() -> Digits:
    """Ten held-out digits."""
    images, labels = load_split().held_out
    return Digits(images[:10], labels[:10])


def test_unseen_digits_are_classified(synapse_executor: Executor, trained: TrainResult, unseen: Digits) -> None:
    result = synapse_executor.execute("infer", {"input": unseen.images.tolist(), "weights": trained.weights})

    assert isinstance(result, InferResult)
    assert result.labels == unseen.labels.tolist()
    assert [sum(row) for row in result.probabilities] == pytest.approx([1.0] * 10)
    assert [row.index(max(row)) for row in result.probabilities] == result.labels


class TestWeightsFromEnvironment:
    @pytest.fixture
    def plugin_env(self, trained: TrainResult) -> dict[str, Any]:
        return {"WEIGHTS_DIR": str(trained.weights.parent)}

    def test_square_and_flat_images_give_the_same_result(self, synapse_executor: Executor, unseen: Digits) -> None:
        flat = unseen.images[0]
        square = flat.reshape(8, 8)

        result = synapse_executor.execute("plugin.infer:InferAction", {"input": [flat.tolist(), square.tolist()]})

        assert result.labels == [unseen.labels[0]] * 2
        assert result.probabilities[0] == pytest.approx(result.probabilities[1])


@pytest.mark.parametrize(
    "image",
    [
        pytest.param([0.0] * 63, id="missing pixel"),
        pytest.param([[0.0] * 8] * 7, id="missing row"),
        pytest.param([17.0] * 64, id="pixel out of range"),
    ],
)
def test_invalid_image_is_rejected(synapse_executor: Executor, image: Any) -> None:
    with pytest.raises(ValidationError, match=r"input\.0"):
        synapse_executor.execute("infer", {"input": [image]})

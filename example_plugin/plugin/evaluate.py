"""The action `evaluate`: accuracy and confusion matrix of trained weights on held-out digits."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from plugin.digits import load_split
from plugin.model import DigitClassifier, accuracy, confusion_matrix
from plugin.weights import file_to_read
from synapse_runtime.context import RuntimeContext
from synapse_runtime.decorators import action


class EvaluateParams(BaseModel):
    """The params of `evaluate`.

    Attributes:
        weights: A file written by `train`. Default: the one in the directory WEIGHTS_DIR.
    """

    model_config = ConfigDict(extra="forbid")

    weights: Path | None = None


class EvaluateResult(BaseModel):
    """The result of `evaluate`.

    Attributes:
        accuracy: Fraction of the held-out digits that are classified correctly, from 0 to 1.
        confusion: 10 rows of 10 counts: row i, column j is the number of images of digit i classified as j.
        images: The number of held-out digits.
    """

    accuracy: float
    confusion: list[list[int]]
    images: int


@action(params=EvaluateParams, result=EvaluateResult)
def evaluate(params: EvaluateParams, context: RuntimeContext) -> EvaluateResult:
    """Classify the held-out digits and compare the predictions with their labels.

    Raises:
        FileNotFoundError: The weights file does not exist.
        ValueError: The file does not contain weights of this classifier.
    """
    model = DigitClassifier.load(file_to_read(params.weights, context.env))
    images, labels = load_split().held_out
    predicted = model.predict(images)
    result = EvaluateResult(
        accuracy=accuracy(labels, predicted),
        confusion=confusion_matrix(labels, predicted).tolist(),
        images=len(labels),
    )
    context.set_metrics({"accuracy": result.accuracy}, step="evaluation")
    context.log_message(
        "{correct} of {images} digits classified correctly",
        correct=int((labels == predicted).sum()),
        images=len(labels),
    )
    return result

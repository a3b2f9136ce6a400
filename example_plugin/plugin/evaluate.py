"""The action `evaluate`: how well trained weights read digits that training has not seen."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from plugin.digits import load_split
from plugin.model import DigitClassifier, accuracy, confusion_matrix
from plugin.weights import file_to_read
from synapse_runtime.context import RuntimeContext
from synapse_runtime.decorators import action


class EvaluateParams(BaseModel):
    """What `evaluate` can be told.

    Attributes:
        weights: A file that `train` wrote; by default the one in WEIGHTS_DIR of the environment.
    """

    model_config = ConfigDict(extra="forbid")

    weights: Path | None = None


class EvaluateResult(BaseModel):
    """What `evaluate` returns.

    Attributes:
        accuracy: Share of the held-out digits that are read right, from 0 to 1.
        confusion: 10 rows of 10 counts: in row i, column j, how many images of the digit i were taken for j.
        images: How many digits were held out.
    """

    accuracy: float
    confusion: list[list[int]]
    images: int


@action(params=EvaluateParams, result=EvaluateResult)
def evaluate(params: EvaluateParams, context: RuntimeContext) -> EvaluateResult:
    """Read the held-out digits and compare with what they are.

    Raises:
        FileNotFoundError: There are no such weights.
        ValueError: The file holds something else.
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
        "{right} of {images} digits read right", right=int((labels == predicted).sum()), images=len(labels)
    )
    return result

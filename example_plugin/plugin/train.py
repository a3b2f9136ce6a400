"""The action `train`: trains the classifier and writes its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from plugin.digits import Split, load_split
from plugin.model import DigitClassifier, accuracy
from plugin.weights import file_to_write
from synapse_runtime.action import BaseAction

_STEP = "training"


class TrainParams(BaseModel):
    """The params of `train`.

    Attributes:
        epochs: The number of passes over all images.
        learning_rate: The step size, as a factor of the loss's gradient.
        batch_size: The number of images per step. Default: the environment variable BATCH_SIZE.
        seed: Seed for the order of the images. The same seed gives the same weights.
        output_dir: The directory to write the weights to. Default: the environment variable WEIGHTS_DIR.
    """

    model_config = ConfigDict(extra="forbid")

    epochs: int = Field(default=20, ge=1)
    learning_rate: float = Field(default=0.2, gt=0, allow_inf_nan=False)
    batch_size: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    output_dir: Path | None = None


class TrainResult(BaseModel):
    """The result of `train`.

    Attributes:
        weights: The absolute path of the weights file.
        accuracy: Fraction of the held-out digits that are classified correctly, from 0 to 1.
        loss: Mean cross-entropy on the training images after the last epoch, in nats per image.
        epochs: The number of epochs.
        batch_size: The number of images per step.
    """

    weights: Path
    accuracy: float
    loss: float
    epochs: int
    batch_size: int


class TrainAction(BaseAction[TrainParams]):
    """Trains softmax regression on the digits, and reports metrics after each epoch."""

    action_name = "train"
    result_model = TrainResult

    def execute(self) -> TrainResult:
        """Train the classifier and write its weights.

        Raises:
            ValueError: The environment variable BATCH_SIZE is not a positive integer.
        """
        path = file_to_write(self.params.output_dir, self.ctx.env)
        batch_size = self._batch_size()
        digits = load_split()
        model = DigitClassifier.untrained()
        rng = np.random.default_rng(self.params.seed)
        for epoch in range(1, self.params.epochs + 1):
            model.train_epoch(*digits.training, batch_size=batch_size, learning_rate=self.params.learning_rate, rng=rng)
            self._report(epoch, model, digits)
        model.save(path)
        self.log("weights_written", file=str(path))
        return TrainResult(
            weights=path,
            accuracy=_accuracy(model, digits),
            loss=model.loss(*digits.training),
            epochs=self.params.epochs,
            batch_size=batch_size,
        )

    def _batch_size(self) -> int:
        if self.params.batch_size is not None:
            return self.params.batch_size
        batch_size = self.ctx.env.get_int("BATCH_SIZE", default=32)
        if batch_size < 1:
            raise ValueError(f"BATCH_SIZE must be at least 1, got {batch_size}")
        return batch_size

    def _report(self, epoch: int, model: DigitClassifier, digits: Split) -> None:
        metrics = {"loss": model.loss(*digits.training), "accuracy": _accuracy(model, digits)}
        self.set_metrics(metrics, step=_STEP)
        self.set_progress(epoch, self.params.epochs, step=_STEP)
        self.log("epoch_complete", {"epoch": epoch, **metrics})


def _accuracy(model: DigitClassifier, digits: Split) -> float:
    return accuracy(digits.held_out.labels, model.predict(digits.held_out.images))

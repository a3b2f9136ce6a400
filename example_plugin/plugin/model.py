"""The classifier: softmax regression from pixels to digits, in NumPy; and how good its predictions are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

SIDE = 8
PIXELS = SIDE * SIDE
CLASSES = 10
INK = 16.0

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass
class DigitClassifier:
    """Tells which digit an image shows. Images are (n, 64), pixels row by row, from 0 to 16.

    Attributes:
        weights: (64, 10): how much each pixel speaks for each digit.
        bias: (10,): how much speaks for each digit beforehand.
    """

    weights: Floats
    bias: Floats

    @classmethod
    def untrained(cls) -> DigitClassifier:
        """Return a classifier to which all digits are equally likely."""
        return cls(np.zeros((PIXELS, CLASSES)), np.zeros(CLASSES))

    @classmethod
    def load(cls, path: Path) -> DigitClassifier:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file holds something else.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"there are no weights at {path}: run the action 'train' first, or name its file in the param 'weights'"
            )
        try:
            with np.load(path, allow_pickle=False) as arrays:
                model = cls(arrays["weights"], arrays["bias"])
        except (EOFError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} was not written by the action 'train'") from error
        if model.weights.shape != (PIXELS, CLASSES) or model.bias.shape != (CLASSES,):
            raise ValueError(f"{path} holds the weights of another classifier: {model.weights.shape}")
        return model

    def save(self, path: Path) -> None:
        """Write the weights to an `.npz` file; its directory is made where missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, weights=self.weights, bias=self.bias)

    def train_epoch(
        self, images: Floats, labels: Labels, *, batch_size: int, learning_rate: float, rng: np.random.Generator
    ) -> None:
        """Go through all images once, in random order, and learn a little from each batch.

        Args:
            images: (n, 64).
            labels: (n,): the digits on them.
            batch_size: Images per step.
            learning_rate: Length of a step, as a factor of the loss's gradient.
            rng: Where the order comes from.
        """
        order = rng.permutation(len(labels))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            self._step(images[batch], labels[batch], learning_rate)

    def probabilities(self, images: Floats) -> Floats:
        """Return how likely each image shows each digit: (n, 10), rows sum to 1."""
        return np.exp(self._log_probabilities(images))

    def predict(self, images: Floats) -> Labels:
        """Return the likeliest digit of each image: (n,)."""
        digits: Labels = self._scores(images).argmax(axis=1)
        return digits

    def loss(self, images: Floats, labels: Labels) -> float:
        """Return the mean cross-entropy, in nats per image."""
        return float(-self._log_probabilities(images)[np.arange(len(labels)), labels].mean())

    def _step(self, images: Floats, labels: Labels, learning_rate: float) -> None:
        error = self.probabilities(images) - np.eye(CLASSES)[labels]  # the loss's gradient by the scores
        self.weights -= learning_rate * (images / INK).T @ error / len(labels)
        self.bias -= learning_rate * error.mean(axis=0)

    def _log_probabilities(self, images: Floats) -> Floats:
        scores = self._scores(images)
        scores -= scores.max(axis=1, keepdims=True)  # so that no exponential overflows
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return scores

    def _scores(self, images: Floats) -> Floats:
        return images / INK @ self.weights + self.bias


def accuracy(labels: Labels, predicted: Labels) -> float:
    """Return the share of predictions that are right, from 0 to 1."""
    return float((labels == predicted).mean())


def confusion_matrix(labels: Labels, predicted: Labels) -> Labels:
    """Return (10, 10) counts: at [i, j] how many images of the digit i were taken for j."""
    counts = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts

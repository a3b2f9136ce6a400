"""The classifier: softmax regression from pixels to digits in NumPy, and metrics for its predictions."""

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
    """Classifies images of digits. Images are arrays (n, 64): pixels row by row, from 0 to 16.

    Attributes:
        weights: (64, 10): the weight of each pixel for each digit.
        bias: (10,): the bias of each digit.
    """

    weights: Floats
    bias: Floats

    @classmethod
    def untrained(cls) -> DigitClassifier:
        """Return a classifier for which all digits are equally likely."""
        return cls(np.zeros((PIXELS, CLASSES)), np.zeros(CLASSES))

    @classmethod
    def load(cls, path: Path) -> DigitClassifier:
        """Load a file written by `save`.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file does not contain weights of this classifier.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"weights file {path} does not exist; run the action 'train' first, or pass its file as param 'weights'"
            )
        try:
            with np.load(path, allow_pickle=False) as arrays:
                model = cls(arrays["weights"], arrays["bias"])
        except (EOFError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} was not written by the action 'train'") from error
        if model.weights.shape != (PIXELS, CLASSES) or model.bias.shape != (CLASSES,):
            raise ValueError(f"{path} contains weights of shape {model.weights.shape}, expected {(PIXELS, CLASSES)}")
        return model

    def save(self, path: Path) -> None:
        """Write the weights to an `.npz` file, and create its directory if it does not exist."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, weights=self.weights, bias=self.bias)

    def train_epoch(
        self, images: Floats, labels: Labels, *, batch_size: int, learning_rate: float, rng: np.random.Generator
    ) -> None:
        """Train for one epoch: iterate over all images once, in random order, in batches.

        Args:
            images: (n, 64).
            labels: (n,): their digits.
            batch_size: The number of images per step.
            learning_rate: The step size, as a factor of the loss's gradient.
            rng: The source of the random order.
        """
        order = rng.permutation(len(labels))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            self._step(images[batch], labels[batch], learning_rate)

    def probabilities(self, images: Floats) -> Floats:
        """Return the probability of each digit for each image: (n, 10), rows sum to 1."""
        return np.exp(self._log_probabilities(images))

    def predict(self, images: Floats) -> Labels:
        """Return the most likely digit of each image: (n,)."""
        digits: Labels = self._scores(images).argmax(axis=1)
        return digits

    def loss(self, images: Floats, labels: Labels) -> float:
        """Return the mean cross-entropy, in nats per image."""
        return float(-self._log_probabilities(images)[np.arange(len(labels)), labels].mean())

    def _step(self, images: Floats, labels: Labels, learning_rate: float) -> None:
        error = (
            self.probabilities(images) - np.eye(CLASSES)[labels]
        )  # the gradient of the loss with respect to the scores
        self.weights -= learning_rate * (images / INK).T @ error / len(labels)
        self.bias -= learning_rate * error.mean(axis=0)

    def _log_probabilities(self, images: Floats) -> Floats:
        scores = self._scores(images)
        scores -= scores.max(axis=1, keepdims=True)  # avoids overflow of the exponential
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return scores

    def _scores(self, images: Floats) -> Floats:
        return images / INK @ self.weights + self.bias


def accuracy(labels: Labels, predicted: Labels) -> float:
    """Return the fraction of correct predictions, from 0 to 1."""
    return float((labels == predicted).mean())


def confusion_matrix(labels: Labels, predicted: Labels) -> Labels:
    """Return counts (10, 10): [i, j] is the number of images of digit i classified as j."""
    counts = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts

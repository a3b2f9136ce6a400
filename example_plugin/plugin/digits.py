"""The data: the 1,797 handwritten digits of scikit-learn, split into training and held-out digits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_HELD_OUT = 360


class Digits(NamedTuple):
    """Images and their labels.

    Attributes:
        images: (n, 64), float64: 8 x 8 pixels row by row, from 0 for paper to 16 for ink.
        labels: (n,), int64: the digit on each image, 0 to 9.
    """

    images: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]


class Split(NamedTuple):
    """All digits, split into two disjoint parts."""

    training: Digits
    held_out: Digits


def load_split() -> Split:
    """Return 1,437 digits for training and 360 held-out ones; the split and the order are always the same."""
    # Imported here since it takes a second and not every call needs it.
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed=0).permutation(len(labels))
    held_out, training = order[:_HELD_OUT], order[_HELD_OUT:]
    return Split(
        training=Digits(images[training], labels[training]),
        held_out=Digits(images[held_out], labels[held_out]),
    )

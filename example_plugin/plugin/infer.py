"""The action `infer`: classifies the digits on given images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from plugin.model import INK, PIXELS, SIDE, DigitClassifier
from plugin.weights import file_to_read
from synapse_runtime.action import BaseAction


def _row_by_row(image: object) -> object:
    """Flatten 8 rows of 8 into one list of 64; return anything else unchanged."""
    if not isinstance(image, list) or len(image) != SIDE:
        return image
    if not all(isinstance(row, list) and len(row) == SIDE for row in image):
        return image
    return [pixel for row in image for pixel in row]


Pixel = Annotated[float, Field(ge=0, le=INK)]
Image = Annotated[list[Pixel], Field(min_length=PIXELS, max_length=PIXELS), BeforeValidator(_row_by_row)]


class InferParams(BaseModel):
    """The params of `infer`.

    Attributes:
        input: One or more images: 8 rows of 8 numbers, or the 64 numbers row by row, from 0 for paper to 16 for ink.
        weights: A file written by `train`. Default: the one in the directory WEIGHTS_DIR.
    """

    model_config = ConfigDict(extra="forbid")

    input: Annotated[list[Image], Field(min_length=1)]
    weights: Path | None = None


class InferResult(BaseModel):
    """The result of `infer`.

    Attributes:
        labels: The most likely digit of each image, 0 to 9, in the order of the input.
        probabilities: For each image 10 numbers that sum to 1: the probability of each digit.
    """

    labels: list[int]
    probabilities: list[list[float]]


class InferAction(BaseAction[InferParams]):
    """Classifies digits with trained weights."""

    action_name = "infer"
    result_model = InferResult

    def execute(self) -> InferResult:
        """Classify the images.

        Raises:
            FileNotFoundError: The weights file does not exist.
            ValueError: The file does not contain weights of this classifier.
        """
        model = DigitClassifier.load(file_to_read(self.params.weights, self.ctx.env))
        images = np.array(self.params.input)
        return InferResult(
            labels=model.predict(images).tolist(),
            probabilities=model.probabilities(images).tolist(),
        )

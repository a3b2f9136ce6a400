"""The action `infer`: reads the digits on given images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from plugin.model import INK, PIXELS, SIDE, DigitClassifier
from plugin.weights import file_to_read
from synapse_runtime.action import BaseAction


def _row_by_row(image: object) -> object:
    """Return 8 rows of 8 as one list of 64, and anything else as it is."""
    if not isinstance(image, list) or len(image) != SIDE:
        return image
    if not all(isinstance(row, list) and len(row) == SIDE for row in image):
        return image
    return [pixel for row in image for pixel in row]


Pixel = Annotated[float, Field(ge=0, le=INK)]
Image = Annotated[list[Pixel], Field(min_length=PIXELS, max_length=PIXELS), BeforeValidator(_row_by_row)]


class InferParams(BaseModel):
    """What `infer` needs.

    Attributes:
        input: One or more images: 8 rows of 8 numbers, or the 64 numbers row by row, from 0 for paper to 16 for ink.
        weights: A file that `train` wrote; by default the one in WEIGHTS_DIR of the environment.
    """

    model_config = ConfigDict(extra="forbid")

    input: Annotated[list[Image], Field(min_length=1)]
    weights: Path | None = None


class InferResult(BaseModel):
    """What `infer` returns.

    Attributes:
        labels: The likeliest digit of each image, 0 to 9, in the order of the input.
        probabilities: For each image 10 numbers that sum to 1: how likely it shows each digit.
    """

    labels: list[int]
    probabilities: list[list[float]]


class InferAction(BaseAction[InferParams]):
    """Reads digits with trained weights."""

    action_name = "infer"
    result_model = InferResult

    def execute(self) -> InferResult:
        """Read the digits.

        Raises:
            FileNotFoundError: There are no such weights.
            ValueError: The file holds something else.
        """
        model = DigitClassifier.load(file_to_read(self.params.weights, self.ctx.env))
        images = np.array(self.params.input)
        return InferResult(
            labels=model.predict(images).tolist(),
            probabilities=model.probabilities(images).tolist(),
        )

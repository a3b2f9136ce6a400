"""The action `export`: predictions as CSV, and the confusion matrix as an image."""

from __future__ import annotations

import csv
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from plugin.digits import Digits, load_split
from plugin.model import CLASSES, DigitClassifier, Labels, confusion_matrix
from plugin.weights import file_to_read
from synapse_runtime.action import BaseAction

COLUMNS = ("image", "label", "predicted", "probability")


class ExportParams(BaseModel):
    """The params of `export`.

    Attributes:
        weights: A file written by `train`. Default: the one in the directory WEIGHTS_DIR.
        output_dir: The directory to write to; created if it does not exist.
    """

    model_config = ConfigDict(extra="forbid")

    weights: Path | None = None
    output_dir: Path = Path("exported")


class ExportResult(BaseModel):
    """The result of `export`.

    Attributes:
        predictions: CSV file with one row per held-out digit: its index, label, prediction, and the probability of the
            prediction, from 0 to 1.
        confusion: PNG file with the confusion matrix.
    """

    predictions: Path
    confusion: Path


class ExportAction(BaseAction[ExportParams]):
    """Classifies the held-out digits with trained weights and writes the results."""

    action_name = "export"
    result_model = ExportResult

    def execute(self) -> ExportResult:
        """Write both files.

        Raises:
            FileNotFoundError: The weights file does not exist.
            ValueError: The file does not contain weights of this classifier.
        """
        model = DigitClassifier.load(file_to_read(self.params.weights, self.ctx.env))
        digits = load_split().held_out
        directory = self.params.output_dir.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        result = ExportResult(predictions=directory / "predictions.csv", confusion=directory / "confusion.png")
        _write_predictions(result.predictions, model, digits)
        self.log("file_written", file=str(result.predictions))
        _draw_confusion(result.confusion, confusion_matrix(digits.labels, model.predict(digits.images)))
        self.log("file_written", file=str(result.confusion))
        return result


def _write_predictions(path: Path, model: DigitClassifier, digits: Digits) -> None:
    probabilities = model.probabilities(digits.images)
    predicted = probabilities.argmax(axis=1)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for image, (label, guess) in enumerate(zip(digits.labels, predicted, strict=True)):
            writer.writerow([image, label, guess, f"{probabilities[image, guess]:.4f}"])


def _draw_confusion(path: Path, counts: Labels) -> None:
    # Imported here since it is slow to import and only needed here. Figures created without pyplot need no display and
    # share no state, so any worker can draw them.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="prediction", ylabel="label", title="Held-out digits")
    axes.imshow(counts, cmap="Blues")
    axes.set_xticks(range(CLASSES))
    axes.set_yticks(range(CLASSES))
    for label, row in enumerate(counts):
        for guess, count in enumerate(row):
            color = "white" if count > counts.max() / 2 else "black"
            axes.text(guess, label, str(count), ha="center", va="center", color=color)
    figure.savefig(path)

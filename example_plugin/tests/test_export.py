"""The action `export`: a CSV file and an image."""

from __future__ import annotations

import csv
import struct
from pathlib import Path

import pytest

from plugin.export import COLUMNS, ExportResult
from plugin.train import TrainResult
from synapse_runtime.executors.base import Executor

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def test_export_writes_predictions_and_confusion(
    synapse_executor: Executor, trained: TrainResult, tmp_path: Path
) -> None:
    result = synapse_executor.execute("export", {"weights": trained.weights, "output_dir": tmp_path / "report"})

    assert isinstance(result, ExportResult)
    assert sorted((tmp_path / "report").iterdir()) == sorted([result.predictions, result.confusion])
    rows = _rows(result.predictions)
    assert len(rows) == 360
    assert tuple(rows[0]) == COLUMNS
    correct = sum(row["label"] == row["predicted"] for row in rows)
    assert correct / len(rows) == pytest.approx(trained.accuracy)
    assert all(0 < float(row["probability"]) <= 1 for row in rows)
    assert _png_size(result.confusion) == (500, 500)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _png_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels, read from the file's header."""
    data = path.read_bytes()
    assert data.startswith(PNG_SIGNATURE)
    width, height = struct.unpack(">II", data[16:24])
    return width, height

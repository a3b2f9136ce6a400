"""Trained weights for tests that need them."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.train import TrainResult
from synapse_runtime.executors.local import LocalExecutor

PLUGIN = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """Weights trained once per session, always in local mode, so that they are the same for every mode."""
    executor = LocalExecutor(plugin=PLUGIN)
    return executor.execute("train", {"output_dir": tmp_path_factory.mktemp("weights")})

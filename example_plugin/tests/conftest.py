"""Weights for the tests of the actions that need some."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.train import TrainResult
from synapse_runtime.executors.local import LocalExecutor

PLUGIN = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """Trained once, in this process whatever the mode: which weights a test reads does not depend on it."""
    executor = LocalExecutor(plugin=PLUGIN)
    return executor.execute("train", {"output_dir": tmp_path_factory.mktemp("weights")})

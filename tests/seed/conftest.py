"""The plugins that the text names: `my_plugins.yolov8`, `my_plugin`, and one with a directory of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.processes import Synapse, synapse_in

TRAIN = """\
import os
import threading

from pydantic import BaseModel, Field

from synapse_runtime.action import BaseAction


class TrainParams(BaseModel):
    epochs: int = Field(1, ge=1)
    batch_size: int = 16
    sample_size: int | None = None


class TrainAction(BaseAction[TrainParams]):
    def execute(self):
        for epoch in range(self.params.epochs):
            self.ctx.set_progress(epoch + 1, self.params.epochs)
            self.ctx.log("epoch_complete", {"epoch": epoch, "loss": 0.1})
        self.ctx.set_metrics({"final_loss": 0.05}, "training")
        names = ("API_KEY", "DEBUG", "BATCH_SIZE", "LEARNING_RATE", "OUTSIDE")
        return {
            "status": "done",
            "params": self.params.model_dump(),
            "env": {name: self.ctx.env.get(name) for name in names if name in self.ctx.env},
            "job_id": self.ctx.job_id,
            "process": os.getpid(),
            "thread": threading.get_ident(),
        }


class FailAction(BaseAction[TrainParams]):
    def execute(self):
        raise RuntimeError("out of memory")
"""

INFER = """\
from synapse_runtime.decorators import action


@action
def infer(params, context):
    return params
"""

DEBUG = """\
from my_plugin.train import TrainParams

from synapse_runtime.action import BaseAction


class StopAction(BaseAction[TrainParams]):
    def execute(self):
        # breakpoint() works
        breakpoint()

        # Or use pdb directly
        import pdb; pdb.set_trace()

        return {'status': 'done'}
"""

CONFIG = """\
code: {code}
name: My Plugin

env:
  API_KEY: your-api-key
  DEBUG: "true"
  BATCH_SIZE: "32"
  LEARNING_RATE: "0.001"

actions:
  train: {{entrypoint: "{package}train:TrainAction"}}
  fail: {{entrypoint: "{package}train:FailAction"}}
  infer: {{entrypoint: "{package}infer:infer"}}
"""


class Plugins(NamedTuple):
    """Where the plugins are. `root` is on `sys.path`, so that `my_plugin` and `my_plugins.yolov8` can be imported."""

    root: Path
    path: Path
    config: Path


@pytest.fixture(scope="session")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugins]:
    """The plugins, on disk and importable."""
    root = tmp_path_factory.mktemp("seed")
    for package in ("my_plugins/yolov8", "my_plugin", "elsewhere/plugin"):
        directory = root / package
        directory.mkdir(parents=True)
        for name, source in {"__init__": "", "train": TRAIN, "infer": INFER, "debug": DEBUG}.items():
            (directory / f"{name}.py").write_text(source)
    (root / "my_plugins" / "__init__.py").touch()
    (root / "my_plugins" / "yolov8" / "config.yaml").write_text(CONFIG.format(code="yolov8", package=""))
    (root / "my_plugin" / "__init__.py").write_text("from my_plugin.train import FailAction, TrainAction\n")
    (root / "my_plugin" / "actions.py").write_text("from my_plugin.train import TrainAction\n")
    (root / "elsewhere" / "config.yaml").write_text(CONFIG.format(code="my-plugin", package="plugin."))
    sys.path.insert(0, str(root))
    yield Plugins(root, root / "elsewhere", root / "elsewhere" / "config.yaml")
    sys.path.remove(str(root))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("my_plugin", "my_plugins")]:
        del sys.modules[name]


@pytest.fixture
def synapse(plugins: Plugins) -> Iterator[Synapse]:
    """The command, in the directory of a plugin."""
    with synapse_in(plugins.path) as command:
        yield command

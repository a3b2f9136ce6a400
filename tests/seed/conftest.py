"""The plugins that the specification names: `my_plugins.yolov8`, `my_plugin`, and one in a separate directory.

Plugins and calls use two sets of import names: those of this package, and those that the specification uses.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.cli.processes import Synapse, synapse_in

OURS, SDKS = "synapse_runtime", "synapse_sdk.plugins"
# For tests of a command or class for which the import names do not matter.
BY_ITS_OWN_NAMES = pytest.mark.parametrize("names", [SDKS], indirect=True)

TRAIN = """\
import os
import threading

from pydantic import BaseModel, Field

from {names}.action import BaseAction


class TrainParams(BaseModel):
    epochs: int = Field(1, ge=1)
    batch_size: int = 16
    sample_size: int | None = None


class TrainAction(BaseAction[TrainParams]):
    def execute(self):
        for epoch in range(self.params.epochs):
            self.ctx.set_progress(epoch + 1, self.params.epochs)
            self.ctx.log("epoch_complete", {{"epoch": epoch, "loss": 0.1}})
        self.ctx.set_metrics({{"final_loss": 0.05}}, "training")
        names = ("API_KEY", "DEBUG", "BATCH_SIZE", "LEARNING_RATE", "OUTSIDE")
        return {{
            "status": "done",
            "params": self.params.model_dump(),
            "env": {{name: self.ctx.env.get(name) for name in names if name in self.ctx.env}},
            "job_id": self.ctx.job_id,
            "process": os.getpid(),
            "thread": threading.get_ident(),
        }}


class FailAction(BaseAction[TrainParams]):
    def execute(self):
        raise RuntimeError("out of memory")
"""

INFER = """\
import time
from pathlib import Path

from {names}.decorators import action


@action
def infer(params, context):
    return params


@action
def say(params, context):
    context.log_message("for developers", level="debug")
    return "said"


@action
def wait(params, context):
    print("waiting for", params["file"], flush=True)
    deadline = time.monotonic() + 30
    while not Path(params["file"]).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return "it came"
"""

DEBUG = """\
from my_plugin.train import TrainParams

from {names}.action import BaseAction


class StopAction(BaseAction[TrainParams]):
    def execute(self):
        # breakpoint() works
        breakpoint()

        # Or use pdb directly
        import pdb; pdb.set_trace()

        return {{'status': 'done'}}
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
  say: {{entrypoint: "{package}infer:say"}}
  wait: {{entrypoint: "{package}infer:wait"}}
"""


class Names:
    """The names that the specification imports, with a prefix: `synapse_runtime` or `synapse_sdk.plugins`."""

    _MODULES = {  # noqa: RUF012
        "BaseAction": "action",
        "ExecutionError": "errors",
        "LocalExecutor": "executors.local",
        "PluginEnvironment": "context",
        "RayActorExecutor": "executors.ray",
        "RayJobsApiExecutor": "executors.ray",
        "ValidationError": "errors",
        "run_plugin": "runner",
    }

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(f"{self.prefix}.{self._MODULES[name]}"), name)

    def script(self, text: str) -> str:
        """Return a program with `{names}` replaced by the prefix."""
        # Outside of pytest and the command, importing this package makes the SDK's names available.
        return "import synapse_runtime\n" + text.replace("{names}", self.prefix)


class Plugins(NamedTuple):
    """Paths of the plugins. `root` is on `sys.path`, so that `my_plugin` and `my_plugins.yolov8` can be imported."""

    root: Path
    path: Path
    config: Path


@pytest.fixture(params=[OURS, SDKS])
def names(request: pytest.FixtureRequest) -> Names:
    """The import names used by a test and its plugins."""
    return Names(request.param)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of the plugins, by the prefix of their imports."""
    return {prefix: _write(tmp_path_factory.mktemp("seed"), prefix) for prefix in (OURS, SDKS)}


@pytest.fixture
def plugins(names: Names, written: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugins]:
    """The plugins, importable."""
    root = written[names.prefix]
    monkeypatch.syspath_prepend(root)
    yield Plugins(root, root / "elsewhere", root / "elsewhere" / "config.yaml")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("my_plugin", "my_plugins")]:
        del sys.modules[name]


@pytest.fixture
def synapse(plugins: Plugins) -> Iterator[Synapse]:
    """The command, in the directory of a plugin."""
    with synapse_in(plugins.path) as command:
        yield command


def _write(root: Path, prefix: str) -> Path:
    for package in ("my_plugins/yolov8", "my_plugin", "elsewhere/plugin"):
        directory = root / package
        directory.mkdir(parents=True)
        for name, source in {"__init__": "", "train": TRAIN, "infer": INFER, "debug": DEBUG}.items():
            (directory / f"{name}.py").write_text(source.format(names=prefix))
    (root / "my_plugins" / "__init__.py").touch()
    (root / "my_plugins" / "yolov8" / "config.yaml").write_text(CONFIG.format(code="yolov8", package=""))
    (root / "my_plugin" / "__init__.py").write_text("from my_plugin.train import FailAction, TrainAction\n")
    (root / "my_plugin" / "actions.py").write_text("from my_plugin.train import TrainAction\n")
    (root / "elsewhere" / "config.yaml").write_text(CONFIG.format(code="my-plugin", package="plugin."))
    return root

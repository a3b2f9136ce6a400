"""A plugin for the command to run, and the command itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tests.cli.processes import Synapse, synapse_in

CONFIG = """\
code: demo
name: Demo
env:
  LEVEL: config
  SHARED: config
actions:
  train: {entrypoint: "lab.train:TrainAction"}
  infer: {entrypoint: "lab.other:infer"}
  fail: {entrypoint: "lab.other:fail"}
  whisper: {entrypoint: "lab.other:whisper"}
  leave: {entrypoint: "lab.other:leave"}
  nap: {entrypoint: "lab.other:nap"}
  wait_for: {entrypoint: "lab.other:wait_for"}
  talk: {entrypoint: "lab.other:talk"}
  show_env: {entrypoint: "lab.other:show_env"}
  noise: {entrypoint: "lab.other:noise"}
  kinds: {entrypoint: "lab.other:kinds"}
  point: {entrypoint: "lab.other:point"}
  loop: {entrypoint: "lab.other:loop"}
  big: {entrypoint: "lab.other:big"}
  stop_here: {entrypoint: "lab.debug:StopHere"}
  trace_here: {entrypoint: "lab.debug:TraceHere"}
"""

TRAIN = """\
from pydantic import BaseModel, Field

from synapse_runtime.action import BaseAction


class TrainParams(BaseModel):
    epochs: int = Field(2, ge=1)
    batch_size: int = 16


class TrainAction(BaseAction[TrainParams]):
    def execute(self):
        for epoch in range(self.params.epochs):
            self.ctx.set_progress(epoch + 1, self.params.epochs)
            self.ctx.log("epoch_complete", {"epoch": epoch, "loss": 0.1})
        self.ctx.set_metrics({"final_loss": 0.05}, "training")
        return {"epochs": self.params.epochs, "batch_size": self.params.batch_size}
"""

OTHER = """\
import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

from pydantic import BaseModel

from synapse_runtime.decorators import action


@dataclasses.dataclass
class Point:
    x: int
    at: Path


class Scores(BaseModel):
    accuracy: float


@action
def infer(params, context):
    return params


@action
def fail(params, context):
    weights = {"a": 1}
    return weights["missing"]


@action
def whisper(params, context):
    context.log("seen_in", {"detail": 1}, level="debug")
    context.log_message("a debug message", level="debug")
    context.logger.debug("a debug record")
    context.logger.info("an info record")
    raise ValueError("first line\\n  second line")


@action
def leave(params, context):
    sys.exit(3)


@action
def nap(params, context):
    context.log("asleep", {"pid": os.getpid()})
    time.sleep(60)


@action
def wait_for(params, context):
    context.set_progress(1, 2)
    print("waiting", flush=True)
    deadline = time.monotonic() + 30
    while not Path(params["file"]).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    context.set_progress(2, 2)
    context.set_metrics({"waited": 1}, "waiting")
    return "seen"


@action
def talk(params, context):
    for number in range(20_000):
        context.log("line", {"number": number})


@action
def show_env(params, context):
    names = ("LEVEL", "SHARED", "FROM_FILE", "GIVEN", "OUTSIDE")
    return {name: [context.env.get(name), os.environ.get(name)] for name in names}


@action
def noise(params, context):
    print('{"looks": "like a result"}')
    print("to stderr", file=sys.stderr)
    subprocess.run(["echo", "from a child process"], check=True)
    context.set_progress(1, 1)
    context.log_message("a message")
    context.logger.warning("a warning")
    return {"ok": True}


@action
def kinds(params, context):
    import numpy

    return {
        "path": Path("weights") / "best.npz",
        "point": Point(1, Path("here")),
        "model": Scores(accuracy=0.5),
        "array": numpy.arange(3),
        "scalar": numpy.float32(0.25),
        "not_a_number": float("nan"),
        "array_with_nan": numpy.array([1.0, float("nan")]),
        "infinite": float("inf"),
        "tuple": (1, "zwei"),
        "bytes": b"abc",
        "other": object,
        "text": "größer",
    }


@action
def point(params, context):
    return Point(1, Path("here"))


@action
def loop(params, context):
    result = [1]
    result.append(result)
    return result


@action
def big(params, context):
    return list(range(100_000))
"""

DEBUG = """\
from lab.train import TrainParams

from synapse_runtime.action import BaseAction


class StopHere(BaseAction[TrainParams]):
    def execute(self):
        self.ctx.set_progress(1, 2)
        breakpoint()
        self.ctx.set_progress(2, 2)
        return {"status": "done"}


class TraceHere(BaseAction[TrainParams]):
    def execute(self):
        import pdb; pdb.set_trace()
        return {"status": "done"}
"""


@pytest.fixture(scope="session")
def plugin_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin with actions that succeed, fail, exit, hang, print or stop in a debugger."""
    root = tmp_path_factory.mktemp("plugin")
    write_plugin(root)
    return root


@pytest.fixture
def synapse(plugin_dir: Path) -> Iterator[Synapse]:
    """The command, in the plugin's directory."""
    with synapse_in(plugin_dir) as command:
        yield command


def write_plugin(root: Path) -> None:
    """Write the plugin to a directory."""
    (root / "lab").mkdir()
    (root / "config.yaml").write_text(CONFIG)
    for name, source in {"__init__": "", "train": TRAIN, "other": OTHER, "debug": DEBUG}.items():
        (root / "lab" / f"{name}.py").write_text(dedent(source))

"""The client and `synapse serve` together: a plugin's actions, run through a real backend."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_runtime.errors import ExecutionError, ExecutionTimeout, ValidationError, WorkerCrashed
from synapse_runtime.events import Event
from synapse_runtime.executors import RemoteExecutor
from synapse_runtime.executors.remote.embedded_server import serve_embedded
from synapse_runtime.loggers import NullLogger
from tests.patience import patience

CONFIG = """\
code: lab
actions:
  train: {entrypoint: 'acts:Train'}
  fail: {entrypoint: 'acts:fail'}
  die: {entrypoint: 'acts:die'}
  hang: {entrypoint: 'acts:hang'}
  infer: {entrypoint: 'acts:infer', method: serve}
"""
ACTIONS = """\
import logging
import math
import os
import time
import warnings
from pathlib import Path

from pydantic import BaseModel

from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action


class Params(BaseModel):
    epochs: int = 2


class Trained(BaseModel):
    weights: Path
    loss: float


class Misfit(Exception):
    pass


class Train(BaseAction[Params]):
    def execute(self):
        print("printed")
        for epoch in range(self.params.epochs):
            self.ctx.set_progress(epoch + 1, self.params.epochs, "train")
            self.ctx.set_metrics({"loss": 1 / (epoch + 1)}, "train")
        logging.getLogger("acts").warning("logged %s", "once")
        warnings.warn("old", UserWarning)
        self.ctx.log("done", {"env": self.ctx.env.get_str("STAGE", "none")})
        return Trained(weights=Path("w.npz"), loss=math.inf)


@action
def fail(params, context):
    size = params["size"]
    try:
        raise Misfit("too large", size)
    except Misfit as error:
        raise ValueError("no fit") from error


@action
def die(params, context):
    print("before", flush=True)
    os.kill(os.getpid(), 9)


@action
def hang(params, context):
    time.sleep(600)


@action
def infer(params, context):
    return {"answer": params["input"]}
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("lab")
    (directory / "config.yaml").write_text(CONFIG)
    (directory / "acts.py").write_text(ACTIONS)
    return directory


@pytest.fixture(scope="module")
def executor(plugin: Path) -> Iterator[RemoteExecutor]:
    with (
        serve_embedded([plugin]) as server,
        RemoteExecutor(server.host, server.token, plugin=plugin, env={"STAGE": "test"}, logger=NullLogger()) as it,
    ):
        yield it


@pytest.mark.filterwarnings("default:old")
def test_run_has_result_events_output_records_and_warnings(executor):
    seen: list[Event] = []
    run = executor.run("train", {"epochs": 2}, on_event=seen.append)
    result = run.unwrap()
    assert (type(result).__name__, result.weights, result.loss) == ("Trained", Path("w.npz"), float("inf"))
    assert run.progress == [(1, 2), (2, 2)]
    assert run.metrics["train"]["loss"] == 0.5
    assert [event.data for event in run.logs if event.name == "done"] == [{"env": "test"}]
    assert [event.kind for event in seen] == [event.kind for event in run.events]
    assert "printed\n" in run.stdout
    assert [record.getMessage() for record in run.records] == ["logged once"]
    assert [str(warning.message) for warning in run.warnings] == ["old"]
    assert (run.mode, executor.get_status(run.job_id)) == ("remote", "SUCCEEDED")


def test_exception_comes_back_with_its_chain_and_the_source_of_its_frames(executor):
    run = executor.run("fail", {"size": 3})
    assert type(run.error) is ExecutionError
    cause = run.error.__cause__
    assert (type(cause), str(cause)) == (ValueError, "no fit")
    assert (type(cause.__cause__).__name__, cause.__cause__.args) == ("Misfit", ("too large", 3))
    (frame,) = [frame for frame in traceback.extract_tb(cause.__traceback__) if frame.name == "fail"]
    assert frame.filename.endswith("acts.py")
    assert frame.line == 'raise ValueError("no fit") from error'


def test_invalid_params_are_refused_before_anything_is_sent(executor):
    before = len(executor.list_jobs())
    run = executor.run("train", {"epochs": "many"})
    assert type(run.error) is ValidationError
    assert [error["loc"] for error in run.error.errors()] == [("epochs",)]
    assert len(executor.list_jobs()) == before


def test_crash_tells_its_signal_and_keeps_the_output(executor):
    run = executor.run("die")
    assert type(run.error) is WorkerCrashed
    assert "SIGKILL" in str(run.error)
    assert "before" in run.stdout


def test_timeout_has_the_stack(executor):
    with pytest.raises(ExecutionTimeout, match=r"exceeded its timeout of 0\.5 s") as caught:
        executor.execute("hang", timeout=0.5)
    assert "time.sleep(600)" in "".join(caught.value.__notes__)


def test_cancelled_call_stops_its_job(executor):
    async def main() -> None:
        task = asyncio.create_task(executor.arun("hang"))
        async with asyncio.timeout(patience(20)):
            while not any(job.status == "RUNNING" for job in executor.list_jobs()):
                await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert executor.list_jobs()[0].status == "STOPPED"


def test_answer_of_a_served_action_is_its_result(executor):
    assert executor.execute("infer", {"input": 7}) == {"answer": 7}


@pytest.mark.filterwarnings("default:old")
def test_submitted_job_can_be_read_later(executor, plugin):
    job_id = executor.submit("train", {"epochs": 1})
    assert executor.wait(job_id, timeout=patience(30)) == "SUCCEEDED"
    assert executor.get_result(job_id).weights == Path("w.npz")
    assert "printed" in executor.get_logs(job_id)

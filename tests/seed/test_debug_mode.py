"""Tests for the section "Debug Mode" of the specification."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from pydantic import BaseModel

from tests.cli.processes import Synapse, status_of, terminal
from tests.seed.conftest import Names, Plugins

CONSOLE_LOG = [
    "progress: 1/2 (50%)",
    "epoch_complete epoch=0 loss=0.1",
    "progress: 2/2 (100%)",
    "epoch_complete epoch=1 loss=0.1",
    "training: final_loss=0.05",
]


class TrainParams(BaseModel):
    epochs: int


@pytest.fixture
def train_action(names: Names) -> type:
    """The action shown in the specification."""

    class TrainAction(names.BaseAction[TrainParams]):
        def execute(self) -> dict[str, str]:
            for epoch in range(self.params.epochs):
                self.ctx.set_progress(epoch + 1, self.params.epochs)
                self.ctx.log("epoch_complete", {"epoch": epoch, "loss": 0.1})

            self.ctx.set_metrics({"final_loss": 0.05}, "training")

            return {"status": "done"}

    return TrainAction


class TestPythonDebuggerSupport:
    def test_breakpoint_and_pdb_work_in_an_action(self, names: Names, plugins: Plugins, synapse: Synapse) -> None:
        script = names.script(
            "from my_plugin.debug import StopAction\n"
            "from {names}.executors.local import LocalExecutor\n"
            "print(LocalExecutor().execute(StopAction, {'epochs': 7}))\n"
        )
        with terminal([sys.executable, "-c", script], plugins.root, synapse.environment()) as child:
            for _ in ("breakpoint()", "pdb.set_trace()"):
                child.expect_exact("(Pdb) ")
                child.sendline("p self.params.epochs")
                child.expect_exact("\r\n7\r\n")
                child.expect_exact("(Pdb) ")
                child.sendline("c")
            child.expect_exact("{'status': 'done'}")
            assert status_of(child) == 0


class TestConsoleLogging:
    def test_is_the_default_and_shows_everything(
        self, names: Names, train_action: type, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert names.LocalExecutor().execute(train_action, {"epochs": 2}) == {"status": "done"}
        assert [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()] == CONSOLE_LOG

    def test_is_recorded_as_well(self, names: Names, train_action: type) -> None:
        run = names.LocalExecutor().run(train_action, {"epochs": 2})
        assert run.progress == [(1, 2), (2, 2)]
        assert [event.data for event in run.logs] == [{"epoch": 0, "loss": 0.1}, {"epoch": 1, "loss": 0.1}]
        assert run.metrics == {"training": {"final_loss": 0.05}}

    def test_set_metrics_requires_a_step_name(self, names: Names) -> None:
        class Forgets(names.BaseAction):
            def execute(self) -> Any:
                self.ctx.set_metrics({"final_loss": 0.05})

        run = names.LocalExecutor().run(Forgets, {})
        assert run.error is not None
        assert isinstance(run.error.__cause__, TypeError)
        assert "step" in str(run.error)

    @pytest.mark.parametrize("step", ["", None, 3])
    def test_set_metrics_refuses_a_step_that_names_nothing(self, names: Names, step: Any) -> None:
        class Empty(names.BaseAction):
            def execute(self) -> Any:
                self.ctx.set_metrics({"final_loss": 0.05}, step)

        run = names.LocalExecutor().run(Empty, {})
        assert run.error is not None
        assert "set_metrics needs the name of a step" in str(run.error)

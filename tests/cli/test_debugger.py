"""A debugger in an action, with the command and with pytest, in local mode."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cli.conftest import write_plugin
from tests.cli.processes import Synapse, status_of, terminal
from tests.pytest_synapse.conftest import ALONE


@pytest.mark.parametrize("action", ["stop_here", "trace_here"])
def test_stops_with_the_command(synapse: Synapse, action: str) -> None:
    with synapse.on_terminal(action, "--mode", "local", "--params", '{"epochs": 7}') as child:
        child.expect_exact("(Pdb) ")
        child.sendline("p self.params.epochs")
        child.expect_exact("\r\n7\r\n")
        child.expect_exact("(Pdb) ")
        child.sendline("c")
        child.expect_exact('"status": "done"')
        assert status_of(child) == 0


def test_quit_fails_the_action(synapse: Synapse) -> None:
    with synapse.on_terminal("stop_here", "--mode", "local") as child:
        child.expect_exact("(Pdb) ")
        child.sendline("q")
        child.expect_exact("BdbQuit")
        assert status_of(child) == 1


@pytest.mark.parametrize("action", ["stop_here", "trace_here"])
def test_stops_with_pytest(synapse: Synapse, tmp_path: Path, action: str) -> None:
    write_plugin(tmp_path)
    (tmp_path / "test_it.py").write_text(
        "def test_it(synapse_executor):\n"
        f"    assert synapse_executor.execute({action!r}, {{'epochs': 7}}) == {{'status': 'done'}}\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *ALONE.split(), "test_it.py"]
    with terminal(command, tmp_path, synapse.environment()) as child:
        child.expect_exact("(Pdb) ")
        child.sendline("p self.params.epochs")
        child.expect_exact("\r\n7\r\n")
        child.expect_exact("(Pdb) ")
        child.sendline("c")
        child.expect_exact("1 passed")
        assert status_of(child) == 0


def test_pdb_option_stops_where_the_action_failed(synapse: Synapse, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "from synapse_runtime.action import BaseAction\n"
        "class Fail(BaseAction):\n"
        "    def execute(self):\n"
        "        inside = 42\n"
        "        raise ValueError(inside)\n"
        "def test_it(synapse_executor):\n"
        "    synapse_executor.execute(Fail)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "--pdb", "-p", "no:cacheprovider", *ALONE.split(), "test_it.py"]
    with terminal(command, tmp_path, synapse.environment()) as child:
        child.expect_exact("(Pdb) ")
        child.sendline("p inside")
        child.expect_exact("\r\n42\r\n")
        child.expect_exact("(Pdb) ")
        child.sendline("q")
        child.expect_exact("1 failed")
        assert status_of(child) == 2

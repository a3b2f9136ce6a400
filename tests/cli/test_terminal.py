"""Output of the command on a terminal."""

from __future__ import annotations

import re

from tests.cli.processes import Synapse, status_of

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def test_shows_a_progress_bar(synapse: Synapse) -> None:
    with synapse.on_terminal("train", "--mode", "local", "--params", '{"epochs": 4}') as child:
        child.expect("Result of train")
        drawn = ESCAPES.sub("", child.before)
        assert re.search(r"progress ━+.* 4/4", drawn)
        assert "\x1b[" in child.before
        assert status_of(child) == 0


def test_prints_events_above_the_bar_one_per_line(synapse: Synapse) -> None:
    with synapse.on_terminal("train", "--mode", "local", "--params", '{"epochs": 4}') as child:
        child.expect("Result of train")
        drawn = ESCAPES.sub("", child.before).replace("\r", "\n")
        for epoch in range(4):
            assert re.search(rf"^\[\d\d:\d\d:\d\d\] epoch_complete epoch={epoch} loss=0.1$", drawn, re.MULTILINE)
        assert re.search(r"^\[\d\d:\d\d:\d\d\] training: final_loss=0.05$", drawn, re.MULTILINE)
        assert "4/4 (100%)" not in drawn
        assert status_of(child) == 0


def test_updates_the_bar_while_the_action_runs(synapse: Synapse) -> None:
    signal = synapse.temp / "go"
    with synapse.on_terminal("wait_for", "--mode", "local", "--params", f'{{"file": "{signal}"}}') as child:
        child.expect("━")
        child.expect("1/2")
        assert child.isalive()
        signal.touch()
        child.expect("2/2")
        child.expect("Result of wait_for")
        assert status_of(child) == 0


def test_bar_is_on_stderr_with_json(synapse: Synapse) -> None:
    with synapse.on_terminal("train", "--mode", "local", "--json") as child:
        child.expect("━")
        child.expect("2/2")
        child.expect_exact('{"epochs":2,"batch_size":16}')
        assert status_of(child) == 0


def test_ctrl_c_exits_with_130(synapse: Synapse) -> None:
    with synapse.on_terminal("nap", "--mode", "local") as child:
        child.expect("asleep")
        child.sendcontrol("c")
        child.expect("interrupted")
        assert "Traceback" not in child.before
        assert status_of(child) == 130

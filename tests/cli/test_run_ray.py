"""`synapse plugin run` in task and job mode: on a cluster of its own, which ends with it, and on one that runs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import Synapse, assert_debug_shows_more, interrupt, processes_with, synapse_in
from tests.patience import patience, within

STARTING = "cluster: ephemeral, started on first need\n"
INFER = """\
from pydantic import BaseModel

from synapse_runtime.action import BaseAction


class InferParams(BaseModel):
    input: list[float]
    infer_path: str = "/default"
    scale: float = 1


class Infer(BaseAction[InferParams]):
    def execute(self):
        return {"path": self.params.infer_path, "scaled": [self.params.scale * number for number in self.params.input]}
"""
RAY_MODES = pytest.mark.parametrize("mode", ["task", "job"])


@pytest.fixture
def joined(reached: dict[str, str], plugin_dir: Path) -> Iterator[Synapse]:
    """The command, which finds a cluster that runs already in RAY_ADDRESS."""
    with synapse_in(plugin_dir, **reached) as command:
        yield command


class TestOnAClusterOfItsOwn:
    # A cluster of its own for each: one ends well and one badly, in either mode.
    @pytest.mark.parametrize("mode", ["job"])
    def test_progress_is_seen_while_the_action_runs_and_nothing_is_left_after_it(
        self, synapse: Synapse, tmp_path: Path, mode: str
    ) -> None:
        signal = tmp_path / "go"
        with synapse.started("wait_for", "--mode", mode, "--params", f'{{"file": "{signal}"}}') as process:
            assert process.stdout is not None
            assert process.stderr is not None
            early = _read_until(process, "waiting\n")
            if "progress" not in early:  # what is said and what is printed may overtake each other
                early += _read_until(process, "(50%)\n")
            assert process.poll() is None
            signal.touch()
            late = process.stdout.read()
            assert process.wait(patience(30)) == 0
            assert process.stderr.read() == STARTING
        assert "progress: 1/2 (50%)\n" in early
        assert "progress: 2/2 (100%)\n" in late
        assert "waiting: waited=1\n" in late
        assert re.search(rf'^Result of wait_for \({mode}, \d+\.\d\d s\):\n"seen"$', late, re.MULTILINE)
        assert synapse.leftovers() == []

    @pytest.mark.parametrize("mode", ["task"])
    def test_ctrl_c_ends_the_action_and_everything_with_130(self, synapse: Synapse, mode: str) -> None:
        with synapse.started("nap", "--mode", mode) as process:
            assert process.stderr is not None
            asleep = _read_until(process, "asleep")
            interrupt(process)
            assert process.wait(patience(15)) == 130
            assert process.stderr.read() == STARTING + "interrupted\n"
        action = int(asleep.rpartition("pid=")[2])
        assert within(5, lambda: action not in processes_with(synapse.mark))
        assert synapse.leftovers() == []

    def test_ctrl_c_while_it_starts_ends_with_130(self, synapse: Synapse) -> None:
        with synapse.started("nap", "--mode", "task") as process:
            assert process.stderr is not None
            assert within(15, lambda: len(processes_with(synapse.mark)) > 2)
            interrupt(process)
            assert process.wait(patience(20)) == 130
            assert process.stderr.read() == STARTING + "interrupted\n"
        assert synapse.leftovers() == []


class TestOnARunningCluster:
    @pytest.mark.parametrize("mode", ["local", "task", "job"])
    def test_infer_gets_its_input_and_path_in_every_mode(self, joined: Synapse, tmp_path: Path, mode: str) -> None:
        (tmp_path / "config.yaml").write_text("code: a\nactions: {infer: acts.Infer}\n")
        (tmp_path / "acts.py").write_text(INFER)
        given = ("--input", "[1, 2]", "--infer-path", "/v1", "--param", "scale=2")
        done = joined.run("infer", "--mode", mode, *given, "--json", cwd=tmp_path)
        assert done.status == 0, done.stderr
        assert done.result == {"path": "/v1", "scaled": [2, 4]}

    def test_debug_shows_messages_of_level_debug_and_all_lines_of_an_error(self, joined: Synapse) -> None:
        assert_debug_shows_more(
            *(joined.run("whisper", "--mode", "task", option) for option in ("--debug", "--no-debug"))
        )

    @RAY_MODES
    def test_action_that_fails_ends_with_1_and_its_own_traceback(self, joined: Synapse, mode: str) -> None:
        done = joined.run("fail", "--mode", mode)
        assert (done.status, done.stdout) == (1, "")
        assert done.stderr.startswith(f"cluster: {joined.env['RAY_ADDRESS']} (RAY_ADDRESS)\n")
        assert 'return weights["missing"]' in done.stderr
        assert done.stderr.endswith("error: fail failed: KeyError: 'missing'\n")
        assert done.stderr.count("Traceback") == 1
        assert "synapse_runtime" not in done.stderr

    @RAY_MODES
    def test_result_is_alone_on_stdout_with_json(self, joined: Synapse, mode: str) -> None:
        done = joined.run("noise", "--mode", mode, "--json")
        assert (done.status, done.stdout) == (0, '{"ok":true}\n')
        for text in ('{"looks": "like a result"}', "to stderr", "from a child process", "1/1 (100%)", "a message"):
            assert done.stderr.count(text) == 1
        assert done.stderr.count("WARNING a warning") == 1

    @RAY_MODES
    def test_environment_is_the_given_over_the_config_files(self, joined: Synapse, mode: str) -> None:
        done = joined.run("show_env", "--mode", mode, "--json", "--env", "GIVEN=1", OUTSIDE="here")
        assert done.result == {
            "OUTSIDE": [None, None],
            "LEVEL": ["config", "config"],
            "SHARED": ["config", "config"],
            "FROM_FILE": [None, None],
            "GIVEN": ["1", "1"],
        }

    @RAY_MODES
    def test_action_that_takes_too_long_ends_with_124(self, joined: Synapse, mode: str) -> None:
        done = joined.run("nap", "--mode", mode, "--timeout", "0.5")
        assert done.status == 124
        assert "error: nap did not end within 0.5 s" in done.stderr
        assert "time.sleep(60)" in done.stderr

    @RAY_MODES
    def test_gpus_that_nobody_has_end_with_3(self, joined: Synapse, mode: str) -> None:
        done = joined.run("train", "--mode", mode, "--gpus", "99")
        assert (done.status, done.stdout) == (3, "")
        assert "asked for num_gpus=99, but the cluster has 2 GPU in all" in done.stderr
        assert done.seconds < patience(15)

    @RAY_MODES
    def test_address_can_be_given(self, joined: Synapse, reached: dict[str, str], dashboard: str, mode: str) -> None:
        address = reached["RAY_ADDRESS"] if mode == "task" else dashboard
        arguments = ("--ray-address", address, "--gpus", "1", "--cpus", "1", "--debug-sdk", "--json")
        done = joined.run("train", "--mode", mode, *arguments, RAY_ADDRESS="")
        assert (done.status, done.result) == (0, {"epochs": 2, "batch_size": 16})

    def test_given_address_wins_over_the_variable(self, joined: Synapse, reached: dict[str, str]) -> None:
        address = reached["RAY_ADDRESS"]
        done = joined.run("train", "--mode", "task", "--ray-address", address, RAY_ADDRESS="127.0.0.1:1")
        assert done.status == 0, done.stderr


class TestWithoutACluster:
    @RAY_MODES
    def test_bad_params_end_with_2_and_none_is_started(self, synapse: Synapse, mode: str) -> None:
        with synapse.started("train", "--mode", mode, "--params", '{"epochs": "x"}') as process:
            assert process.stderr is not None
            most = 0
            while process.poll() is None:
                most = max(most, len(processes_with(synapse.mark)))
            assert process.returncode == 2
            assert most == 1
            assert "error: train: 1 invalid parameter (TrainParams)\n  epochs: " in process.stderr.read()

    @RAY_MODES
    @pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "http://127.0.0.1:1"])
    def test_address_that_does_not_answer_ends_with_3(self, synapse: Synapse, mode: str, address: str) -> None:
        done = synapse.run("train", "--mode", mode, "--ray-address", address)
        assert (done.status, done.stdout) == (3, "")
        assert f"error: no cluster answers at {address}: Connection refused" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.seconds < patience(15)

    def test_address_in_the_environment_that_does_not_answer_ends_with_3(self, synapse: Synapse) -> None:
        done = synapse.run("train", "--mode", "task", RAY_ADDRESS="127.0.0.1:1")
        assert done.status == 3
        assert "127.0.0.1:1" in done.stderr

    def test_address_that_is_none_ends_with_3(self, synapse: Synapse) -> None:
        done = synapse.run("train", "--mode", "task", "--ray-address", "nonsense")
        assert done.status == 3
        assert "'nonsense' is not a cluster's address: host:port" in done.stderr


def _read_until(process: subprocess.Popen[str], text: str) -> str:
    """Read lines of a process's output up to the one that has this text."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in said:
            return said
    raise AssertionError(f"ended before it said {text!r}: {said}")

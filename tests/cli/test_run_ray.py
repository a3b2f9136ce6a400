"""`synapse plugin run` in task and job mode, on an ephemeral cluster and on a running one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import Synapse, assert_debug_shows_more, interrupt, processes_with, synapse_in
from tests.patience import patience, within

STARTING = "cluster: ephemeral, started when first needed\n"
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
    """The command with the address of a running cluster in RAY_ADDRESS."""
    with synapse_in(plugin_dir, **reached) as command:
        yield command


class TestOnAnEphemeralCluster:
    # Each test starts its own cluster: one run succeeds and one is interrupted, one per mode.
    @pytest.mark.parametrize("mode", ["job"])
    def test_progress_is_shown_live_and_nothing_is_left(self, synapse: Synapse, tmp_path: Path, mode: str) -> None:
        signal = tmp_path / "go"
        with synapse.started("wait_for", "--mode", mode, "--params", f'{{"file": "{signal}"}}') as process:
            assert process.stdout is not None
            assert process.stderr is not None
            early = _read_until(process, "waiting\n")
            if "progress" not in early:  # messages and printed lines may arrive in either order
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
    def test_ctrl_c_stops_the_action_and_exits_with_130(self, synapse: Synapse, mode: str) -> None:
        with synapse.started("nap", "--mode", mode) as process:
            assert process.stderr is not None
            asleep = _read_until(process, "asleep")
            interrupt(process)
            assert process.wait(patience(15)) == 130
            assert process.stderr.read() == STARTING + "interrupted\n"
        action = int(asleep.rpartition("pid=")[2])
        assert within(5, lambda: action not in processes_with(synapse.mark))
        assert synapse.leftovers() == []

    def test_ctrl_c_during_start_exits_with_130(self, synapse: Synapse) -> None:
        with synapse.started("nap", "--mode", "task") as process:
            assert process.stderr is not None
            assert within(15, lambda: len(processes_with(synapse.mark)) > 2)
            interrupt(process)
            assert process.wait(patience(20)) == 130
            assert process.stderr.read() == STARTING + "interrupted\n"
        assert synapse.leftovers() == []


class TestOnARunningCluster:
    @pytest.mark.parametrize("mode", ["local", "task"])
    def test_input_and_path_are_passed_to_infer_in_every_mode(self, joined: Synapse, tmp_path: Path, mode: str) -> None:
        (tmp_path / "config.yaml").write_text("code: a\nactions: {infer: acts.Infer}\n")
        (tmp_path / "acts.py").write_text(INFER)
        given = ("--input", "[1, 2]", "--infer-path", "/v1", "--param", "scale=2")
        done = joined.run("infer", "--mode", mode, *given, "--json", cwd=tmp_path)
        assert done.status == 0, done.stderr
        assert done.result == {"path": "/v1", "scaled": [2, 4]}

    def test_debug_shows_debug_messages_and_all_lines_of_an_error(self, joined: Synapse) -> None:
        assert_debug_shows_more(
            *(joined.run("whisper", "--mode", "task", option) for option in ("--debug", "--no-debug"))
        )

    @RAY_MODES
    def test_failing_action_exits_with_1_and_its_own_traceback(self, joined: Synapse, mode: str) -> None:
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

    def test_env_overrides_the_config_file(self, joined: Synapse) -> None:
        done = joined.run("show_env", "--mode", "task", "--json", "--env", "GIVEN=1", OUTSIDE="here")
        assert done.result == {
            "OUTSIDE": [None, None],
            "LEVEL": ["config", "config"],
            "SHARED": ["config", "config"],
            "FROM_FILE": [None, None],
            "GIVEN": ["1", "1"],
        }

    def test_timeout_exits_with_124(self, joined: Synapse) -> None:
        done = joined.run("nap", "--mode", "task", "--timeout", "0.5")
        assert done.status == 124
        assert "error: nap exceeded its timeout of 0.5 s" in done.stderr
        assert "time.sleep(60)" in done.stderr

    @RAY_MODES
    def test_impossible_gpu_request_exits_with_3(self, joined: Synapse, mode: str) -> None:
        done = joined.run("train", "--mode", mode, "--gpus", "99")
        assert (done.status, done.stdout) == (3, "")
        assert "requested num_gpus=99, but the cluster has 2 GPUs in total" in done.stderr
        assert done.seconds < patience(15)

    @RAY_MODES
    def test_accepts_an_address(self, joined: Synapse, reached: dict[str, str], dashboard: str, mode: str) -> None:
        address = reached["RAY_ADDRESS"] if mode == "task" else dashboard
        arguments = ("--ray-address", address, "--gpus", "1", "--cpus", "1", "--debug-sdk", "--json")
        done = joined.run("train", "--mode", mode, *arguments, RAY_ADDRESS="")
        assert (done.status, done.result) == (0, {"epochs": 2, "batch_size": 16})

    def test_address_overrides_ray_address(self, joined: Synapse, reached: dict[str, str]) -> None:
        address = reached["RAY_ADDRESS"]
        done = joined.run("train", "--mode", "task", "--ray-address", address, RAY_ADDRESS="127.0.0.1:1")
        assert done.status == 0, done.stderr


class TestWithoutACluster:
    @RAY_MODES
    def test_invalid_params_exit_with_2_and_start_no_cluster(self, synapse: Synapse, mode: str) -> None:
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
    def test_unreachable_address_exits_with_3(self, synapse: Synapse, mode: str, address: str) -> None:
        done = synapse.run("train", "--mode", mode, "--ray-address", address)
        assert (done.status, done.stdout) == (3, "")
        assert f"error: no cluster answers at {address}: Connection refused" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.seconds < patience(15)

    def test_unreachable_address_in_the_environment_exits_with_3(self, synapse: Synapse) -> None:
        done = synapse.run("train", "--mode", "task", RAY_ADDRESS="127.0.0.1:1")
        assert done.status == 3
        assert "127.0.0.1:1" in done.stderr

    def test_invalid_address_exits_with_3(self, synapse: Synapse) -> None:
        done = synapse.run("train", "--mode", "task", "--ray-address", "nonsense")
        assert done.status == 3
        assert "'nonsense' is not a cluster address: expected host:port" in done.stderr


def _read_until(process: subprocess.Popen[str], text: str) -> str:
    """Read lines of a process's output up to the first that contains a text."""
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if text in output:
            return output
    raise AssertionError(f"exited before it printed {text!r}: {output}")

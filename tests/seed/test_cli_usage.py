"""Tests for the section "CLI Usage" of the specification, and the commands of "Best Practices"."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.processes import Synapse
from tests.patience import patience
from tests.seed.conftest import BY_ITS_OWN_NAMES, SDKS, Plugins


@pytest.fixture
def on_cluster(synapse: Synapse, reached: dict[str, str]) -> Synapse:
    """The command, with RAY_ADDRESS set to a cluster that claims to have a GPU."""
    synapse.env |= reached
    return synapse


@pytest.fixture(scope="module")
def help_text(written: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of `synapse plugin run --help`, joined to one line."""
    command = Synapse(written[SDKS], tmp_path_factory.mktemp("temp"))
    return re.sub(r"\s+", " ", command.run("--help", COLUMNS="200").stdout)


class TestBasicCommand:
    def test_basic_local_execution(self, synapse: Synapse) -> None:
        done = synapse.run("train")
        assert (done.status, done.stderr) == (0, "no --mode given: running in local mode\n")
        assert "Result of train (local, " in done.stdout
        assert done.shown_result["params"]["epochs"] == 1

    def test_with_parameters(self, synapse: Synapse) -> None:
        done = synapse.run("train", "--params", '{"epochs": 10, "batch_size": 32}')
        assert done.status == 0
        assert done.shown_result["params"] == {"epochs": 10, "batch_size": 32, "sample_size": None}

    def test_explicit_local_mode(self, synapse: Synapse) -> None:
        done = synapse.run("train", "--mode", "local")
        assert (done.status, done.stderr) == (0, "")
        assert "Result of train (local, " in done.stdout


@BY_ITS_OWN_NAMES
@pytest.mark.usefixtures("names")
class TestOptions:
    @pytest.mark.parametrize("option", ["--plugin", "-p"])
    def test_plugin(self, synapse: Synapse, option: str) -> None:
        assert synapse.run("infer", "-m", "local", option, "my-plugin").status == 0
        assert synapse.run("infer", "-m", "local", option, "another").status == 2

    def test_plugin_is_detected_from_config_yaml_by_default(self, synapse: Synapse) -> None:
        assert synapse.run("infer", "-m", "local").status == 0

    def test_path(self, synapse: Synapse, plugins: Plugins) -> None:
        assert synapse.run("infer", "-m", "local", "--path", "elsewhere", cwd=plugins.root).status == 0

    def test_path_is_the_current_directory_by_default(self, help_text: str) -> None:
        assert re.search(r"--path <path> [^\[]*\[default: \.\]", help_text)

    def test_params_are_empty_by_default(self, help_text: str) -> None:
        assert re.search(r"--params JSON [^\[]*\[default: \{\}\]", help_text)

    @pytest.mark.parametrize("option", ["--mode", "-m"])
    def test_mode(self, synapse: Synapse, option: str) -> None:
        assert "(local, " in synapse.run("infer", option, "local").stdout

    def test_mode_is_asked_for_by_default(self, synapse: Synapse) -> None:
        with synapse.on_terminal("infer") as child:
            child.expect("Where to run")
            child.sendline("local")
            child.expect(r"Result of infer \(local")

    def test_mode_is_one_of_four(self, help_text: str) -> None:
        assert "-m, --mode local|task|job|remote" in help_text

    @pytest.mark.parametrize("mode", ["task", "job"])
    def test_ray_address(self, synapse: Synapse, mode: str) -> None:
        done = synapse.run("infer", "--mode", mode, "--ray-address", "127.0.0.1:1")
        assert done.status == 3
        assert "no cluster answers at 127.0.0.1:1" in done.stderr

    def test_ray_address_may_be_auto(self, on_cluster: Synapse) -> None:
        done = on_cluster.run("infer", "--mode", "task", "--ray-address", "auto", "--json")
        assert (done.status, done.result) == (0, {})

    @pytest.mark.parametrize(("option", "resource"), [("--gpus", "GPU"), ("--cpus", "CPU")])
    def test_gpus_and_cpus_are_integers(self, on_cluster: Synapse, option: str, resource: str, help_text: str) -> None:
        assert on_cluster.run("infer", "--mode", "task", option, "some").status == 2
        done = on_cluster.run("infer", "--mode", "task", option, "9999")
        assert done.status == 3
        assert f"requested num_{resource.lower()}s=9999" in done.stderr
        assert not re.search(rf"{option} <int[^>]*> [^-]*\[default", help_text)

    def test_debug_is_on_by_default_and_shows_tracebacks_and_debug_messages(
        self, synapse: Synapse, help_text: str
    ) -> None:
        assert "Traceback" in synapse.run("fail", "--mode", "local").stderr
        assert "Traceback" not in synapse.run("fail", "--mode", "local", "--no-debug").stderr
        assert "for developers" in synapse.run("say", "--mode", "local", "--debug").stdout
        assert "for developers" not in synapse.run("say", "--mode", "local", "--no-debug").stdout
        assert re.search(r"--debug / --no-debug [^\[]*\[default: debug\]", help_text)


@BY_ITS_OWN_NAMES
@pytest.mark.usefixtures("names")
class TestRemoteModeOptions:
    @pytest.mark.parametrize("token", ["--token", "-t"])
    def test_host_and_token(self, synapse: Synapse, token: str) -> None:
        done = synapse.run("infer", "--mode", "remote", "--host", "http://127.0.0.1:1", token, "secret")
        assert done.status == 3
        assert "error: http://127.0.0.1:1 cannot be reached" in done.stderr
        assert "secret" not in done.stderr + done.stdout


@BY_ITS_OWN_NAMES
@pytest.mark.usefixtures("names")
class TestInferenceOptions:
    @pytest.mark.parametrize("option", ["--input", "-i"])
    def test_input_is_json(self, synapse: Synapse, option: str) -> None:
        done = synapse.run("infer", "--mode", "local", option, '{"images": [1, 2]}', "--json")
        assert done.result == {"input": {"images": [1, 2]}}

    @pytest.mark.parametrize("mode", ["task", "job"])
    def test_both_reach_the_action_in_ray_modes_too(self, on_cluster: Synapse, mode: str) -> None:
        done = on_cluster.run("infer", "--mode", mode, "-i", "[1, 2]", "--infer-path", "/v1/predict", "--json")
        assert done.result == {"input": [1, 2], "infer_path": "/v1/predict"}

    def test_infer_path_is_the_root_by_default(self, synapse: Synapse, help_text: str) -> None:
        assert re.search(r"--infer-path <str> [^\[]*\[default: /\]", help_text)
        done = synapse.run("infer", "--mode", "local", "--infer-path", "/v1/predict", "--json")
        assert done.result == {"infer_path": "/v1/predict"}


@BY_ITS_OWN_NAMES
@pytest.mark.usefixtures("names")
class TestDevelopmentOptions:
    def test_debug_sdk_is_a_flag_that_is_off_by_default(self, synapse: Synapse, help_text: str) -> None:
        assert "--debug-sdk" in help_text
        assert "--no-debug-sdk" not in help_text
        assert synapse.run("infer", "--mode", "local").stderr == ""
        assert "--debug-sdk" in synapse.run("infer", "--mode", "local", "--debug-sdk").stderr


class TestExamples:
    def test_plugin_in_another_directory(self, synapse: Synapse, plugins: Plugins) -> None:
        done = synapse.run("train", "--path", str(plugins.path), cwd=plugins.root)
        assert done.status == 0
        assert done.shown_result["status"] == "done"

    def test_mode_explicitly(self, synapse: Synapse) -> None:
        done = synapse.run("train", "--mode", "local", "--params", '{"epochs": 5}')
        assert done.shown_result["params"]["epochs"] == 5

    @BY_ITS_OWN_NAMES
    def test_on_a_ray_cluster_with_gpu(self, on_cluster: Synapse) -> None:
        done = on_cluster.run("train", "--mode", "task", "--gpus", "1")
        assert done.status == 0, done.stderr
        assert "Result of train (task, " in done.stdout

    @BY_ITS_OWN_NAMES
    def test_via_ray_jobs_api(self, on_cluster: Synapse) -> None:
        done = on_cluster.run("train", "--mode", "job", "--params", '{"epochs": 10}')
        assert done.status == 0, done.stderr
        assert "Result of train (job, " in done.stdout
        assert done.shown_result["params"]["epochs"] == 10

    @BY_ITS_OWN_NAMES
    def test_via_synapse_backend_needs_a_login(self, synapse: Synapse, tmp_path: Path) -> None:
        done = synapse.run("train", "--mode", "remote", HOME=str(tmp_path))
        assert done.status == 3
        assert "run `synapse login`, or set SYNAPSE_ACCESS_TOKEN" in done.stderr


class TestBestPractices:
    def test_rapid_iteration_testing(self, synapse: Synapse) -> None:
        done = synapse.run("train", "--mode", "local", "--params", '{"epochs": 1}')
        assert done.status == 0
        assert done.seconds < patience(5)

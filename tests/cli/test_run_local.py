"""`synapse plugin run` in local mode: its output and exit status."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pexpect
import pytest

from synapse_runtime import __version__
from synapse_runtime.run_record import RunRecord
from tests.cli.conftest import write_plugin
from tests.cli.processes import COMMAND, SCRIPT, Synapse, assert_debug_shows_more, interrupt, status_of
from tests.patience import patience

LOCAL = ("--mode", "local")


class TestResult:
    def test_is_printed_after_the_events_with_status_0(self, synapse: Synapse) -> None:
        done = synapse.run("train", *LOCAL, "--params", '{"epochs": 2, "batch_size": 32}')
        lines = [re.sub(r"^\[\d\d:\d\d:\d\d\] ", "", line) for line in done.stdout.splitlines()]
        assert lines[:5] == [
            "progress: 1/2 (50%)",
            "epoch_complete epoch=0 loss=0.1",
            "progress: 2/2 (100%)",
            "epoch_complete epoch=1 loss=0.1",
            "training: final_loss=0.05",
        ]
        assert re.fullmatch(r"Result of train \(local, \d+\.\d\d s\):", lines[5])
        assert done.shown_result == {"epochs": 2, "batch_size": 32}
        assert (done.status, done.stderr) == (0, "")

    def test_is_the_same_with_the_script_and_with_python_m(self, synapse: Synapse) -> None:
        arguments = ("plugin", "run", "train", *LOCAL, "--json")
        by_script, by_module = synapse(*arguments, command=[SCRIPT]), synapse(*arguments, command=COMMAND)
        assert by_script.result == by_module.result == {"epochs": 2, "batch_size": 16}
        assert by_script.status == by_module.status == 0

    def test_is_alone_on_stdout_with_json(self, synapse: Synapse) -> None:
        done = synapse.run("noise", *LOCAL, "--json")
        assert done.stdout == '{"ok":true}\n'
        assert done.status == 0
        for text in ('{"looks": "like a result"}', "to stderr", "from a child process", "1/1 (100%)", "a message"):
            assert text in done.stderr
        assert "WARNING a warning" in done.stderr

    def test_of_any_type_is_converted_to_json(self, synapse: Synapse) -> None:
        assert synapse.run("kinds", *LOCAL, "--json").result == {
            "path": "weights/best.npz",
            "point": {"x": 1, "at": "here"},
            "model": {"accuracy": 0.5},
            "array": [0, 1, 2],
            "scalar": 0.25,
            "not_a_number": None,
            "array_with_nan": [1.0, None],
            "infinite": None,
            "tuple": [1, "zwei"],
            "bytes": "YWJj",
            "other": "<class 'object'>",
            "text": "größer",
        }

    def test_of_any_type_is_printed_without_json(self, synapse: Synapse) -> None:
        assert synapse.run("kinds", *LOCAL).shown_result["point"] == {"x": 1, "at": "here"}

    def test_not_serializable_is_printed_as_python_repr(self, synapse: Synapse) -> None:
        done = synapse.run("loop", *LOCAL)
        assert done.status == 0
        assert "Recursion on list" in done.stdout

    def test_not_serializable_is_an_error_with_json(self, synapse: Synapse) -> None:
        done = synapse.run("loop", *LOCAL, "--json")
        assert (done.status, done.stdout) == (1, "")
        assert done.stderr.startswith("error: the result cannot be written as JSON: ")
        assert "Traceback" not in done.stderr


class TestRecord:
    def test_of_a_run_has_result_events_and_place(self, synapse: Synapse) -> None:
        done = synapse.run("train", *LOCAL, "--json", "--full", "--params", '{"epochs": 2, "batch_size": 32}')
        run = RunRecord.loads(done.stdout).to_run()
        assert (run.result, run.mode, run.error) == ({"epochs": 2, "batch_size": 32}, "local", None)
        assert [event.data["current"] for event in run.events if event.kind == "progress"] == [1, 2]
        assert done.status == 0

    def test_of_a_failed_run_has_the_error_with_its_source(self, synapse: Synapse) -> None:
        done = synapse.run("fail", *LOCAL, "--json", "--full")
        record = RunRecord.loads(done.stdout)
        assert (record.status, record.result, done.status) == ("failed", None, 1)
        assert record.error is not None
        assert [each.type for each in record.error][:1] == ["ExecutionError"]
        assert record.error[-1].frames[-1].source == '    return weights["missing"]'
        assert "Traceback (most recent call last):" in done.stderr

    def test_of_invalid_params_has_the_error_with_status_2(self, synapse: Synapse) -> None:
        done = synapse.run("train", *LOCAL, "--json", "--full", "--param", "epochs=many")
        record = RunRecord.loads(done.stdout)
        assert record.error is not None
        assert (record.error[0].type, done.status) == ("ValidationError", 2)

    def test_hides_values_of_the_environment_in_arguments(self, synapse: Synapse) -> None:
        done = synapse.run("fail", *LOCAL, "--json", "--full", "--env", "API_TOKEN=canary-7f3a91")
        assert "canary-7f3a91" not in done.stdout

    def test_is_for_json(self, synapse: Synapse) -> None:
        done = synapse.run("train", *LOCAL, "--full")
        assert (done.status, done.stdout) == (2, "")
        assert "requires --json" in done.stderr


class TestFailingAction:
    def test_exits_with_1_and_only_its_own_traceback(self, synapse: Synapse) -> None:
        done = synapse.run("fail", *LOCAL)
        assert (done.status, done.stdout) == (1, "")
        assert 'return weights["missing"]' in done.stderr
        assert done.stderr.endswith("error: fail failed: KeyError: 'missing'\n")
        assert done.stderr.count("Traceback") == 1
        assert "synapse_runtime" not in done.stderr

    def test_has_no_traceback_with_no_debug(self, synapse: Synapse) -> None:
        done = synapse.run("fail", *LOCAL, "--no-debug")
        assert (done.status, done.stdout) == (1, "")
        assert done.stderr == "error: fail failed: KeyError: 'missing'\n"

    def test_debug_shows_debug_messages_and_all_lines_of_the_error(self, synapse: Synapse) -> None:
        assert_debug_shows_more(synapse.run("whisper", *LOCAL), synapse.run("whisper", *LOCAL, "--no-debug"))

    def test_invalid_params_error_is_one_line_with_no_debug(self, synapse: Synapse) -> None:
        done = synapse.run("train", *LOCAL, "--no-debug", "--params", '{"epochs": "x", "batch_size": "y"}')
        assert re.fullmatch(r"error: train: 2 invalid parameters .*; epochs: .*; batch_size: .*\n", done.stderr)

    def test_prints_nothing_on_stdout_with_json(self, synapse: Synapse) -> None:
        done = synapse.run("fail", *LOCAL, "--json")
        assert (done.status, done.stdout) == (1, "")
        assert "KeyError: 'missing'" in done.stderr

    def test_sys_exit_exits_with_1(self, synapse: Synapse) -> None:
        done = synapse.run("leave", *LOCAL)
        assert done.status == 1
        assert "error: leave called sys.exit(3)" in done.stderr

    def test_timeout_exits_with_124_and_shows_the_stack(self, synapse: Synapse) -> None:
        done = synapse.run("nap", *LOCAL, "--timeout", "0.3")
        assert done.status == 124
        assert "error: nap exceeded its timeout of 0.3 s" in done.stderr
        assert "time.sleep(60)" in done.stderr
        assert done.seconds < patience(10)


ENDS = """\
import os
import sys

from pydantic import BaseModel, field_validator

from synapse_runtime.action import BaseAction


class Params(BaseModel):
    how: str

    @field_validator("how")
    @classmethod
    def check(cls, how):
        if how == "exit":
            sys.exit("no GPU")
        return how


class Ends(BaseAction[Params]):
    def execute(self):
        os._exit(0)
"""


class TestEnds:
    @pytest.fixture
    def ends(self, tmp_path: Path) -> Path:
        actions = {"at_import": "exits:Any", "at_import_0": "exits_0:Any", "at_once": "exits_at_once:Any"}
        entries = "".join(f"  {name}: {{entrypoint: {entry}}}\n" for name, entry in actions.items())
        (tmp_path / "config.yaml").write_text("code: ends\nactions:\n  ends: {entrypoint: ends:Ends}\n" + entries)
        (tmp_path / "ends.py").write_text(ENDS)
        (tmp_path / "exits.py").write_text("import sys\nsys.exit('no GPU')\n")
        (tmp_path / "exits_0.py").write_text("import sys\nsys.exit()\n")
        (tmp_path / "exits_at_once.py").write_text("import os\nos._exit(0)\n")
        return tmp_path

    @pytest.mark.parametrize(
        ("action", "params", "status", "text"),
        [
            ("at_import", "{}", 1, "at_import: importing exits failed: it called sys.exit('no GPU')"),
            ("at_import_0", "{}", 1, "at_import_0: importing exits_0 failed: it called sys.exit(None)"),
            ("at_once", "{}", 1, "at_once called os._exit(0), which ends the process it runs in"),
            ("ends", '{"how": "exit"}', 2, "validating the parameters failed (Params): it called sys.exit('no GPU')"),
            ("ends", '{"how": "now"}', 1, "ends called os._exit(0), which ends the process it runs in"),
        ],
    )
    def test_end_of_the_process_is_an_error(
        self, synapse: Synapse, ends: Path, action: str, params: str, status: int, text: str
    ) -> None:
        done = synapse("plugin", "run", action, *LOCAL, "--path", str(ends), "--params", params)
        assert (done.status, done.stdout) == (status, "")
        assert text in done.stderr


class TestWrongInput:
    def test_action_name_error_suggests_the_closest(self, synapse: Synapse) -> None:
        done = synapse.run("trian", *LOCAL)
        assert (done.status, done.stdout) == (2, "")
        assert "there is no action 'trian'" in done.stderr
        assert "Did you mean 'train'? Available: train, infer, fail," in done.stderr
        assert "Traceback" not in done.stderr

    def test_params_error_names_the_field(self, synapse: Synapse) -> None:
        done = synapse.run("train", *LOCAL, "--params", '{"epochs": "x"}')
        assert (done.status, done.stdout) == (2, "")
        assert "error: train: 1 invalid parameter (TrainParams)\n  epochs: " in done.stderr
        assert "got 'x'" in done.stderr

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ('{"epochs": x}', 'line 1, column 12\n  {"epochs": x}\n             ^\n'),
            ('{\n "epochs": 1,\n "b" 2}', 'line 3, column 6\n   "b" 2}\n       ^\n'),
            ("", "line 1, column 1\n  \n  ^\n"),
        ],
    )
    def test_json_error_points_to_the_position(self, synapse: Synapse, text: str, shown: str) -> None:
        done = synapse.run("train", *LOCAL, "--params", text)
        assert (done.status, done.stdout) == (2, "")
        assert "Invalid value for --params: invalid JSON: " in done.stderr
        assert shown in done.stderr

    @pytest.mark.parametrize("text", ["[1]", '"epochs"', "5", "null"])
    def test_params_must_be_an_object(self, synapse: Synapse, text: str) -> None:
        done = synapse.run("train", *LOCAL, "--params", text)
        assert done.status == 2
        assert "expected a JSON object such as '{\"epochs\": 5}', got " in done.stderr

    def test_yaml_error_names_file_and_line(self, synapse: Synapse, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text("code: broken\nactions:\n  train: [unclosed\n")
        done = synapse.run("train", *LOCAL, "--path", str(tmp_path))
        assert (done.status, done.stdout) == (2, "")
        assert f"error: {tmp_path / 'config.yaml'}:4: invalid YAML: " in done.stderr

    def test_config_field_error_names_file_and_line(self, synapse: Synapse, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text("code: odd\nactions:\n  train:\n    entrypoint: not an entrypoint\n")
        done = synapse.run("train", *LOCAL, "--path", str(tmp_path))
        assert done.status == 2
        assert f"error: {tmp_path / 'config.yaml'}:4: actions.train.entrypoint: expected 'module:Name'" in done.stderr

    def test_path_without_a_plugin_is_an_error(self, synapse: Synapse, tmp_path: Path) -> None:
        done = synapse.run("train", *LOCAL, "--path", str(tmp_path))
        assert done.status == 2
        assert f"error: {tmp_path}: no config.yaml or synapse.yaml in this directory" in done.stderr

    def test_missing_path_is_an_error(self, synapse: Synapse, tmp_path: Path) -> None:
        done = synapse.run("train", *LOCAL, "--path", str(tmp_path / "nowhere"))
        assert done.status == 2
        assert "the plugin does not exist" in done.stderr

    def test_mode_error_suggests_the_closest(self, synapse: Synapse) -> None:
        done = synapse.run("train", "--mode", "lcoal")
        assert done.status == 2
        assert "unknown mode 'lcoal', did you mean 'local'?" in done.stderr

    @pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "-inf", "1e400", "1e12", "soon"])
    @pytest.mark.parametrize(
        "command", [("plugin", "run", "train", *LOCAL), ("plugin", "check"), ("plugin", "update-config")]
    )
    def test_timeout_must_be_a_positive_number(self, synapse: Synapse, command: tuple[str, ...], seconds: str) -> None:
        done = synapse(*command, "--timeout", seconds)
        assert (done.status, done.stdout) == (2, "")
        assert "--timeout" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "1e12"])
    def test_timeout_for_a_job_must_be_a_number_of_seconds(self, synapse: Synapse, seconds: str) -> None:
        done = synapse("job", "result", "some-job", "--timeout", seconds)
        assert (done.status, done.stdout) == (2, "")
        assert "--timeout" in done.stderr

    def test_unknown_option_is_an_error(self, synapse: Synapse) -> None:
        done = synapse.run("train", "--epochs", "5")
        assert done.status == 2
        assert "No such option: --epochs" in done.stderr

    def test_missing_action_is_an_error(self, synapse: Synapse) -> None:
        done = synapse.run()
        assert done.status == 2
        assert "Missing argument 'ACTION'" in done.stderr


class TestEnvironment:
    def test_is_merged_from_process_config_file_and_option(self, synapse: Synapse, tmp_path: Path) -> None:
        file = tmp_path / "settings.env"
        file.write_text("# settings\nSHARED=file\nexport FROM_FILE='a b'\nGIVEN=file\n")
        done = synapse.run(
            "show_env", *LOCAL, "--json", "--env-file", str(file), "--env", "GIVEN=first", "--env", "GIVEN=a=b",
            OUTSIDE="process", LEVEL="process", SHARED="process", GIVEN="process",
        )  # fmt: skip
        assert done.result == {
            "OUTSIDE": ["process", "process"],
            "LEVEL": ["config", "config"],
            "SHARED": ["file", "file"],
            "FROM_FILE": ["a b", "a b"],
            "GIVEN": ["a=b", "a=b"],
        }

    def test_toml_file_keeps_types(self, synapse: Synapse, tmp_path: Path) -> None:
        (tmp_path / "settings.toml").write_text('FROM_FILE = 5\nGIVEN = ["a", "b"]\n')
        done = synapse.run("show_env", *LOCAL, "--json", "--env-file", str(tmp_path / "settings.toml"))
        assert done.result["FROM_FILE"] == [5, "5"]
        assert done.result["GIVEN"] == [["a", "b"], "a,b"]

    @pytest.mark.parametrize("pair", ["GIVEN", "=value", ""])
    def test_option_must_be_name_and_value(self, synapse: Synapse, pair: str) -> None:
        done = synapse.run("show_env", *LOCAL, "--env", pair)
        assert done.status == 2
        assert "Invalid value for --env: expected NAME=VALUE" in done.stderr

    def test_missing_file_is_an_error(self, synapse: Synapse) -> None:
        done = synapse.run("show_env", *LOCAL, "--env-file", "nowhere.env")
        assert done.status == 2
        assert done.stderr == "error: environment file nowhere.env does not exist\n"

    def test_invalid_file_error_names_the_line(self, synapse: Synapse, tmp_path: Path) -> None:
        (tmp_path / "broken.env").write_text("A=1\nno pair\n")
        done = synapse.run("show_env", *LOCAL, "--env-file", str(tmp_path / "broken.env"))
        assert done.status == 2
        assert f"error: {tmp_path / 'broken.env'}:2: expected NAME=value" in done.stderr


class TestInference:
    def test_input_and_infer_path_are_passed_as_params(self, synapse: Synapse) -> None:
        done = synapse.run("infer", *LOCAL, "--json", "--input", '{"text": "hi"}', "--infer-path", "/v1")
        assert done.result == {"input": {"text": "hi"}, "infer_path": "/v1"}

    def test_input_accepts_any_json_and_overrides_params(self, synapse: Synapse) -> None:
        done = synapse.run("infer", *LOCAL, "--json", "-i", "[1, 2]", "--params", '{"top": 3, "input": 0}')
        assert done.result == {"top": 3, "input": [1, 2]}

    def test_invalid_input_error_points_to_the_position(self, synapse: Synapse) -> None:
        done = synapse.run("infer", *LOCAL, "--input", "{nope}")
        assert done.status == 2
        assert "Invalid value for --input: invalid JSON" in done.stderr
        assert "  {nope}\n   ^\n" in done.stderr


class TestMode:
    def test_defaults_to_local_with_a_note_without_a_terminal(self, synapse: Synapse) -> None:
        done = synapse.run("train", "--json")
        assert done.result == {"epochs": 2, "batch_size": 16}
        assert "no --mode given: running in local mode\n" in done.stderr

    def test_prompts_on_a_terminal(self, synapse: Synapse) -> None:
        with synapse.on_terminal("train") as child:
            child.expect(r"Where to run: local, task, job or remote \[local\]: ")
            child.sendline("")
            child.expect(r"Result of train \(local")
            assert status_of(child) == 0

    def test_invalid_answer_is_an_error(self, synapse: Synapse) -> None:
        with synapse.on_terminal("train") as child:
            child.expect("Where to run")
            child.sendline("tsak")
            child.expect("did you mean 'task'")
            assert status_of(child) == 2

    @pytest.mark.parametrize("key", ["c", "d"])
    def test_interrupted_prompt_exits_with_130(self, synapse: Synapse, key: str) -> None:
        with synapse.on_terminal("train") as child:
            child.expect("Where to run.*: ")
            for _ in range(5):  # readline ignores keys between the prompt and its wait for input
                child.sendcontrol(key)
                if child.expect(["interrupted", pexpect.TIMEOUT], timeout=patience(4)) == 0:
                    break
            assert status_of(child) == 130

    def test_wrong_action_name_is_reported_before_the_prompt(self, synapse: Synapse) -> None:
        with synapse.on_terminal("trian") as child:
            assert child.expect(["Did you mean 'train'", "Where to run"]) == 0
            assert status_of(child) == 2

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("--memory", "2 cups", "memory must be a number of bytes, or text such as '2GB' or '512MiB', not '2 cups'"),
            ("--resource", "tpu", "expected NAME=NUMBER, got 'tpu'"),
            ("--resource", "tpu=many", "expected NAME=NUMBER, got 'tpu=many'"),
            ("--resource", "GPU=1", "resources cannot contain 'GPU': use num_gpus"),
        ],
    )
    def test_invalid_resource_options_exit_with_2(
        self, synapse: Synapse, option: str, value: str, message: str
    ) -> None:
        done = synapse.run("train", "--mode", "task", option, value)
        assert (done.status, done.stdout) == (2, "")
        assert message in " ".join(done.stderr.split())

    def test_notes_options_without_effect(self, synapse: Synapse) -> None:
        unused = ("--memory", "1GB", "--debug-sdk", "--host", "h", "--token", "secret")
        done = synapse.run("train", *LOCAL, *unused, "--json")
        assert done.status == 0
        assert "--ray-address, --cpus, --gpus, --memory and --resource are for task and job mode" in done.stderr
        assert "--debug-sdk is for task and job mode" in done.stderr
        assert "--host and --token are for remote mode" in done.stderr


class TestPlugin:
    def test_is_found_by_its_code(self, synapse: Synapse) -> None:
        assert synapse.run("train", *LOCAL, "--plugin", "demo", "--json").status == 0

    def test_is_found_by_its_module(self, synapse: Synapse, tmp_path: Path) -> None:
        package = tmp_path / "vision" / "yolov8"
        package.mkdir(parents=True)
        for directory in (package, package.parent):
            (directory / "__init__.py").touch()
        write_plugin(package)
        done = synapse.run("train", *LOCAL, "-p", "vision.yolov8", "--json", cwd=tmp_path)
        assert done.result == {"epochs": 2, "batch_size": 16}

    def test_with_another_code_at_the_path_is_an_error(self, synapse: Synapse, plugin_dir: Path) -> None:
        done = synapse.run("train", *LOCAL, "--plugin", "other", "--path", str(plugin_dir))
        assert (done.status, done.stdout) == (2, "")
        assert f"error: {plugin_dir / 'config.yaml'}: this is plugin 'demo', not 'other'" in done.stderr

    def test_unknown_name_is_an_error(self, synapse: Synapse) -> None:
        done = synapse.run("train", *LOCAL, "--plugin", "unknown_plugin")
        assert (done.status, done.stdout) == (2, "")
        assert "plugin 'unknown_plugin' is neither a directory, a config file nor an importable module" in done.stderr

    @pytest.mark.parametrize("inside", [".", "config.yaml"])
    def test_is_found_at_the_path(self, synapse: Synapse, plugin_dir: Path, tmp_path: Path, inside: str) -> None:
        done = synapse.run("train", *LOCAL, "--json", "--path", str(plugin_dir / inside), cwd=tmp_path)
        assert done.result == {"epochs": 2, "batch_size": 16}

    def test_is_found_in_a_parent_directory(self, synapse: Synapse, plugin_dir: Path) -> None:
        deeper = plugin_dir / "data" / "raw"
        deeper.mkdir(parents=True, exist_ok=True)
        assert synapse.run("train", *LOCAL, "--json", cwd=deeper).status == 0
        assert synapse.run("train", *LOCAL, "--json", "--plugin", "demo", cwd=deeper).status == 0

    def test_synapse_yaml_is_accepted(self, synapse: Synapse, tmp_path: Path) -> None:
        write_plugin(tmp_path)
        (tmp_path / "config.yaml").rename(tmp_path / "synapse.yaml")
        assert synapse.run("train", *LOCAL, "--json", cwd=tmp_path).result == {"epochs": 2, "batch_size": 16}

    def test_missing_in_the_current_directory_is_an_error(self, synapse: Synapse, tmp_path: Path) -> None:
        done = synapse.run("train", *LOCAL, cwd=tmp_path)
        assert done.status == 2
        assert "no config.yaml or synapse.yaml in this directory" in done.stderr


class TestEnd:
    @pytest.mark.parametrize("action", ["talk", "big"])
    def test_is_silent_when_stdout_is_closed(self, synapse: Synapse, action: str) -> None:
        # With unbuffered output, Python treats a write that the closed pipe has cut short as complete.
        with synapse.started(action, *LOCAL, PYTHONUNBUFFERED="") as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            time.sleep(0.1)  # so that the pipe is full
            process.stdout.close()
            assert process.stderr.read() == ""
            assert process.wait(patience(20)) == 141

    def test_is_silent_in_a_pipe_to_head(self, synapse: Synapse) -> None:
        pipeline = subprocess.run(
            ["bash", "-c", '"$@" | head -1', "bash", *COMMAND, "plugin", "run", "talk", *LOCAL],
            cwd=synapse.cwd,
            env=synapse.environment(),
            capture_output=True,
            text=True,
            timeout=patience(30),
        )
        assert "line number=0" in pipeline.stdout
        assert (pipeline.stdout.count("\n"), pipeline.stderr) == (1, "")

    def test_ctrl_c_exits_with_130_without_a_traceback(self, synapse: Synapse) -> None:
        with synapse.started("nap", *LOCAL) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert "asleep" in process.stdout.readline()
            interrupt(process)
            assert process.wait(patience(5)) == 130
            assert process.stderr.read() == "interrupted\n"

    def test_leaves_no_files(self, synapse: Synapse, plugin_dir: Path) -> None:
        before = {path for path in plugin_dir.rglob("*") if "__pycache__" not in path.parts}
        assert synapse.run("noise", *LOCAL).status == 0
        assert {path for path in plugin_dir.rglob("*") if "__pycache__" not in path.parts} == before
        assert synapse.leftovers() == []


class TestHelp:
    def test_shows_the_version(self, synapse: Synapse) -> None:
        done = synapse("--version")
        assert (done.status, done.stdout, done.stderr) == (0, f"synapse {__version__}\n", "")

    @pytest.mark.parametrize(
        ("arguments", "mentions"), [((), "plugin"), (("plugin",), "run"), (("plugin", "run"), "-")]
    )
    def test_lists_commands_and_options(self, synapse: Synapse, arguments: tuple[str, ...], mentions: str) -> None:
        done = synapse(*arguments, "--help")
        assert (done.status, done.stderr) == (0, "")
        assert mentions in done.stdout

    def test_is_shown_with_status_2_without_a_command(self, synapse: Synapse) -> None:
        done = synapse()
        assert done.status == 2
        assert "COMMAND [ARGS]" in done.stdout + done.stderr

    def test_unknown_command_is_an_error(self, synapse: Synapse) -> None:
        done = synapse("plugins")
        assert done.status == 2
        assert "No such command 'plugins'" in done.stderr

    def test_does_not_import_ray(self, synapse: Synapse) -> None:
        script = (
            "import sys; from synapse_runtime.cli.app import run; "
            "run(['plugin', 'run', '--help']); print('ray' in sys.modules)"
        )
        done = synapse(command=[*COMMAND[:1], "-c", script])
        assert done.stdout.endswith("\nFalse\n")

"""`synapse plugin check`, `synapse plugin update-config`, and notes of `synapse plugin run` on a config file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import Synapse, synapse_in

CONFIG = """\
code: lab
name: Lab
actions:
  train:
    entrypoint: plugin.train:train  # here
"""
TRAIN = """\
from synapse_runtime.decorators import action


@action
def train(params, context):
    return "trained"
"""
INFER = TRAIN.replace("trained", "inferred").replace("train(", "infer(")


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A plugin without problems."""
    (tmp_path / "plugin").mkdir()
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "plugin" / "train.py").write_text(TRAIN)
    return tmp_path


@pytest.fixture
def synapse(lab: Path) -> Iterator[Synapse]:
    """The command, in the plugin's directory."""
    with synapse_in(lab) as command:
        yield command
        assert command.leftovers() == []


def write_faults(lab: Path) -> None:
    (lab / "config.yaml").write_text(CONFIG.replace("plugin.train:train", "plugin.train:trian") + "categry: custom\n")


class TestCheck:
    def test_valid_plugin_prints_what_was_checked(self, synapse: Synapse) -> None:
        done = synapse("plugin", "check")
        assert (done.status, done.stderr) == (0, "")
        assert done.stdout == "OK (checked: config.yaml, 1 action)\n"

    def test_prints_each_problem_on_its_own_line(self, synapse: Synapse, lab: Path) -> None:
        write_faults(lab)
        done = synapse("plugin", "check", str(lab / "config.yaml"))
        assert (done.status, done.stderr) == (1, "")
        assert done.stdout == (
            "config.yaml:5: error: action 'train': module 'plugin.train' has no 'trian'; did you mean 'train'?\n"
            "config.yaml:6: warning: unknown field 'categry'; did you mean 'category'?\n"
            "1 error, 1 warning (checked: config.yaml, 1 action)\n"
        )

    def test_prints_json(self, synapse: Synapse, lab: Path) -> None:
        write_faults(lab)
        done = synapse("plugin", "check", "--json", "--path", str(lab), cwd=lab.parent)
        assert done.status == 1
        assert done.result[1] == {
            "file": str(lab / "config.yaml"),
            "line": 6,
            "level": "warning",
            "text": "unknown field 'categry'; did you mean 'category'?",
        }

    @pytest.mark.parametrize(("options", "status"), [((), 0), (("--strict",), 1)])
    def test_warnings_exit_with_1_only_if_strict(
        self, synapse: Synapse, lab: Path, options: tuple[str, ...], status: int
    ) -> None:
        (lab / "config.yaml").write_text(CONFIG + "categry: custom\n")
        assert synapse("plugin", "check", *options).status == status

    def test_finds_the_plugin_in_a_parent_directory(self, synapse: Synapse, lab: Path) -> None:
        assert synapse("plugin", "check", cwd=lab / "plugin").status == 0

    def test_import_that_hangs_times_out(self, synapse: Synapse, lab: Path) -> None:
        (lab / "plugin" / "train.py").write_text("while True:\n    pass\n")
        done = synapse("plugin", "check", "--timeout", "0.5")
        assert done.status == 1
        assert "plugin/train.py:" in done.stdout
        assert "import timed out after 0.5 s" in done.stdout

    @pytest.mark.parametrize("path", ["nowhere", "plugin"])
    def test_missing_plugin_exits_with_2(self, synapse: Synapse, path: str) -> None:
        done = synapse("plugin", "check", path)
        assert (done.status, done.stdout) == (2, "")
        assert "nowhere" in done.stderr or "no config.yaml or synapse.yaml in this directory" in done.stderr
        assert "Traceback" not in done.stderr


WITH_PARAMS = """\
from pydantic import BaseModel
from synapse_runtime.decorators import action


class TrainParams(BaseModel):
    epochs: int = 3


@action(params=TrainParams)
def train(params, context): ...
"""


class TestUpdateConfig:
    def test_adds_new_actions_once(self, synapse: Synapse, lab: Path) -> None:
        (lab / "plugin" / "infer.py").write_text(INFER)
        done = synapse("plugin", "update-config")
        assert (done.status, done.stderr) == (0, "")
        assert done.stdout == "added: infer (entrypoint: plugin.infer:infer, method: task)\n"
        after = CONFIG + "  infer:\n    entrypoint: plugin.infer:infer\n    method: task\n"
        assert (lab / "config.yaml").read_text() == after
        assert synapse("plugin", "update-config", "-p", ".").stdout == "config.yaml is up to date\n"
        assert (lab / "config.yaml").read_text() == after
        assert synapse.run("infer", "--mode", "local", "--json").result == "inferred"

    def test_check_prints_the_diff_and_writes_nothing(self, synapse: Synapse, lab: Path) -> None:
        (lab / "plugin" / "train.py").rename(lab / "plugin" / "learn.py")
        done = synapse("plugin", "update-config", "--check")
        assert (done.status, done.stderr) == (1, "")
        assert done.stdout.splitlines()[-2:] == [
            "-    entrypoint: plugin.train:train  # here",
            "+    entrypoint: plugin.learn:train  # here",
        ]
        assert (lab / "config.yaml").read_text() == CONFIG

    def test_notes_actions_missing_from_the_code_and_prune_removes_them(self, synapse: Synapse, lab: Path) -> None:
        (lab / "plugin" / "train.py").unlink()
        done = synapse("plugin", "update-config")
        assert (done.status, done.stdout) == (0, "config.yaml is up to date\n")
        assert done.stderr.startswith("missing: train: its entrypoint does not exist")
        done = synapse("plugin", "update-config", "--prune", "--json")
        assert done.result == {
            "changed": True,
            "changes": [{"kind": "removed", "action": "train", "fields": {}}],
            "problems": [],
        }
        assert (lab / "config.yaml").read_text() == "code: lab\nname: Lab\nactions:\n"

    def test_writes_forms_and_shows_their_sizes(self, synapse: Synapse, lab: Path) -> None:
        (lab / "plugin" / "train.py").write_text(WITH_PARAMS)
        form = "      - {$formkit: number, name: epochs, label: Epochs, value: 3, placeholder: 3, number: true"
        after = CONFIG + f"    hyperparameters:\n      train_ui_schemas:\n  {form}, required: true}}\n"

        done = synapse("plugin", "update-config", "--check")
        assert (done.status, done.stderr) == (1, "")
        assert f"+  {form}, required: true}}" in done.stdout.splitlines()
        assert (lab / "config.yaml").read_text() == CONFIG

        done = synapse("plugin", "update-config")
        assert (done.status, done.stdout, done.stderr) == (0, "updated: train (form: 1 field)\n", "")
        assert (lab / "config.yaml").read_text() == after
        assert synapse("plugin", "update-config", "--check").stdout == "config.yaml is up to date\n"
        assert synapse("plugin", "check", "--strict").status == 0

        (lab / "plugin" / "train.py").write_text(TRAIN)
        (change,) = synapse("plugin", "update-config", "--json").result["changes"]
        assert change == {"kind": "updated", "action": "train", "fields": {"hyperparameters.train_ui_schemas": None}}
        assert (lab / "config.yaml").read_text() == CONFIG

    def test_json_has_the_whole_forms(self, synapse: Synapse, lab: Path) -> None:
        (lab / "plugin" / "train.py").write_text(WITH_PARAMS)
        done = synapse("plugin", "update-config", "--check", "--json")
        assert done.status == 1
        item = {"$formkit": "number", "name": "epochs", "label": "Epochs", "value": 3, "placeholder": 3}
        fields = {"hyperparameters.train_ui_schemas": [item | {"number": True, "required": True}]}
        assert done.result["changes"] == [{"kind": "updated", "action": "train", "fields": fields}]

    def test_reports_modules_that_cannot_be_inspected(self, synapse: Synapse, lab: Path) -> None:
        (lab / "plugin" / "train.py").write_text("import sys\n\n\nclass A: ...\n\n\nsys.exit('no')\n")
        done = synapse("plugin", "update-config")
        assert (done.status, done.stdout) == (1, "config.yaml is up to date\n")
        assert done.stderr == "plugin/train.py:7: error: cannot inspect plugin.train: SystemExit: no\n"


class TestRun:
    def test_notes_unknown_fields_of_the_config_file(self, synapse: Synapse, lab: Path) -> None:
        (lab / "config.yaml").write_text(CONFIG + "categry: custom\ncolur: blue\n")
        done = synapse.run("train", "--mode", "local", "--json")
        assert (done.status, done.result) == (0, "trained")
        assert done.stderr == (
            "config.yaml:6: unknown field 'categry'; did you mean 'category'?\n"
            "config.yaml:7: unknown field 'colur'; it has no effect\n"
        )

    def test_strict_fails_on_unknown_fields(self, synapse: Synapse, lab: Path) -> None:
        (lab / "config.yaml").write_text(CONFIG + "categry: custom\n")
        done = synapse.run("train", "--mode", "local", "--strict")
        assert (done.status, done.stdout) == (2, "")
        assert done.stderr == "error: config.yaml:6: unknown field 'categry'; did you mean 'category'?\n"


def test_json_is_alone_on_standard_output(synapse: Synapse, lab: Path) -> None:
    (lab / "plugin" / "train.py").write_text("print('noise')\n" + TRAIN)
    assert json.loads(synapse("plugin", "check", "--json").stdout) == []

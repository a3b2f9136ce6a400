"""Tests for writing the actions of the code into the config file, leaving everything else unchanged."""

from __future__ import annotations

import os
import stat
import textwrap
from pathlib import Path

import pytest

from synapse_runtime.errors import ConfigError
from synapse_runtime.plugins.config_sync import Update, plan_update
from synapse_runtime.plugins.manifest import parse_manifest_leniently, read_manifest

CONFIG = """\
# The lab's plugin.
code:   lab   # its id
variant: null

actions:
  train:   # learns
    entrypoint: plugin.old:TrainAction  # moved since
    method: "job"
    description: 'As it was.'

  # Reads.
  read: plugin.infer:InferAction

  gone:
    entrypoint: plugin.gone:GoneAction
    method: task

# The end.
"""

FILES = {
    "plugin/__init__.py": "",
    "plugin/train.py": '''\
        from synapse_runtime.action import BaseAction


        class Weights:
            name = "model_weights"


        class TrainAction(BaseAction):
            """Trains."""

            input_type = "yolo_dataset"
            output_type = Weights

            def execute(self):
                return 1
        ''',
    "plugin/infer.py": '''\
        from synapse_runtime.action import BaseAction
        from synapse_runtime.decorators import action


        class InferAction(BaseAction):
            def execute(self):
                return 1


        @action(description="Exports: all of it.")
        def export(params, context):
            return 1


        class Tune:
            """Tunes."""

            action_name = "tune"
            method = "job"

            def dispatch(self, params, context):
                return 1
        ''',
    "tests/test_it.py": "raise AssertionError('tests do not belong to a plugin')\n",
}

AFTER = """\
# The lab's plugin.
code:   lab   # its id
variant: null

actions:
  train:   # learns
    entrypoint: plugin.train:TrainAction  # moved since
    method: "job"
    description: 'As it was.'
    input_type: yolo_dataset
    output_type: model_weights

  # Reads.
  read: plugin.infer:InferAction

  gone:
    entrypoint: plugin.gone:GoneAction
    method: task

  export:
    entrypoint: plugin.infer:export
    method: task
    description: 'Exports: all of it.'

  tune:
    entrypoint: plugin.infer:Tune
    method: job
    description: Tunes.

# The end.
"""


@pytest.fixture
def lab(write_plugin):
    """Return a function that writes the plugin, with some files changed."""

    def write(config: str = CONFIG, **changed: str) -> Path:
        files = FILES | {f"plugin/{name}.py": text for name, text in changed.items()}
        return write_plugin(config=config, files=files)

    return write


def kinds(update: Update) -> list[tuple[str, str]]:
    return [(change.kind, change.action) for change in update.changes]


def test_update_touches_only_changed_lines(lab):
    root = lab()
    update = plan_update(root)
    assert kinds(update) == [
        ("moved", "train"),
        ("missing", "gone"),
        ("typed", "train"),
        ("added", "export"),
        ("added", "tune"),
    ]
    assert update.problems == ()
    assert update.after == AFTER
    assert (root / "config.yaml").read_text() == CONFIG
    update.write()
    assert (root / "config.yaml").read_text() == AFTER
    assert read_manifest(root).actions["train"].output_type == "model_weights"


def test_second_update_changes_and_writes_nothing(lab):
    root = lab(AFTER)
    path = root / "config.yaml"
    before = path.stat()
    update = plan_update(root)
    update.write()
    assert (kinds(update), update.diff) == ([("missing", "gone")], "")
    assert path.stat() == before


def test_prune_removes_actions_missing_in_the_code(lab):
    update = plan_update(lab(AFTER), prune=True)
    assert kinds(update) == [("removed", "gone")]
    gone = "  gone:\n    entrypoint: plugin.gone:GoneAction\n    method: task\n"
    assert update.after == AFTER.replace(gone, "")


def test_entrypoint_of_a_non_action_is_kept(lab):
    config = "code: lab\nactions:\n  later: plugin.later:Later\n"
    update = plan_update(lab(config, later="class Later:\n    pass\n"), prune=True)
    assert {kind for kind, _ in kinds(update)} == {"added"}
    assert update.after.startswith(config)


def test_diff_is_in_unified_format(lab):
    assert plan_update(lab(AFTER), prune=True).diff == textwrap.dedent("""\
        --- config.yaml
        +++ config.yaml
        @@ -13,9 +13,6 @@
           # Reads.
           read: plugin.infer:InferAction
        {0}
        -  gone:
        -    entrypoint: plugin.gone:GoneAction
        -    method: task
        {0}
           export:
             entrypoint: plugin.infer:export
        """).replace("{0}", " ")


def test_file_without_actions_gets_the_actions_of_the_code(lab):
    update = plan_update(lab("code: lab\r\nname: Lab"))
    assert kinds(update) == [("added", name) for name in ("infer", "export", "tune", "train")]
    assert update.after.startswith("code: lab\r\nname: Lab\r\nactions:\r\n  infer:\r\n    entrypoint: plugin.infer:")
    assert "\n" not in update.after.replace("\r\n", "")


def test_entrypoints_follow_the_style_of_the_file(lab):
    root = lab("code: lab\nactions:\n  train: {entrypoint: plugin.old.TrainAction}\n")
    actions = plan_update(root).after
    assert '  train: {entrypoint: "plugin.train.TrainAction", input_type: "yolo_dataset", ' in actions
    assert "entrypoint: plugin.infer.export\n" in actions
    assert ":TrainAction" not in actions


def test_entrypoint_through_a_reexport_is_kept(lab):
    config = "code: lab\nactions:\n  train:\n    entrypoint: plugin.all:TrainAction\n    input_type: yolo_dataset\n"
    update = plan_update(lab(config, all="from plugin.train import TrainAction\n"))
    assert kinds(update) == [("typed", "train")] + [("added", name) for name in ("infer", "export", "tune")]
    assert update.after.startswith(config + "    output_type: model_weights\n")


def test_moved_action_is_matched_by_class_name(lab):
    update = plan_update(lab("code: lab\nactions:\n  learn:\n    entrypoint: plugin.old:TrainAction\n"))
    assert kinds(update)[:2] == [("moved", "learn"), ("typed", "learn")]
    assert "plugin.train:TrainAction" in update.after
    assert ("added", "train") not in kinds(update)


def test_action_without_entrypoint_is_matched_by_name(lab):
    update = plan_update(lab("code: lab\nactions:\n  export:\n  later:\n"))
    assert kinds(update)[0] == ("moved", "export")
    assert '  export: {entrypoint: "plugin.infer:export"}\n  later:\n' in update.after


def test_list_of_actions_stays_a_list(lab):
    config = "code: lab\nactions:\n- name: train\n  entrypoint: plugin.train:TrainAction\n"
    update = plan_update(lab(config))
    assert update.after == (
        config
        + "  input_type: yolo_dataset\n  output_type: model_weights\n"
        + "- name: infer\n  entrypoint: plugin.infer:InferAction\n  method: task\n"
        + "- name: export\n  entrypoint: plugin.infer:export\n  method: task\n  description: 'Exports: all of it.'\n"
        + "- name: tune\n  entrypoint: plugin.infer:Tune\n  method: job\n  description: Tunes.\n"
    )


def test_actions_of_a_broken_module_are_left_alone(lab):
    config = "code: lab\nactions:\n  train:\n    entrypoint: plugin.train:TrainAction\n"
    root = lab(config, train="import no_such_module\n")
    update = plan_update(root, prune=True)
    assert kinds(update) == [("added", name) for name in ("infer", "export", "tune")]
    (problem,) = update.problems
    assert (problem.path, problem.line) == (root / "plugin/train.py", 1)
    assert problem.text == "cannot inspect plugin.train: ModuleNotFoundError: No module named 'no_such_module'"


def test_duplicate_action_name_is_reported(lab):
    second = "from synapse_runtime.decorators import action\n\n\n@action\ndef export(params, context): ...\n"
    root = lab(AFTER, second=second)
    (problem,) = plan_update(root).problems
    assert (problem.path, problem.line) == (root / "plugin/second.py", 4)
    assert problem.text == (
        "cannot add plugin.second:export: an action 'export' already exists; set another action_name"
    )


BY_HAND = """\
code: lab
x-old: &old {entrypoint: plugin.old:TrainAction}
actions:
  train: *old
  gone: &gone {entrypoint: plugin.gone:A, method: job}
  infer: {<<: *gone, entrypoint: plugin.infer:InferAction}
"""


def test_changes_to_aliases_are_reported_and_others_applied(lab):
    root = lab(BY_HAND)
    update = plan_update(root, prune=True)
    assert [(problem.path, problem.line, problem.text) for problem in update.problems] == [
        (
            root / "config.yaml",
            4,
            "cannot edit action 'train' automatically; set entrypoint: plugin.train:TrainAction",
        ),
        (root / "config.yaml", 5, "cannot edit action 'gone' automatically; remove it"),
        (
            root / "config.yaml",
            4,
            "cannot edit action 'train' automatically; set input_type: yolo_dataset, output_type: model_weights",
        ),
    ]
    assert kinds(update) == [("added", "export"), ("added", "tune")]
    assert update.after.startswith(BY_HAND)


def test_change_that_affects_other_actions_is_reported(lab):
    config = """\
code: lab
actions:
  train: &train
    entrypoint: plugin.train:TrainAction
  infer:
    <<: *train
    entrypoint: plugin.infer:InferAction
"""
    update = plan_update(lab(config))
    assert [problem.line for problem in update.problems] == [3]
    assert update.after.startswith(config)


def test_file_in_flow_style_is_left_unchanged(lab):
    update = plan_update(lab("{code: lab}\n"))
    assert len(update.problems) == 4
    assert (update.changes, update.diff) == ((), "")


FORMS = """\
code: lab
actions:
  train:
    entrypoint: plugin.train:TrainAction # here
    hyperparameters: # of the console
      own: [1,   2]
      # Generated.
      train_ui_schemas:
      - $formkit: number   # rounds
        name: epochs
        label: Epochs
        value: 3
        placeholder: 3
        number: true
        required: true
      - {name: rate, label: By hand} # of learning
      - {name: removed}
    method: job
  upload: plugin.train:upload
  serve: {entrypoint: plugin.train:Served, method: serve}
# The end.
"""
WITH_PARAMS = """\
from pathlib import Path

from pydantic import BaseModel, Field
from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action


class TrainParams(BaseModel):
    epochs: int = 3
    rate: float = Field(gt=0)
    checkpoint: str = ""
    output_dir: Path = Path("out")


class TrainResult(BaseModel):
    loss: float


class TrainAction(BaseAction[TrainParams]):
    result_model = TrainResult

    def execute(self): ...


class UploadParams(BaseModel):
    source: str


@action(params=UploadParams)
def upload(params, context): ...


@action(name="check", params=TrainParams, result=TrainResult)
def check_it(params, context): ...


class Served:
    params_model = TrainParams
"""
WITH_FORMS = """\
code: lab
actions:
  train:
    entrypoint: plugin.train:TrainAction # here
    hyperparameters: # of the console
      own: [1,   2]
      # Generated.
      train_ui_schemas:
      - $formkit: number   # rounds
        name: epochs
        label: Epochs
        value: 3
        placeholder: 3
        number: true
        required: true
      - {$formkit: number, name: rate, label: Rate, required: true, min: 0, number: true} # of learning
      - {$formkit: text, name: output_dir, label: Output Dir, value: out, placeholder: out, required: true}
    method: job
    result_schema:
      - {$formkit: number, name: loss, label: Loss, required: true, number: true}
  upload:
    entrypoint: plugin.train:upload
    ui_schema:
      - {$formkit: text, name: source, label: Source, required: true}
      - {$formkit: text, name: group_name, label: 묶음 이름, help: HELP, required: false}
  serve: {entrypoint: plugin.train:Served, method: serve}
  check:
    entrypoint: plugin.train:check_it
    method: task
    hyperparameters:
      train_ui_schemas:
        - {$formkit: number, name: epochs, label: Epochs, value: 3, placeholder: 3, number: true}
        - {$formkit: number, name: rate, label: Rate, required: true, min: 0, number: true}
        - {$formkit: text, name: checkpoint, label: Checkpoint, value: '', placeholder: ''}
        - {$formkit: text, name: output_dir, label: Output Dir, value: out, placeholder: out}
    result_schema:
      - {$formkit: number, name: loss, label: Loss, required: true, number: true}
# The end.
""".replace("HELP", "데이터 유닛에 할당할 묶음 이름을 입력하세요.")


def test_forms_are_written_from_the_models(write_plugin):
    root = write_plugin(config=FORMS, files={"plugin/__init__.py": "", "plugin/train.py": WITH_PARAMS})
    update = plan_update(root)
    assert update.problems == ()
    assert [str(change) for change in update.changes] == [
        "updated: train (form: 3 fields, result: 1 field)",
        "updated: upload (form: 2 fields)",
        "added: check (entrypoint: plugin.train:check_it, method: task, form: 4 fields, result: 1 field)",
    ]
    assert update.after == WITH_FORMS
    update.write()
    again = plan_update(root)
    assert (again.changes, again.diff) == ((), "")


def test_forms_of_removed_models_are_removed(write_plugin):
    code = WITH_PARAMS.replace("BaseAction[TrainParams]", "BaseAction").replace("    result_model = TrainResult\n", "")
    code = code.replace("(params=UploadParams)", "").replace(", params=TrainParams, result=TrainResult", "")
    root = write_plugin(config=WITH_FORMS, files={"plugin/__init__.py": "", "plugin/train.py": code})
    update = plan_update(root)
    assert [str(change) for change in update.changes] == [
        "updated: train (form: removed, result: removed)",
        "updated: upload (form: 1 field)",
        "updated: check (form: removed, result: removed)",
    ]
    actions = parse_manifest_leniently(update.after, root).actions
    assert actions["train"].hyperparameters == {"own": [1, 2]}
    assert [item["name"] for item in actions["upload"].ui_schema] == ["group_name"]
    assert update.after.endswith("  check:\n    entrypoint: plugin.train:check_it\n    method: task\n# The end.\n")


def test_form_of_a_model_that_is_hidden_from_the_console_is_left_alone(write_plugin):
    hidden = 'class TrainParams(BaseModel):\n    model_config = {"json_schema_extra": {"exclude_from_ui": True}}'
    code = WITH_PARAMS.replace("class TrainParams(BaseModel):", hidden)
    root = write_plugin(config=WITH_FORMS, files={"plugin/__init__.py": "", "plugin/train.py": code})
    assert plan_update(root).changes == ()


def test_forms_of_a_module_that_cannot_be_imported_are_left_alone(write_plugin):
    code = WITH_PARAMS + "\nimport no_such_module\n"
    root = write_plugin(config=WITH_FORMS, files={"plugin/__init__.py": "", "plugin/train.py": code})
    update = plan_update(root)
    assert (update.changes, update.diff, len(update.problems)) == ((), "", 1)


def test_form_at_an_alias_is_reported(write_plugin):
    config = WITH_FORMS.replace("code: lab\n", "code: lab\nx-form: &form []\n", 1)
    config = config.replace("    ui_schema:\n", "    ui_schema: *form\n    x-old:\n")
    root = write_plugin(config=config, files={"plugin/__init__.py": "", "plugin/train.py": WITH_PARAMS})
    update = plan_update(root)
    assert (update.changes, update.diff) == ((), "")
    assert [problem.text for problem in update.problems] == [
        "cannot edit action 'upload' automatically; remove what it has at ui_schema, or its alias, "
        "so that the form (2 fields) can be written"
    ]


def test_invalid_file_raises_config_error(lab):
    with pytest.raises(ConfigError, match="duplicate key 'code'"):
        plan_update(lab("code: x\ncode: y\n"))


def test_write_is_atomic_and_keeps_mode_and_symlink(lab, tmp_path):
    root = lab()
    real = tmp_path / "real.yaml"
    (root / "config.yaml").rename(real)
    real.chmod(0o640)
    (root / "config.yaml").symlink_to(real)
    plan_update(root).write()
    assert (root / "config.yaml").is_symlink()
    assert real.read_text() == AFTER
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert set(os.listdir(tmp_path)) == {"a_plugin", "real.yaml"}


def test_failed_write_leaves_the_file_unchanged(lab, monkeypatch):
    root = lab()
    update = plan_update(root)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ConfigError, match=r"config\.yaml: cannot write the file: No space left on device"):
        update.write()
    assert (root / "config.yaml").read_text() == CONFIG
    assert sorted(path.name for path in root.iterdir()) == ["config.yaml", "plugin", "tests"]

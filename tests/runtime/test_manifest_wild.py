"""Tests for real-world config files: all fields of the SDK, unknown fields and values, lists of actions."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import pytest

from synapse_runtime.errors import ConfigError, ConfigWarning
from synapse_runtime.plugins.manifest import (
    ActionSpec,
    Manifest,
    Requires,
    read_manifest,
    read_manifest_leniently,
    warn_about_problems,
)

EVERYTHING = """\
name: Segment
code: segment
version: 1.10
variant: lab
category: smart_tool
description: Segments.
readme: docs/README.md
package_manager: uv
package_manager_options: [--no-deps]
wheels_dir: wheels
env: {A: 1}
runtime_env: {pip: [numpy], env_vars: {B: 2}}
data_type: image
tasks: [image.segmentation, image.object_detection]
supported_data_type: [image, video]
supported_annotation_tools:
  image: [bounding_box, annotationGroup]
  pcd: [3d_segmentation]
annotation_category: image
annotation_type: mask
smart_tool: interactive
smart_tool_type: semi_automatic
requires: {sdk: '>=2026.1.0', python: 3.10, cuda: 12}
dependencies: {other: 2.0}
tags: [a, 1.0]
actions:
  train:
    name: Train it
    entrypoint: plugin.train.TrainAction
    method: job
    description: 3
    input_type: yolo_dataset
    output_type: model_weights
    params_schema: null
    hyperparameters:
      train_ui_schemas:
      - $formkit: number
        name: epochs
        value: 50
  upload:
    entrypoint: plugin.upload.UploadAction
    ui_schema:
    - {$formkit: text, name: group_name, required: false}
  serve:
    entrypoint: plugin.serve.Deployment
    method: serve
    serve_options: {num_replicas: 2}
  ask:
    entrypoint: plugin.ask.Ask
    method: restapi
"""

# As written by the SDK's `synapse plugin create`.
TEMPLATE = """\
name: My custom
code: my-custom
version: 0.1.0
variant: null
category: custom
description: My custom plugin
requires:
  sdk: '>=2026.1.0'
  python: '>=3.10,<3.13'
dependencies: {}
tags: []

actions:
  main:
    entrypoint: plugin.main.run
    method: task
"""


@pytest.fixture
def config(tmp_path):
    """Write a config file and return its path."""

    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


def problems_of(manifest: Manifest) -> list[tuple[int | None, str]]:
    return [(problem.line, problem.text) for problem in manifest.problems]


def test_all_sdk_fields_are_known_and_typed(config):
    manifest = read_manifest(config(EVERYTHING))
    assert problems_of(manifest) == []
    assert manifest.model_extra == {}
    assert manifest.model_dump(exclude={"actions", "env", "runtime_env", "name", "code"}) == {
        "version": "1.10",
        "variant": "lab",
        "category": "smart_tool",
        "description": "Segments.",
        "readme": "docs/README.md",
        "package_manager": "uv",
        "package_manager_options": ["--no-deps"],
        "wheels_dir": "wheels",
        "data_type": "image",
        "tasks": ["image.segmentation", "image.object_detection"],
        "supported_data_types": ["image", "video"],
        "supported_annotation_tools": {"image": ["bounding_box", "annotationGroup"], "pcd": ["3d_segmentation"]},
        "annotation_category": "image",
        "annotation_type": "mask",
        "smart_tool": "interactive",
        "smart_tool_type": "semi_automatic",
        "requires": {"sdk": ">=2026.1.0", "python": "3.10", "cuda": "12"},
        "dependencies": {"other": "2.0"},
        "tags": ["a", "1.0"],
    }
    assert [(name, action.name, action.method) for name, action in manifest.actions.items()] == [
        ("train", "Train it", "job"),
        ("upload", "upload", "task"),
        ("serve", "serve", "serve"),
        ("ask", "ask", "restapi"),
    ]
    train = manifest.actions["train"]
    assert (train.description, train.input_type, train.output_type) == ("3", "yolo_dataset", "model_weights")
    assert train.hyperparameters["train_ui_schemas"][0]["name"] == "epochs"
    assert manifest.actions["upload"].ui_schema[0]["name"] == "group_name"
    assert manifest.actions["serve"].serve_options == {"num_replicas": 2}


def test_all_fields_are_documented():
    page = (Path(__file__).parents[2] / "docs" / "config.md").read_text()
    fields = {*Manifest.model_fields, *ActionSpec.model_fields, *Requires.model_fields, "supported_data_type"}
    assert {name for name in fields if f"`{name}`" not in page} == set()


def test_sdk_template_loads_without_problems(config):
    manifest = read_manifest(config(TEMPLATE))
    assert (manifest.variant, manifest.requires.python, manifest.tags, problems_of(manifest)) == (
        None,
        ">=3.10,<3.13",
        [],
        [],
    )


def test_field_without_value_is_treated_as_absent(config):
    fields = [name for name in Manifest.model_fields if name != "code"]
    manifest = read_manifest(config("code: x\n" + "".join(f"{name}:\n" for name in fields)))
    assert manifest == read_manifest(config("code: x\n"))
    assert manifest.model_fields_set == {"code"}


def test_action_field_without_value_is_treated_as_absent(config):
    manifest = read_manifest(config("code: x\nactions:\n  a:\n    name:\n    entrypoint:\n    method:\n"))
    assert manifest.actions["a"].model_dump(exclude_defaults=True) == {"name": "a"}


UNKNOWN = """\
code: x
colur: blue
categry: custom
entrypoint: a:B
x-anchors: &a {method: job}
_defaults: 1
.more: 2
actions:
  train:
    entrypont: a:B
    data_type: image
    x-note: fine
    <<: *a
  infer: {entrypoint: "a:B", methd: task}
requires:
  pyton: '>=3.11'
"""


def test_unknown_fields_are_reported_with_line_and_suggestion(config):
    path = config(UNKNOWN)
    manifest = read_manifest(path)
    assert problems_of(manifest) == [
        (2, "unknown field 'colur'; it has no effect"),
        (3, "unknown field 'categry'; did you mean 'category'?"),
        (4, "unknown field 'entrypoint'; it belongs in an action"),
        (10, "unknown field 'entrypont' in actions.train; did you mean 'entrypoint'?"),
        (11, "unknown field 'data_type' in actions.train; it belongs at the top level"),
        (14, "unknown field 'methd' in actions.infer; did you mean 'method'?"),
        (16, "unknown field 'pyton' in requires; did you mean 'python'?"),
    ]
    assert {problem.level for problem in manifest.problems} == {"warning"}
    assert {problem.path for problem in manifest.problems} == {path}
    assert str(manifest.problems[0]) == f"{path}:2: unknown field 'colur'; it has no effect"
    assert manifest.actions["train"].method == "job"


def test_unknown_values_are_reported_with_line_and_suggestion(config):
    manifest = read_manifest(
        config("""\
code: x
category: neural_nett
data_type: images
supported_data_type: [image, vidio]
supported_annotation_tools:
  imge: [bounding_box]
  text: [relatoin]
annotation_category: colour
annotation_type: bbx
smart_tool: Interactive
smart_tool_type: auto_matic
actions:
  train: {entrypoint: "a:B", method: jop}
  infer: {entrypoint: "a:B", method: local}
""")
    )
    assert problems_of(manifest) == [
        (2, "category: unknown value 'neural_nett'; did you mean 'neural_net'?"),
        (3, "data_type: unknown value 'images'; did you mean 'image'?"),
        (4, "supported_data_types: unknown value 'vidio'; did you mean 'video'?"),
        (6, "supported_annotation_tools: unknown value 'imge'; did you mean 'image'?"),
        (7, "supported_annotation_tools.text: unknown value 'relatoin'; did you mean 'relation'?"),
        (
            8,
            "annotation_category: unknown value 'colour'; expected one of image, video, audio, text, pcd, prompt, "
            "time_series",
        ),
        (9, "annotation_type: unknown value 'bbx'; did you mean 'bbox'?"),
        (10, "smart_tool: unknown value 'Interactive'; did you mean 'interactive'?"),
        (11, "smart_tool_type: unknown value 'auto_matic'; did you mean 'automatic'?"),
        (13, "actions.train.method: unknown value 'jop'; did you mean 'job'?"),
        (14, "actions.infer.method: unknown value 'local'; expected one of job, task, serve, restapi"),
    ]
    assert (manifest.category, manifest.data_type) == ("neural_nett", "images")


def test_config_warnings_do_not_show_source_lines(config):
    path = config("code: x\nevn: {API_KEY: s3cret}\nactions: {a: {entrypont: 'b:C'}}\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_about_problems(read_manifest(path))
    assert [(str(one.message), one.category, one.filename) for one in caught] == [
        ("unknown field 'evn'; did you mean 'env'?", ConfigWarning, f"{path}:2"),
        ("unknown field 'entrypont' in actions.a; did you mean 'entrypoint'?", ConfigWarning, f"{path}:3"),
    ]
    shown = "".join(
        warnings.formatwarning(one.message, one.category, one.filename, one.lineno, one.line) for one in caught
    )
    assert "s3cret" not in shown
    assert shown.startswith(f"{path}:2:1: ConfigWarning: unknown field 'evn'; did you mean 'env'?\n")


def test_pickled_manifest_keeps_its_problems(config):
    manifest = read_manifest(config(UNKNOWN))
    assert pickle.loads(pickle.dumps(manifest)).problems == manifest.problems


LIST = """\
code: x
actions:
  - name: train
    entrypoint: a:B
  - infer
  - entrypoint: a:C
  - name: train
    entrypoint: a:D
  - name: 3
  -
  - name: export
    entrypoint: a:E
    entrypont: a:F
"""


def test_invalid_entries_in_a_list_of_actions_are_reported_with_line(config):
    with pytest.raises(ConfigError) as caught:
        read_manifest(config(LIST))
    assert [(problem.line, problem.text) for problem in caught.value.problems] == [
        (5, "actions: entry 2 must be a mapping with a name and an entrypoint, got a str"),
        (6, "actions: entry 3 has no name; add `name: …`"),
        (7, "actions: entry 4 repeats the name 'train'; rename one of them"),
        (10, "actions: entry 6 must be a mapping with a name and an entrypoint, got a NoneType"),
    ]
    assert caught.value.line == 5


def test_lenient_read_keeps_the_valid_parts_of_an_invalid_file(config):
    path = config(LIST.replace("code: x", "code: [x]\nenv: {A: 1}\ncolur: x"))
    manifest = read_manifest_leniently(path)
    assert (manifest.code, manifest.env) == ("", {"A": 1})
    assert {name: action.entrypoint for name, action in manifest.actions.items()} == {
        "train": "a:B",
        "3": "",
        "export": "a:E",
    }
    assert [(problem.line, problem.level) for problem in manifest.problems] == [
        (1, "error"),
        (3, "warning"),
        *((line, "error") for line in (7, 8, 9, 12)),
        (15, "warning"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("requires: '>=3'\n", 2, "requires: Input should be a valid dictionary"),
        ("tags: a\n", 2, "tags: Input should be a valid list"),
        ("dependencies: [a]\n", 2, "dependencies: Input should be a valid dictionary"),
        ("package_manager: conda\n", 2, "package_manager: Input should be 'pip' or 'uv'"),
        ("supported_data_type: image\n", 2, "supported_data_type: Input should be a valid list"),
        ("actions:\n  a: {serve_options: 3}\n", 3, "actions.a.serve_options: Input should be a valid dictionary"),
        ("actions:\n  a: 3\n", 3, "actions.a: Input should be a valid dictionary"),
        (
            "runtime_env: {env_vars: [s3cret]}\n",
            2,
            "runtime_env: env_vars must be a mapping of variable names to values",
        ),
    ],
)
def test_fields_of_the_wrong_type_are_rejected(config, text, line, message):
    with pytest.raises(ConfigError) as caught:
        read_manifest(config("code: x\n" + text))
    assert caught.value.line == line
    assert str(caught.value).endswith(message) or message in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_actions_may_use_anchors_and_merge_keys(config):
    manifest = read_manifest(
        config("""\
code: x
actions:
  train: &job
    entrypoint: a:B
    method: job
  tune:
    <<: *job
    entrypoint: a:C
  same: *job
""")
    )
    assert {name: (action.entrypoint, action.method) for name, action in manifest.actions.items()} == {
        "train": ("a:B", "job"),
        "tune": ("a:C", "job"),
        "same": ("a:B", "job"),
    }

"""Tests for editing the actions in the text of a config file without changing anything else."""

from __future__ import annotations

import difflib

import pytest

from synapse_runtime.plugins.yaml_editor import CannotEdit, with_action, with_field, without_action
from synapse_runtime.plugins.yaml_reader import parse

BLOCK = """\
# The plugin of the lab.
code:   lab      # its id
variant: null
tags: [a,   b]
"quoted": 'x'

actions:
    # Learn.
    train: &job
        entrypoint: plugin.train:Train   # here
        method: "job"

    # Read.
    infer: {entrypoint: "plugin.infer:Infer",method: task}

    tune:
        <<: *job
        description: >
            Long
            text.

# The end.
"""


def changes(before: str, after: str) -> list[str]:
    """Return the removed and added lines."""
    lines = difflib.ndiff(before.splitlines(keepends=True), after.splitlines(keepends=True))
    return [line.rstrip("\r\n") for line in lines if line[0] in "+-"]


def actions_of(text: str):
    return parse(text).data["actions"]


@pytest.mark.parametrize(
    ("action", "field", "changed"),
    [
        (
            "train",
            "entrypoint",
            ["-         entrypoint: plugin.train:Train   # here", "+         entrypoint: a:New   # here"],
        ),
        ("train", "method", ['-         method: "job"', '+         method: "a:New"']),
        ("train", "input_type", ["+         input_type: a:New"]),
        ("tune", "entrypoint", ["+         entrypoint: a:New"]),
        (
            "infer",
            "entrypoint",
            [
                '-     infer: {entrypoint: "plugin.infer:Infer",method: task}',
                '+     infer: {entrypoint: "a:New",method: task}',
            ],
        ),
        (
            "infer",
            "input_type",
            [
                '-     infer: {entrypoint: "plugin.infer:Infer",method: task}',
                '+     infer: {entrypoint: "plugin.infer:Infer",method: task, input_type: "a:New"}',
            ],
        ),
    ],
)
def test_setting_a_field_changes_only_its_line(action, field, changed):
    after = with_field(BLOCK, action, field, "a:New")
    assert changes(BLOCK, after) == changed
    assert actions_of(after) == actions_of(BLOCK) | {action: actions_of(BLOCK)[action] | {field: "a:New"}} | (
        {"tune": actions_of(BLOCK)["tune"] | {field: "a:New"}} if action == "train" else {}  # which merges it
    )


@pytest.mark.parametrize(
    ("text", "field", "after"),
    [
        ("actions:\n  a: x:Y # c\n", "entrypoint", "actions:\n  a: z:Z # c\n"),
        ("actions:\n  a: 'x:Y'\n", "entrypoint", "actions:\n  a: 'z:Z'\n"),
        ("actions:\n  a: x:Y # c\n", "input_type", 'actions:\n  a: {entrypoint: "x:Y", input_type: "z:Z"} # c\n'),
        ("actions:\n  a:\n  b: x:Y\n", "entrypoint", 'actions:\n  a: {entrypoint: "z:Z"}\n  b: x:Y\n'),
        ("actions:\n  a:\n    entrypoint:\n", "entrypoint", "actions:\n  a:\n    entrypoint: z:Z\n"),
        ("actions:\n  a: {}\n", "entrypoint", 'actions:\n  a: {entrypoint: "z:Z"}\n'),
        ("actions:\n- name: a\n  method: job", "entrypoint", "actions:\n- name: a\n  method: job\n  entrypoint: z:Z"),
        ("actions: [{name: a}]\n", "entrypoint", 'actions: [{name: a, entrypoint: "z:Z"}]\n'),
        ("\ufeffactions:\r\n  a: x:Y\r\n", "entrypoint", "\ufeffactions:\r\n  a: z:Z\r\n"),
        ("actions:\r\n  a:\r\n    x: 1\r\n", "entrypoint", "actions:\r\n  a:\r\n    x: 1\r\n    entrypoint: z:Z\r\n"),
        (
            "actions:\n  a:\n    description: |\n      x\n\n# c\n",
            "entrypoint",
            "actions:\n  a:\n    description: |\n      x\n    entrypoint: z:Z\n\n# c\n",
        ),
    ],
)
def test_field_is_set_in_all_notations_of_an_action(text, field, after):
    assert with_field(text, "a", field, "z:Z") == after


@pytest.mark.parametrize(
    "text",
    [
        "x: &x {entrypoint: a:B}\nactions:\n  a: *x\n",
        "x: &x {a: {entrypoint: a:B}}\nactions: *x\n",
        "x: &x {a: {entrypoint: a:B}}\nactions:\n  <<: *x\n",
        "x: &x b:C\nactions:\n  a: {entrypoint: *x}\n",
        "code: x\n",
    ],
)
def test_aliases_cannot_be_edited(text):
    with pytest.raises(CannotEdit):
        with_field(text, "a", "entrypoint", "z:Z")


NEW = {"entrypoint": "z:Z", "method": "task", "description": "It's: new."}
NEW_BLOCK = "new:\n{0}  entrypoint: z:Z\n{0}  method: task\n{0}  description: 'It''s: new.'\n"
NEW_FLOW = '{entrypoint: "z:Z", method: "task", description: "It\'s: new."}'


def test_action_is_added_last_in_the_style_of_the_others():
    after = with_action(BLOCK, "new", NEW)
    new = "\n    " + NEW_BLOCK.format("      ")
    assert after == BLOCK.replace("            text.\n", "            text.\n" + new)
    assert list(actions_of(after)) == ["train", "infer", "tune", "new"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("code: x\n", "code: x\nactions:\n  " + NEW_BLOCK.format("  ")),
        ("code: x", "code: x\nactions:\n  " + NEW_BLOCK.format("  ").rstrip("\n")),
        ("actions: # none\ncode: x\n", "actions: # none\n  " + NEW_BLOCK.format("  ") + "code: x\n"),
        ("actions: {}\ncode: x\n", "actions:\n  " + NEW_BLOCK.format("  ") + "code: x\n"),
        ("actions: []\n", "actions:\n  " + NEW_BLOCK.format("  ")),
        ("actions: null\n", "actions:\n  " + NEW_BLOCK.format("  ")),
        ("actions:\n a: x:Y # c\n\n\n# d\n", "actions:\n a: x:Y # c\n " + NEW_BLOCK.format(" ") + "\n\n# d\n"),
        ("actions: {a: x:Y}\n", "actions: {a: x:Y, new: " + NEW_FLOW + "}\n"),
        ("{code: x, actions: {}}\n", "{code: x, actions: {new: " + NEW_FLOW + "}}\n"),
        (
            "actions:\n  - name: a\n\n  - name: b\ncode: x\n",
            "actions:\n  - name: a\n\n  - name: b\n\n  - name: new\n    entrypoint: z:Z\n    method: task\n"
            "    description: 'It''s: new.'\ncode: x\n",
        ),
        ("actions: [{name: a}]\n", "actions: [{name: a}, " + NEW_FLOW.replace("{", '{name: "new", ') + "]\n"),
        ("actions:\r\n  a: x:Y\r\n", "actions:\r\n  a: x:Y\r\n  " + NEW_BLOCK.format("  ").replace("\n", "\r\n")),
    ],
)
def test_action_is_added_in_all_notations_of_a_file(before, after):
    changed = with_action(before, "new", NEW)
    assert changed == after
    actions = actions_of(changed)
    assert NEW.items() <= (actions[-1] if isinstance(actions, list) else actions["new"]).items()


@pytest.mark.parametrize("text", ["{code: x}\n", "x: &x {a: {entrypoint: a:B}}\nactions: *x\n"])
def test_action_that_cannot_be_added_raises_cannot_edit(text):
    with pytest.raises(CannotEdit):
        with_action(text, "new", NEW)


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("actions:\n  # about a\n  a: x:Y # c\n  b: x:Z\n", "actions:\n  # about a\n  b: x:Z\n"),
        ("actions:\n  b: x:Z\n  a:\n    entrypoint: x:Y\n\n# end\n", "actions:\n  b: x:Z\n\n# end\n"),
        ("actions:\n  a: x:Y\n", "actions:\n"),
        ("actions:\n  b: x:Z\n  a: x:Y", "actions:\n  b: x:Z\n"),
        ("actions: {a: {entrypoint: x:Y}, b: x:Z}\n", "actions: {b: x:Z}\n"),
        ("actions: {b: x:Z, a: {entrypoint: x:Y}}\n", "actions: {b: x:Z}\n"),
        ("actions: {a: x:Y}\n", "actions: {}\n"),
        ("actions:\n- name: a\n  entrypoint: x:Y\n- name: b\n", "actions:\n- name: b\n"),
        ("actions: [{name: b}, {name: a}]\n", "actions: [{name: b}]\n"),
    ],
)
def test_removing_an_action_removes_only_its_lines(text, after):
    assert without_action(text, "a") == after

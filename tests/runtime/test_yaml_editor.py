"""Tests for editing the actions in the text of a config file without changing anything else."""

from __future__ import annotations

import difflib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synapse_runtime.plugins.yaml_editor import (
    CannotEdit,
    with_action,
    with_field,
    with_value,
    without_action,
    without_value,
)
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


FORM = [{"$formkit": "number", "name": "a", "value": 1}, {"name": "b", "label": "B: #1, [x]"}]
LINES = ("- {$formkit: number, name: a, value: 1}", "- {name: b, label: 'B: #1, [x]'}")
PATH = ("hyper", "form")


def block(column: int) -> str:
    return "".join(f"{' ' * column}{line}\n" for line in LINES)


def brackets(column: int) -> str:
    lines = ",".join(f"\n{' ' * column}{line[2:]}" for line in LINES)
    return f"[{lines}]"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "actions:\n  t:\n    entrypoint: x:Y # c\n\n# end\n",
            "actions:\n  t:\n    entrypoint: x:Y # c\n    hyper:\n      form:\n" + block(8) + "\n# end\n",
        ),
        (
            "actions:\n  t: x:Y # c\n  u:\n      method: job\n",
            "actions:\n  t:\n      entrypoint: x:Y # c\n      hyper:\n        form:\n"
            + block(10)
            + "  u:\n      method: job\n",
        ),
        (
            "actions:\n  t: {entrypoint: x:Y} # c\n",
            "actions:\n  t: {entrypoint: x:Y, hyper: {form: " + brackets(6) + "}} # c\n",
        ),
        ("actions: {t: x:Y}\n", 'actions: {t: {entrypoint: "x:Y", hyper: {form: ' + brackets(4) + "}}}\n"),
        (
            "actions:\n- name: t\n  entrypoint: x:Y\n- name: u\n",
            "actions:\n- name: t\n  entrypoint: x:Y\n  hyper:\n    form:\n" + block(6) + "- name: u\n",
        ),
        (
            "actions:\n  t:\n    hyper:\n      own: 1 # mine\n    method: job\n",
            "actions:\n  t:\n    hyper:\n      own: 1 # mine\n      form:\n" + block(8) + "    method: job\n",
        ),
        (
            "actions:\n  t:\n    hyper: {own: 1}\n",
            "actions:\n  t:\n    hyper: {own: 1, form: " + brackets(8) + "}\n",
        ),
        (
            "actions:\n  t:\n    hyper: # none\n    method: job\n",
            "actions:\n  t:\n    hyper: # none\n      form:\n" + block(8) + "    method: job\n",
        ),
        (
            "actions:\n  t:\n    hyper: {}\n    method: job\n",
            "actions:\n  t:\n    hyper:\n      form:\n" + block(8) + "    method: job\n",
        ),
        (
            "actions:\n  t:\n    hyper:\n      form: [] # none\n",
            "actions:\n  t:\n    hyper:\n      form: # none\n" + block(8),
        ),
        (
            "actions:\n  t:\n    hyper:\n      form: [\n        {name: a}, # one\n      ]\n    method: job\n",
            "actions:\n  t:\n    hyper:\n      form:\n" + block(8) + "    method: job\n",
        ),
        (
            "actions: {t: {hyper: {form: [1, 2], own: 1}}}\n",
            "actions: {t: {hyper: {form: " + brackets(4) + ", own: 1}}}\n",
        ),
        (
            "actions:\r\n  t:\r\n    method: job\r\n",
            "actions:\r\n  t:\r\n    method: job\r\n    hyper:\r\n      form:\r\n" + block(8).replace("\n", "\r\n"),
        ),
        (
            "actions:\n  t:\n    method: job",
            "actions:\n  t:\n    method: job\n    hyper:\n      form:\n" + block(8).rstrip("\n"),
        ),
    ],
)
def test_value_is_written_in_all_notations_of_a_file(before, after):
    changed = with_value(before, "t", PATH, FORM)
    assert changed == after
    actions = actions_of(changed)
    assert (actions[0] if isinstance(actions, list) else actions["t"])["hyper"]["form"] == FORM
    assert with_value(changed, "t", PATH, FORM) == changed


ENTRIES = """\
actions:
  t:
    hyper:
      form: # generated
      # first
      - $formkit: number   # kept
        name: a
        value: 1
      # second

      - name: b # about b
      # third
      - {name: c}
      # end
    method: job
"""


def test_entries_that_do_not_change_keep_their_text():
    first, second = ENTRIES.index("      # second"), ENTRIES.index("      # third")
    new = "      - {name: b, label: 'B: #1, [x]'} # about b\n"
    after = ENTRIES[:second].replace("      - name: b # about b\n", new) + ENTRIES[ENTRIES.index("      # end") :]
    assert with_value(ENTRIES, "t", PATH, FORM) == after
    assert with_value(ENTRIES.replace("\n", "\r\n"), "t", PATH, FORM) == after.replace("\n", "\r\n")
    head = ENTRIES[:first].replace("      - $form", "      - {name: z}\n      - $form")
    assert with_value(ENTRIES, "t", PATH, [{"name": "z"}, FORM[0]]) == head + ENTRIES[ENTRIES.index("      # end") :]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "actions:\n  t:\n    a: 1\n    hyper:\n      # c\n      form:\n" + block(6) + "    b: 1\n",
            "    a: 1\n    b: 1\n",
        ),
        (
            "actions:\n  t:\n    hyper:\n      form:\n" + block(6) + "      # c\n      own: 1\n",
            "    hyper:\n      # c\n      own: 1\n",
        ),
        ("actions:\n  t:\n    a: 1\n    hyper: {form: [{}], own: 1}\n", "    a: 1\n    hyper: {own: 1}\n"),
        ("actions:\n  t:\n    a: 1\n    hyper: {form: [{}]}\n", "    a: 1\n"),
    ],
)
def test_removing_a_value_removes_what_contains_nothing_else(before, after):
    assert without_value(before, "t", PATH) == "actions:\n  t:\n" + after


def test_removing_a_value_in_brackets_removes_its_comma():
    text = "actions: {t: {hyper: {form: [{}]}, a: 1}}\n"
    assert without_value(text, "t", PATH) == "actions: {t: {a: 1}}\n"


@pytest.mark.parametrize(
    "text",
    [
        "x: &x {}\nactions:\n  t:\n    hyper: *x\n",
        "x: &x []\nactions:\n  t:\n    hyper:\n      form: *x\n",
        "x: &x {}\nactions:\n  t:\n    hyper:\n      form:\n      - *x\n",
        "actions:\n  t:\n    hyper:\n      form:\n      - name: &x a\n      - *x\n",
        "actions:\n  t:\n    hyper: [1]\n",
        "actions:\n  t:\n    hyper: text\n",
        "actions:\n  t:\n    hyper:\n      form: |\n        text\n",
        "actions:\n  t:\n    hyper:\n      form:\n        a: 1\n",
    ],
)
def test_value_that_cannot_be_written_raises_cannot_edit(text):
    with pytest.raises(CannotEdit):
        with_value(text, "t", PATH, FORM)


@pytest.mark.parametrize("text", ["actions:\n  t: x:Y\n", "x: &x {form: []}\nactions:\n  t:\n    hyper: *x\n"])
def test_value_that_cannot_be_removed_raises_cannot_edit(text):
    with pytest.raises(CannotEdit):
        without_value(text, "t", PATH)


def test_text_of_several_lines_is_written_on_one():
    text = with_value("actions:\n  t:\n    method: job\n", "t", ["form"], [{"help": "a\nb\u2028c"}])
    assert text.endswith('    form:\n      - {help: "a\\nb\\Lc"}\n')


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    [
        "yes",
        "null",
        "~",
        "1.10",
        "0x1f",
        "1e3",
        "2024-01-01",
        "<<",
        "=",
        "- a",
        "? a",
        "a: b",
        "#",
        "a #",
        "&a",
        "*a",
        "!",
    ]
)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXTS
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3), max_leaves=8
)
_ITEMS = st.fixed_dictionaries({"$formkit": _TEXTS, "name": _TEXTS, "label": _TEXTS}, optional={"value": _VALUES})


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is not a failure
@given(st.lists(_ITEMS, min_size=1, max_size=3), st.lists(_ITEMS, min_size=1, max_size=3))
@pytest.mark.parametrize("spec", ["\n    method: job\n", " x:Y\n", " {method: job}\n"])
def test_any_value_is_read_back_as_it_was_written(spec, first, second):
    text = f"actions:\n  t:{spec}  u: x:Y # c\n"
    for form in (first, second):
        text = with_value(text, "t", PATH, form)
        assert actions_of(text)["t"]["hyper"]["form"] == form
        assert text.endswith("\n  u: x:Y # c\n")
    assert "hyper" not in actions_of(without_value(text, "t", PATH))["t"]

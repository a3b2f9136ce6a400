"""Tests for forms: the inputs of a model's fields, and what `update-config` writes of them for an action."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, Optional, Union

import pytest
from annotated_types import Interval
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, PositiveInt, SecretStr, create_model

from synapse_runtime.plugins.form_items import form_fields, is_hidden
from synapse_runtime.plugins.forms import forms_of


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Nested(BaseModel):
    depth: int = 1
    names: set[str] = {"c", "a", "b"}


class WithSecret(BaseModel):
    key: SecretStr = SecretStr("hunter2")


@dataclass
class Point:
    x: int


def sets_help(schema: dict[str, Any]) -> None:
    schema["help"] = "by a function"


def needs_type(schema: dict[str, Any]) -> None:
    schema["help"] = schema["type"] + "!"


def fails(schema: dict[str, Any]) -> None:
    raise RuntimeError("never works")


NUMBER = {"$formkit": "number", "number": True}
TEXT = {"$formkit": "text"}
CHECKBOX = {"$formkit": "checkbox"}
REQUIRED = {"required": True}


def by_default(value: Any) -> dict[str, Any]:
    return {"value": value, "placeholder": value}


@pytest.mark.parametrize(
    ("annotation", "default", "item"),
    [
        (int, ..., NUMBER | REQUIRED),
        (int, 0, NUMBER | by_default(0)),
        (float, 1e-7, NUMBER | by_default(1e-7)),
        (bool, ..., CHECKBOX | REQUIRED),
        (bool, False, CHECKBOX | by_default(False)),
        (str, "", TEXT | by_default("")),
        (list, [1], CHECKBOX | by_default([1])),
        (list[str], ["a"], TEXT | by_default(["a"])),
        (list[int], ..., NUMBER | REQUIRED),
        (dict, {}, TEXT | by_default({})),
        (dict[str, int], {"a": 1}, TEXT | by_default({"a": 1})),
        (dict[int, str], {1: "a"}, NUMBER | by_default({"1": "a"})),
        (Literal["a", "b"], "a", TEXT | by_default("a")),
        (Literal[1, 2], 1, TEXT | by_default(1)),
        (Optional[int], None, NUMBER),  # noqa: UP045
        (int | None, ..., NUMBER | REQUIRED),
        (int | None, 1, NUMBER | by_default(1)),
        (Union[float, str], "x", NUMBER | by_default("x")),  # noqa: UP007
        (None | bool, True, CHECKBOX | by_default(True)),
        (type(None), None, TEXT),
        (Any, ..., TEXT | REQUIRED),
        (list[Annotated[int, ["not hashable"]]], ..., TEXT | REQUIRED),
        (Color, Color.RED, TEXT | by_default("red")),
        (Level, Level.LOW, TEXT | by_default(1)),
        (Path, Path("a/b"), TEXT | by_default("a/b")),
        (date, date(2024, 1, 2), TEXT | by_default("2024-01-02")),
        (timedelta, timedelta(seconds=90), TEXT | by_default("PT1M30S")),
        (Decimal, Decimal("0.10"), TEXT | by_default("0.10")),
        (tuple[int, int], (1, 2), NUMBER | by_default([1, 2])),
        (frozenset[str], frozenset({"c", "a", "b"}), TEXT | by_default(["a", "b", "c"])),
        (Nested, Nested(), TEXT | by_default({"depth": 1, "names": ["a", "b", "c"]})),
        (Point, Point(1), TEXT | by_default({"x": 1})),
        (list[Color], [Color.RED], TEXT | by_default(["red"])),
        (SecretStr, SecretStr("hunter2"), TEXT),
        (WithSecret, WithSecret(), TEXT),
        (float, float("nan"), NUMBER),
        (list[float], [1.0, float("inf")], NUMBER),
        (str, "\ud800", TEXT),
        (Any, object(), TEXT),
        (Any, print, TEXT),
        (Annotated[int, Field(ge=1), Field(lt=9)], 2, NUMBER | by_default(2) | {"min": 1, "max": 9}),
        (PositiveInt, ..., NUMBER | REQUIRED | {"min": 0}),
        (Annotated[int, Interval(ge=1)], ..., NUMBER | REQUIRED),
        (Annotated[int, Field(ge=1)] | None, None, TEXT),
        (float, Field(gt=0, le=1, multiple_of=0.5), NUMBER | REQUIRED | {"min": 0, "max": 1, "step": 0.5}),
        (Decimal, Field(ge=Decimal("0.5")), TEXT | REQUIRED | {"min": 0.5}),
        (date, Field(ge=date(2024, 1, 2)), TEXT | REQUIRED | {"min": "2024-01-02"}),
        (str, Field(min_length=1, pattern="^a"), TEXT | REQUIRED),
        (int, Field(default_factory=lambda: 1), NUMBER),
        (int, Field(1, description="Rounds.", title="T", exclude=True), NUMBER | by_default(1) | {"help": "Rounds."}),
        (str, Field("a", json_schema_extra={"formkit": "select", "options": ("a", Color.RED)}),
            {"$formkit": "select", "options": ["a", "red"]} | by_default("a")),
        (int, Field(1, ge=0, description="D", json_schema_extra={"help": "H", "required": False, "min": 2, "max": 8,
            "step": 2, "label": "L", "other": 1}),
            NUMBER | by_default(1) | {"help": "H", "required": False, "min": 2, "max": 8, "step": 2, "label": "L"}),
        (str, Field("a", json_schema_extra={"options": print}), TEXT | by_default("a")),
        (int, Field(1, json_schema_extra={"formkit": "range"}), NUMBER | by_default(1) | {"$formkit": "range"}),
        (int, Field(1, json_schema_extra=sets_help), NUMBER | by_default(1) | {"help": "by a function"}),
        (int, Field(1, json_schema_extra=needs_type), NUMBER | by_default(1) | {"help": "integer!"}),
        (int, Field(1, json_schema_extra=fails), NUMBER | by_default(1)),
    ],
)  # fmt: skip
def test_field_becomes_an_input_of_json(annotation: Any, default: Any, item: dict[str, Any]) -> None:
    model = create_model("Model", __config__=ConfigDict(arbitrary_types_allowed=True), the_field=(annotation, default))
    (field,) = form_fields(model)
    assert field.item == {"name": "the_field", "label": "The Field"} | item
    assert json.dumps(field.item, allow_nan=False).encode()
    assert [*field.item][:3] == ["$formkit", "name", "label"]
    assert not field.hidden


@pytest.mark.parametrize(
    ("settings", "config", "name"),
    [
        ({"alias": "other"}, {}, "other"),
        ({"validation_alias": "other"}, {}, "other"),
        ({"validation_alias": AliasChoices(AliasPath("a", 0), "second", "third")}, {}, "second"),
        ({"validation_alias": AliasPath("a", 0)}, {}, "rate"),
        ({"serialization_alias": "other"}, {}, "rate"),
        ({"alias": "other"}, {"populate_by_name": True}, "rate"),
        ({}, {"alias_generator": str.upper}, "RATE"),
    ],
)
def test_input_has_the_name_that_the_model_accepts(settings: Any, config: Any, name: str) -> None:
    model = create_model("Model", __config__=ConfigDict(**config), rate=(int, Field(1, **settings)))
    (field,) = form_fields(model)
    assert (field.field, field.item["name"], field.item["label"]) == ("rate", name, "Rate")
    if "a" not in str(settings.get("validation_alias")):
        assert model.model_validate({name: 7}).rate == 7


def test_fields_and_models_are_hidden_by_exclude_from_ui() -> None:
    class Params(BaseModel):
        model_config = ConfigDict(json_schema_extra={"exclude_from_ui": True})
        shown: int
        hidden: int = Field(1, json_schema_extra={"exclude_from_ui": True})
        by_function: int = Field(1, json_schema_extra=lambda schema: schema.update(exclude_from_ui=True))

    assert [field.hidden for field in form_fields(Params)] == [False, True, True]
    assert is_hidden(Params)
    assert not is_hidden(Nested)


GROUP = {
    "$formkit": "text",
    "name": "group_name",
    "label": "묶음 이름",
    "help": "데이터 유닛에 할당할 묶음 이름을 입력하세요.",
    "required": False,
}
OWN_GROUP = GROUP | {"label": "Batch"}
EPOCHS = {"$formkit": "number", "name": "epochs", "label": "Epochs", **by_default(1), "number": True}
RATE = {"$formkit": "number", "name": "rate", "label": "Rate", "required": False, "number": True}
BY_HAND = {"$formkit": "text", "name": "epochs", "label": "How often"}
PARAMS = [("epochs", EPOCHS), ("rate", RATE), ("model_path", EPOCHS | {"name": "model_path"})]
TRAINING = [EPOCHS | REQUIRED, RATE]
PLACE = "hyperparameters.train_ui_schemas"


def spec(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**fields)


@pytest.mark.parametrize(
    ("action", "params", "result", "current", "changes"),
    [
        ("evaluate", PARAMS, [RATE], None, {PLACE: [item for _, item in PARAMS], "result_schema": [RATE]}),
        ("train", PARAMS, [], None, {PLACE: TRAINING}),
        ("tune", PARAMS, [], spec(hyperparameters={"train_ui_schemas": [BY_HAND], "x": 1}), {PLACE: TRAINING}),
        ("train", PARAMS, [], spec(hyperparameters={"train_ui_schemas": TRAINING}), {}),
        ("train", PARAMS, [], spec(hyperparameters={"train_ui_schemas": [EPOCHS | {"required": 1}, RATE]}),
            {PLACE: TRAINING}),
        ("train", [], [], spec(hyperparameters={"train_ui_schemas": TRAINING}), {PLACE: None}),
        ("train", [], [], spec(hyperparameters={"train_ui_schemas": [BY_HAND]}), {}),
        ("train", [], [], spec(hyperparameters=None, result_schema=[EPOCHS]), {"result_schema": None}),
        ("train", None, [], spec(hyperparameters={"train_ui_schemas": TRAINING}), {}),
        ("train", [], [], spec(hyperparameters={"train_ui_schemas": []}), {}),
        ("upload", PARAMS, [], None, {"ui_schema": [EPOCHS, RATE, GROUP]}),
        ("upload", PARAMS, [], spec(ui_schema=[EPOCHS, RATE, GROUP]), {}),
        ("upload", PARAMS, [], spec(ui_schema=[OWN_GROUP, BY_HAND]), {"ui_schema": [EPOCHS, RATE, OWN_GROUP]}),
        ("upload", [("group_name", OWN_GROUP)], [], None, {"ui_schema": [OWN_GROUP]}),
        ("upload", [], [], None, {"ui_schema": [GROUP]}),
        ("upload", [], [], spec(ui_schema=[EPOCHS, RATE, GROUP]), {"ui_schema": [GROUP]}),
        ("upload", None, [], spec(ui_schema=[BY_HAND]), {"ui_schema": [BY_HAND, GROUP]}),
        ("upload", None, [], spec(ui_schema=[OWN_GROUP, BY_HAND]), {}),
        ("upload", None, [], spec(ui_schema={"$el": "form"}), {}),
    ],
)  # fmt: skip
def test_forms_of_an_action_follow_its_name_and_the_file(
    action: str, params: Any, result: Any, current: Any, changes: Any
) -> None:
    assert forms_of(action, params, result, current) == changes

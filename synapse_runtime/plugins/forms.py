"""Where a config file has the forms of an action, and which fields of its models they have: the rules of the SDK."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

Item: TypeAlias = dict[str, Any]

PARAMS = "hyperparameters.train_ui_schemas"
UPLOAD = "ui_schema"
RESULT = "result_schema"
FORMS = (PARAMS, UPLOAD, RESULT)

# Their forms omit what a pipeline sets, as in the SDK. Those of the other actions have every field.
_TRAINING = frozenset({"train", "tune"})
_SET_BY_PIPELINES = frozenset(
    {"data_path", "dataset_path", "dataset", "splits", "checkpoint", "model_path", "weights_path"}
    | {"output_path", "work_dir", "is_tune", "hyperparameters"}
)
# In the platform's words: "group name", and "Enter the name of the group for the data units."
_GROUP_NAME: Item = {
    "$formkit": "text",
    "name": "group_name",
    "label": "묶음 이름",
    "help": "데이터 유닛에 할당할 묶음 이름을 입력하세요.",
    "required": False,
}


def forms_of(
    action: str, params: Iterable[tuple[str, Item]] | None, result: Sequence[Item], spec: Any
) -> dict[str, list[Item] | None]:
    """Return the forms that the config file should have for an action, of those that have to change.

    Args:
        action: The action's name in the file.
        params: The fields of its params model with their inputs; None if the form in the file is hand-written.
        result: The inputs of its result model.
        spec: The action in the file; None if it is new.

    Returns:
        New forms by their place in the action, such as `hyperparameters.train_ui_schemas`; None for one to remove.
    """
    wanted: dict[str, Any] = {RESULT: list(result)}
    if action == "upload":
        wanted[UPLOAD] = _upload_form(params, form_at(spec, UPLOAD))
    elif params is not None:
        wanted[PARAMS] = _params_form(action, params)
    changes: dict[str, list[Item] | None] = {}
    for place in FORMS:
        current = form_at(spec, place)
        if place not in wanted or _same(wanted[place], current):
            continue
        if wanted[place]:
            changes[place] = wanted[place]
        elif _is_generated(current):
            changes[place] = None
    return changes


def label_of(name: str) -> str:
    """Return the label of a field.

    Example:
        >>> label_of("batch_size")
        'Batch Size'
    """
    return name.replace("_", " ").title()


def form_at(spec: Any, place: str) -> Any:
    """Return the form at a place of an action; None if it does not exist."""
    field, _, key = place.partition(".")
    value = getattr(spec, field, None)
    return value if not key else value.get(key) if isinstance(value, dict) else None


def _params_form(action: str, params: Iterable[tuple[str, Item]]) -> list[Item]:
    if action in _TRAINING:
        return [{**item, "required": item.get("required", True)} for item in _without_pipeline(params)]
    return [item for _, item in params]


def _upload_form(params: Iterable[tuple[str, Item]] | None, current: Any) -> Any:
    """Return the form of an upload action: it asks for a group name, in the words of the file if it has any."""
    form = [] if params is None else _without_pipeline(params)
    if not form and current is not None and not isinstance(current, list):
        return current
    kept = current if isinstance(current, list) else []
    named = [item for item in kept if _is_group_name(item)]
    if not form and (params is None or not _is_generated([item for item in kept if item not in named])):
        form = kept
    return form if any(map(_is_group_name, form)) else [*form, *(named[:1] or [_GROUP_NAME])]


def _is_group_name(item: Any) -> bool:
    return isinstance(item, dict) and item.get("name") == _GROUP_NAME["name"]


def _without_pipeline(params: Iterable[tuple[str, Item]]) -> list[Item]:
    return [item for field, item in params if field not in _SET_BY_PIPELINES]


def _same(one: Any, other: Any) -> bool:
    """Return whether two forms are the same; numbers and booleans that are equal in Python are not."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _is_generated(form: Any) -> bool:
    """Return whether a form may have been generated: none of its items shows that it was written by hand."""
    return isinstance(form, list) and bool(form) and all(map(_is_generated_item, form))


def _is_generated_item(item: Any) -> bool:
    if not isinstance(item, Mapping) or [*item][:3] != ["$formkit", "name", "label"]:
        return False
    return (
        item["label"] == label_of(str(item["name"]))
        and ("value" in item) == ("placeholder" in item)
        and _same(item.get("value"), item.get("placeholder"))
        and (item["$formkit"] != "number" or item.get("number") is True)
    )

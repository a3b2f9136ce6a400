"""Describe the fields of a pydantic model as inputs of a form, in the words of the platform's console (FormKit).

The plugin's modules must have been imported, so this runs in the process of `introspection_worker.py`.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from synapse_runtime.plugins.forms import label_of

_INPUTS: dict[Any, str] = {int: "number", float: "number", bool: "checkbox", list: "checkbox"}
_BOUNDS = {
    Ge: ("ge", "min"),
    Gt: ("gt", "min"),
    Le: ("le", "max"),
    Lt: ("lt", "max"),
    MultipleOf: ("multiple_of", "step"),
}
_OVERRIDES = ("options", "help", "required", "step", "min", "max", "label")
_HIDDEN = "exclude_from_ui"


class FormField(BaseModel):
    """One field of a model, and its input in a form.

    Attributes:
        field: The name of the model's field.
        item: The input; its values are JSON.
        hidden: Whether the model excludes it from forms.
    """

    field: str
    item: dict[str, Any]
    hidden: bool = False


def is_hidden(model: type[BaseModel]) -> bool:
    """Return whether a model excludes all its fields, so that the form in the config file is hand-written."""
    extra = model.model_config.get("json_schema_extra")
    return isinstance(extra, dict) and bool(extra.get(_HIDDEN))


def form_fields(model: type[BaseModel]) -> list[FormField]:
    """Return the fields of a model with their inputs."""
    found = []
    for name, field in model.model_fields.items():
        extra = _extra(model, name, field)
        found.append(FormField(field=name, item=_item(model, name, field, extra), hidden=bool(extra.get(_HIDDEN))))
    return found


def _item(model: type[BaseModel], name: str, field: FieldInfo, extra: Mapping[str, Any]) -> dict[str, Any]:
    item: dict[str, Any] = {
        "$formkit": _input(field.annotation),
        "name": _name(model, name, field),
        "label": label_of(name),
    }
    if field.default is not None and field.default is not PydanticUndefined:
        item["value"] = item["placeholder"] = field.default
    if field.description:
        item["help"] = field.description
    if field.is_required():
        item["required"] = True
    for constraint in field.metadata:
        attribute, bound = _BOUNDS.get(type(constraint), ("", ""))
        if bound:
            limit = getattr(constraint, attribute)
            item[bound] = float(limit) if isinstance(limit, Decimal) else limit
    if item["$formkit"] == "number":
        item["number"] = True
    if "formkit" in extra:
        item["$formkit"] = extra["formkit"]
    item |= {key: extra[key] for key in _OVERRIDES if key in extra}
    return {key: plain for key, value in item.items() if (plain := _json(value)) is not _NOT_JSON}


def _input(annotation: Any) -> str:
    """Return the kind of input for a type. As in the SDK, the first argument of any generic type counts."""
    if get_origin(annotation) is not None:
        arguments = [one for one in get_args(annotation) if one is not type(None)]
        annotation = arguments[0] if arguments else annotation
    try:
        return _INPUTS.get(annotation, "text")
    except TypeError:  # not hashable, such as Annotated with a list
        return "text"


def _name(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    """Return the name under which the model accepts a value of the field."""
    accepts_name = model.model_config.get("populate_by_name") or model.model_config.get("validate_by_name")
    alias = field.validation_alias
    choices = getattr(alias, "choices", [alias])
    return name if accepts_name else next((one for one in choices if isinstance(one, str)), name)


def _extra(model: type[BaseModel], name: str, field: FieldInfo) -> Mapping[str, Any]:
    """Return what the field adds to its JSON schema."""
    extra: Any = field.json_schema_extra
    if callable(extra):
        added: dict[str, Any] = {}
        try:
            extra(added)
        except Exception:  # noqa: BLE001 - the plugin's code; it may need what the schema already contains
            added = _property(model, name)
        extra = added
    return extra if isinstance(extra, dict) else {}


def _property(model: type[BaseModel], name: str) -> Any:
    try:
        return model.model_json_schema(by_alias=False)["properties"][name]
    except Exception:  # noqa: BLE001 - reported as a problem of the params model
        return {}


_NOT_JSON: Any = object()


def _json(value: Any) -> Any:
    """Return a value as JSON, always in the same order; `_NOT_JSON` if that is impossible, or would show a secret."""
    try:
        plain = to_jsonable_python(_ordered(value))
        json.dumps(plain, allow_nan=False, ensure_ascii=False).encode()
    except Exception:  # noqa: BLE001 - defaults and options may be any objects of the plugin
        return _NOT_JSON
    return plain


def _ordered(value: Any) -> Any:
    """Return a value with its models as mappings and its sets as sorted lists.

    Raises:
        ValueError: It contains a secret.
    """
    if hasattr(value, "get_secret_value"):
        raise ValueError("a secret")
    if isinstance(value, enum.Enum):
        return _ordered(value.value)
    if isinstance(value, BaseModel):
        return _ordered(value.model_dump())
    if isinstance(value, Mapping):
        return {key: _ordered(each) for key, each in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((to_jsonable_python(_ordered(each)) for each in value), key=json.dumps)
    if isinstance(value, list | tuple):
        return [_ordered(each) for each in value]
    return value

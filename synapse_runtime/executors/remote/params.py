"""The action and the params of a call as JSON; what JSON cannot carry is an error that names it."""

from __future__ import annotations

import dataclasses
import enum
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel

from synapse_runtime import serialization
from synapse_runtime.environment import PluginEnvironment
from synapse_runtime.errors import NotSupportedRemotely, safe_str
from synapse_runtime.json_values import Decoder, encode_value
from synapse_runtime.plugins.module_scopes import is_installed_path

_MAX_DEPTH: Final = 100
_MAX_INTEGER_BITS: Final = 64
_ADVICE: Final = {"tuple": "a list", "set": "a list", "frozenset": "a list", "bytes": "base64 text"}


def entrypoint_of(action: Any, import_root: str | None) -> str:
    """Return the entrypoint `module:Name` by which a backend imports an action's class or function.

    Args:
        action: The class or function.
        import_root: The directory of the plugin's modules.

    Raises:
        NotSupportedRemotely: It is defined where only this process can find it, such as in a test.
    """
    module_name, name = action.__module__, action.__qualname__
    found: Any = sys.modules.get(module_name)
    file = getattr(found, "__file__", None)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is action and isinstance(file, str) and not serialization.is_pickled_by_value(module_name):
        own = os.path.join(import_root or "", *module_name.split("."))
        if is_installed_path(file) or (import_root is not None and file in (f"{own}.py", f"{own}/__init__.py")):
            return f"{module_name}:{name}"
    raise NotSupportedRemotely(
        f"{module_name}.{name} cannot be sent to a backend: it runs actions of the plugin's own modules and of "
        "installed packages only"
    )


def plain_params(name: str, params: Any) -> dict[str, Any]:
    """Return params as JSON that every backend reads; floats may be NaN.

    Args:
        name: The action's name.
        params: A dict, or an instance of a params model.

    Raises:
        NotSupportedRemotely: A part is of a type that JSON does not have.

    Example:
        >>> plain_params("train", {"layers": [1, 2], "shape": (2, 3)})
        Traceback (most recent call last):
        ...
        synapse_runtime.errors.NotSupportedRemotely: train: params['shape'] is a tuple, which JSON does not have; pass
        a list
    """
    if isinstance(params, BaseModel):
        params = _dumped(name, params, mode="json")
    for path, value in _parts(_checked(name, params), "params", ()):
        kind = type(value).__name__
        advice = _ADVICE.get(kind, "text, a number, a list or a dict with text as keys")
        raise NotSupportedRemotely(f"{name}: {path} is {_a(value)}, which JSON does not have; pass {advice}")
    return dict(params)


def encoded_params(name: str, params: Any, import_root: str | None) -> Any:
    """Return params as JSON in the spelling of the run record.

    Args:
        name: The action's name.
        params: A dict, or an instance of a params model.
        import_root: The directory of the plugin's modules, if a model of them may be sent as such.

    Raises:
        NotSupportedRemotely: A part cannot be rebuilt by the backend.
    """
    if isinstance(params, BaseModel):
        cls = type(params)
        if Decoder(import_root).find_class(cls.__module__, cls.__qualname__) is cls:
            lost = next(_lost(params, "params", 0), None)
            if lost is None:
                return encode_value(params)[0]
        params = _dumped(name, params, mode="python")
    for path, value in _lost(_checked(name, params), "params", 0):
        raise NotSupportedRemotely(
            f"{name}: {path} is {_a(value)}, which cannot be sent to a backend; pass plain data, a model, dataclass or "
            "enum of the plugin"
        )
    return encode_value(dict(params))[0]


def encoded_env(env: Mapping[str, Any], *, values: bool) -> Any:
    """Return environment variables as JSON in the spelling of the run record.

    Args:
        env: The variables; they can be converted to text.
        values: Whether the backend takes values other than scalars; else it gets their text.
    """
    texts = PluginEnvironment(env).as_strings()
    return encode_value(
        {
            name: value if is_scalar(value) or (values and is_sent_exactly(value)) else texts.get(name, "")
            for name, value in env.items()
        }
    )[0]


def is_scalar(value: Any) -> bool:
    """Return whether a value is a scalar of JSON."""
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def is_sent_exactly(value: Any) -> bool:
    """Return whether a value can be sent in the spelling of the run record, and be rebuilt exactly."""
    return encode_value(value)[1]


def first_lost(value: Any) -> Any:
    """Return a part of a value that cannot be rebuilt from JSON; None if there is none."""
    return next((part for _, part in _lost(value, "", 0)), None)


def _checked(name: str, params: Any) -> Mapping[Any, Any]:
    if not isinstance(params, Mapping):
        raise NotSupportedRemotely(f"{name}: expected a dict or a params model, got {_a(params)}")
    return params


def _dumped(name: str, params: BaseModel, *, mode: str) -> Any:
    try:
        return params.model_dump(mode=mode, by_alias=True)
    except ValueError as error:
        text = safe_str(error).partition("\n")[0]
        raise NotSupportedRemotely(f"{name}: the params cannot be written as JSON: {text}") from error


def _parts(value: Any, path: str, above: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    """Yield the parts that JSON does not have."""
    kind = type(value)
    if value is None or kind in (bool, str, float) or (kind is int and value.bit_length() <= _MAX_INTEGER_BITS):
        return
    if id(value) in above or len(above) > _MAX_DEPTH or not (kind is list or isinstance(value, dict)):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                yield f"the key {key!r} of {path}", key
            yield from _parts(item, f"{path}[{key!r}]", (*above, id(value)))
    else:
        for index, item in enumerate(value):
            yield from _parts(item, f"{path}[{index}]", (*above, id(value)))


def _lost(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield the parts of which only a text would be sent."""
    data = encode_value(value)[0]
    if not _is_lost(data):
        return
    items: list[tuple[str, Any]] = []
    if depth < _MAX_DEPTH:
        if isinstance(value, Mapping):
            items = [(f"{path}[{key!r}]", item) for key, item in value.items()]
        elif isinstance(value, list | tuple | set | frozenset):
            items = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            items = [(f"{path}.{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    found = next((each for where, item in items for each in _lost(item, where, depth + 1)), None)
    yield found or (path, value)


def _is_lost(data: Any) -> bool:
    stack = [data]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if "$omitted" in item or ("$type" in item and "repr" in item):
                return True
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return False


def _a(value: Any) -> str:
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    name = f"{module}{kind.__qualname__}"
    if isinstance(value, enum.Enum):
        return f"the enum {name}"
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"

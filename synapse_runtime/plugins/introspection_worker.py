"""The process that imports a plugin's modules to see what is in them; `inspection.py` starts it and survives it.

It reads a `Request` from standard input. To the file descriptor that its argument names it writes an empty line when it
begins, and for each module a `ModuleInfo`, as a line of JSON.
"""

from __future__ import annotations

import contextlib
import enum
import faulthandler
import importlib
import inspect
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field
from pydantic.errors import PydanticInvalidForJsonSchema

from synapse_runtime import action as actions
from synapse_runtime.environment import HiddenValues
from synapse_runtime.errors import nearest, safe_str
from synapse_runtime.plugins.module_scopes import activate_modules

_LONGEST_TEXT = 500


class ModuleRequest(BaseModel):
    """A module to look at.

    Attributes:
        module: Its name.
        names: What to look for in it, with dots for what is within classes.
        actions: Whether to look for all actions that it defines.
    """

    module: str
    names: list[str] = Field(default_factory=list)
    actions: bool = False


class Request(BaseModel):
    """What to look at, and how.

    Attributes:
        root: The plugin's directory.
        env: Variables that its modules may read while they are imported.
        seconds: How long the import of one module may take.
        modules: The modules, in this order.
    """

    root: str
    env: dict[str, str] = Field(default_factory=dict, repr=False)  # values may be secrets
    seconds: float
    modules: list[ModuleRequest]


class ImportProblem(BaseModel):
    """Something wrong, and where; the file may be one of anybody."""

    text: str
    file: str | None = None
    line: int | None = None
    level: Literal["error", "warning"] = "error"


class ActionInfo(BaseModel):
    """What a name of a module is.

    Attributes:
        is_action: Whether it can be run.
        what: What it is otherwise, in words.
        name: The action's name, by its author or made from that of the class.
        entrypoint: Where it is defined, as `module:Name`.
        file: The file that defines it.
        line: Its line there.
        description: Its one line for people.
        method: How it asks to be run in production, if it does.
        input_type: The name of the data type that it takes, if it says so.
        output_type: The name of the data type that it gives, likewise.
        params_model: The name of its params model, if it has one.
        faults: What is wrong with its params model.
    """

    is_action: bool
    what: str = ""
    name: str = ""
    entrypoint: str = ""
    file: str | None = None
    line: int | None = None
    description: str = ""
    method: str | None = None
    input_type: str | None = None
    output_type: str | None = None
    params_model: str | None = None
    faults: list[ImportProblem] = Field(default_factory=list)


class ModuleInfo(BaseModel):
    """What was seen of a module.

    Attributes:
        module: Its name.
        file: Its file.
        missing: There is no such module.
        fault: Why it could not be imported.
        names: What was looked for, by name: what it is, or None where it is not there.
        near: Names that were perhaps meant, for those that are not there.
        actions: The actions that the module defines.
    """

    module: str
    file: str | None = None
    missing: bool = False
    fault: ImportProblem | None = None
    names: dict[str, ActionInfo | None] = Field(default_factory=dict)
    similar: dict[str, str | None] = Field(default_factory=dict)
    actions: list[ActionInfo] = Field(default_factory=list)


def main(descriptor: int) -> None:
    """Look at what standard input asks for, and tell it to this file descriptor."""
    request = Request.model_validate_json(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request.root)
    os.environ.update(request.env)
    warnings.simplefilter("ignore")  # they are not what is asked for
    faulthandler.enable()
    with os.fdopen(descriptor, "wb", buffering=0) as told, activate_modules(request.root):
        told.write(b"\n")
        for wanted in request.modules:
            faulthandler.dump_traceback_later(request.seconds, exit=True)
            seen = _introspect_module(wanted, request)
            faulthandler.cancel_dump_traceback_later()
            told.write(seen.model_dump_json().encode() + b"\n")
    os._exit(0)  # whatever threads and handlers at exit the modules have left


def _introspect_module(wanted: ModuleRequest, request: Request) -> ModuleInfo:
    seen = ModuleInfo(module=wanted.module)
    try:
        module = importlib.import_module(wanted.module)
    except BaseException as error:  # noqa: BLE001 - any code of the plugin's runs here
        if isinstance(error, ModuleNotFoundError) and f"{wanted.module}.".startswith(f"{error.name}."):
            seen.missing = True
        seen.fault = _import_fault(error, request)
        return seen
    seen.file = getattr(module, "__file__", None)
    for name in wanted.names:
        seen.names[name], seen.similar[name] = _named(module, name)
    if wanted.actions:
        seen.actions = list(_actions_in(module))
    return seen


def _import_fault(error: BaseException, request: Request) -> ImportProblem:
    text = f"{type(error).__name__}: {safe_str(error)}".removesuffix(": ")
    file: str | None = None
    line: int | None = None
    if isinstance(error, SyntaxError) and error.filename:
        text, file, line = f"{type(error).__name__}: {error.msg}", error.filename, error.lineno
    else:
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename.startswith(os.path.join(request.root, "")):
                file, line = frame.filename, frame.lineno
    text = " ".join(HiddenValues(request.env).out_of(text).split())
    return ImportProblem(
        text=text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…", file=file, line=line
    )


def _named(module: ModuleType, name: str) -> tuple[ActionInfo | None, str | None]:
    """Return what a name is; or the nearest one that there is."""
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            return None, nearest(part, [known for known in dir(value) if not known.startswith("_")])
        value = getattr(value, part)
    return _found(value), None


def _actions_in(module: ModuleType) -> Iterator[ActionInfo]:
    """Yield the actions that a module defines, in the order of its lines."""
    found = []
    for attribute, value in list(vars(module).items()):
        if getattr(value, "__module__", None) == module.__name__ and _is_meant_as_action(attribute, value):
            found.append(_found(value))
    yield from sorted(found, key=lambda one: one.line or 0)


def _is_meant_as_action(attribute: str, value: Any) -> bool:
    """Tell whether an author would call this an action: not all that has an `execute` method is one."""
    if attribute.startswith("_") or getattr(value, "__qualname__", None) != attribute or not actions.is_action(value):
        return False
    if not isinstance(value, type):
        return True
    if inspect.isabstract(value):
        return False
    return isinstance(getattr(value, "action_name", None), str) or any(map(_is_base_action, value.__mro__[1:]))


def _is_base_action(kind: type) -> bool:
    return kind.__name__ == "BaseAction" and kind.__module__.partition(".")[0] in ("synapse_runtime", "synapse_sdk")


def _found(value: Any) -> ActionInfo:
    file, line = _place(value)
    if not actions.is_action(value):
        kind = "class" if isinstance(value, type) else "function" if inspect.isroutine(value) else type(value).__name__
        article = "an" if kind[0] in "aeiou" else "a"
        return ActionInfo(is_action=False, what=f"{article} {kind}", file=file, line=line)
    model = getattr(value, "params_model", None) or getattr(value, "_action_params", None)
    return ActionInfo(
        is_action=True,
        name=actions.name_of(value),
        entrypoint=f"{value.__module__}:{value.__qualname__}",
        file=file,
        line=line,
        description=_description(value),
        method=_plain(getattr(value, "method", None)),
        input_type=_type_name(getattr(value, "input_type", None)),
        output_type=_type_name(getattr(value, "output_type", None)),
        params_model=getattr(model, "__name__", None),
        faults=list(_params_faults(value, model)),
    )


def _place(value: Any) -> tuple[str | None, int | None]:
    try:
        return inspect.getsourcefile(inspect.unwrap(value)), inspect.getsourcelines(value)[1]
    except (OSError, TypeError):
        return None, None


def _description(value: Any) -> str:
    own = getattr(value, "_action_description", None) or getattr(value, "description", None)
    inherited = isinstance(value, type) and "__doc__" not in vars(value)
    text = own if isinstance(own, str) else "" if inherited else value.__doc__ or ""
    return " ".join(text.strip().partition("\n\n")[0].split())


def _plain(value: Any) -> str | None:
    value = value.value if isinstance(value, enum.Enum) else value
    return value if isinstance(value, str) else None


def _type_name(value: Any) -> str | None:
    """Return the name of a data type of the SDK: classes with a `name`; or a name that was given as text."""
    return value if isinstance(value, str) else _plain(getattr(value, "name", None))


def _params_faults(value: Any, model: Any) -> Iterator[ImportProblem]:
    """Yield what is wrong with the params model of an action."""
    file, line = _place(value)
    named = f"action {actions.name_of(value)!r}"
    if model is None:
        for other in _other_params(value):
            text = f"{named}: params of type {actions.describe(other)} are not checked; make it a pydantic model"
            yield ImportProblem(text=text, file=file, line=line, level="warning")
        return
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        text = f"{named}: its params model, {actions.describe(model)}, is no pydantic model; derive it from BaseModel"
        yield ImportProblem(text=text, file=file, line=line)
        return
    file, line = _place(model)
    try:
        model.model_json_schema()
    except PydanticInvalidForJsonSchema as error:
        text = f"{named}: {model.__name__} has no JSON schema: {error.message}; no form for its params can be made"
        yield ImportProblem(text=" ".join(text.split()), file=file, line=line, level="warning")
    except Exception as error:  # noqa: BLE001 - of code of the plugin's
        first = safe_str(error).partition("\n")[0]
        text = f"{named}: {model.__name__} cannot be used: {type(error).__name__}: {first}"
        yield ImportProblem(text=text, file=file, line=line)
    for param in model.model_fields:
        if hasattr(BaseModel, param):
            text = f"{named}: the param {param!r} hides what pydantic models have by this name; call it otherwise"
            yield ImportProblem(text=text, file=file, line=_line_of_param(model, param) or line, level="warning")


def _other_params(value: Any) -> Iterator[Any]:
    """Yield what stands in the brackets of `BaseAction[…]` and is no pydantic model."""
    for base in getattr(value, "__orig_bases__", ()):
        origin = get_origin(base)
        if isinstance(origin, type) and any(map(_is_base_action, origin.__mro__)):
            yield from (part for part in get_args(base)[:1] if isinstance(part, type) or get_origin(part))


def _line_of_param(model: type, param: str) -> int | None:
    with contextlib.suppress(OSError, TypeError):
        lines, first = inspect.getsourcelines(model)
        for number, text in enumerate(lines, first):
            if re.match(rf"\s+{re.escape(param)}\s*[:=]", text):
                return number
    return None


if __name__ == "__main__":
    main(int(sys.argv[1]))

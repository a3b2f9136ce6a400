"""The process that imports a plugin's modules to inspect them; started by `introspection.py`.

It reads a `Request` from standard input. To the file descriptor given as its argument it writes an empty line when it
starts, then a `ModuleInfo` for each module, as one line of JSON.
"""

from __future__ import annotations

import ast
import contextlib
import enum
import faulthandler
import functools
import importlib
import inspect
import linecache
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field
from pydantic.errors import PydanticInvalidForJsonSchema

from synapse_runtime import action as actions
from synapse_runtime.annotated_models import UnresolvedModel
from synapse_runtime.errors import ConfigError, nearest, safe_str
from synapse_runtime.plugins.form_items import FormField, form_fields, is_hidden
from synapse_runtime.plugins.module_scopes import activate_modules
from synapse_runtime.redaction import HiddenValues

_MAX_TEXT_LENGTH = 500
# How many names of a module that do not exist get the most similar one suggested: each search takes long.
_MAX_SUGGESTIONS = 20


class ModuleRequest(BaseModel):
    """A module to inspect.

    Attributes:
        module: Its name.
        names: Names to look up in it; dotted for attributes of classes.
        actions: Whether to find all actions that it defines.
    """

    module: str
    names: list[str] = Field(default_factory=list)
    actions: bool = False


class Request(BaseModel):
    """What to inspect, and how.

    Attributes:
        root: The plugin's directory.
        env: Environment variables during the import.
        seconds: Time limit for importing one module.
        modules: The modules, in the order of their import.
    """

    root: str
    env: dict[str, str] = Field(default_factory=dict, repr=False)  # values may be secrets
    seconds: float
    modules: list[ModuleRequest]


class ImportProblem(BaseModel):
    """A problem with a module, and its location; the file may belong to another package."""

    text: str
    file: str | None = None
    line: int | None = None
    level: Literal["error", "warning"] = "error"


class ActionInfo(BaseModel):
    """The object that a name in a module refers to.

    Attributes:
        is_action: Whether it is an action.
        what: If not, a description such as `a function`.
        name: The action's name, as declared or derived from the class name.
        entrypoint: Where it is defined, as `module:Name`.
        file: The file that defines it.
        line: Its line in that file.
        description: One line for display.
        method: How it runs in production, if declared.
        input_type: The name of the data type that it takes, if declared.
        output_type: The name of the data type that it returns, if declared.
        params_model: The name of its params model, if it has one.
        params_form: The fields of its params model as inputs of a form; None if the form in the config file is
            hand-written.
        result_form: The same of its result model.
        faults: Problems of its params model.
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
    params_form: list[FormField] | None = None
    result_form: list[FormField] = Field(default_factory=list)
    faults: list[ImportProblem] = Field(default_factory=list)


class ModuleInfo(BaseModel):
    """The result of inspecting a module.

    Attributes:
        module: Its name.
        file: Its file.
        missing: Whether the module does not exist.
        fault: Why it could not be imported.
        names: The names that were looked up, each with its object, or None if it does not exist.
        similar: For names that do not exist, the most similar one that does.
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
    """Inspect the modules requested on standard input, and write the results to this file descriptor."""
    request = Request.model_validate_json(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request.root)
    os.environ.update(request.env)
    warnings.simplefilter("ignore")  # only problems of the plugin are reported
    faulthandler.enable()
    with os.fdopen(descriptor, "wb", buffering=0) as results, activate_modules(request.root):
        results.write(b"\n")
        for module in request.modules:
            faulthandler.dump_traceback_later(request.seconds, exit=True)
            seen = _introspect_module(module, request)
            faulthandler.cancel_dump_traceback_later()
            results.write(seen.model_dump_json().encode() + b"\n")
    os._exit(0)  # do not wait for threads or run exit handlers of the modules


def _introspect_module(target: ModuleRequest, request: Request) -> ModuleInfo:
    seen = ModuleInfo(module=target.module)
    try:
        module = importlib.import_module(target.module)
    except BaseException as error:  # noqa: BLE001 - arbitrary plugin code runs here
        if isinstance(error, ModuleNotFoundError) and f"{target.module}.".startswith(f"{error.name}."):
            seen.missing = True
        seen.fault = _import_fault(error, request)
        return seen
    seen.file = getattr(module, "__file__", None)
    missing = 0
    for name in target.names:
        seen.names[name], seen.similar[name] = _named(module, name, suggest=missing < _MAX_SUGGESTIONS)
        missing += seen.names[name] is None
    if target.actions:
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
        text=text if len(text) <= _MAX_TEXT_LENGTH else text[: _MAX_TEXT_LENGTH - 1] + "…", file=file, line=line
    )


def _named(module: ModuleType, name: str, *, suggest: bool) -> tuple[ActionInfo | None, str | None]:
    """Return the object that a name refers to; if it does not exist, the most similar name, if one is requested."""
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            if not suggest:
                return None, None
            return None, nearest(part, [known for known in dir(value) if not known.startswith("_")])
        value = getattr(value, part)
    return _found(value), None


def _actions_in(module: ModuleType) -> Iterator[ActionInfo]:
    """Yield the actions that a module defines, in source order."""
    found = []
    for attribute, value in list(vars(module).items()):
        if getattr(value, "__module__", None) == module.__name__ and _is_meant_as_action(attribute, value):
            found.append(_found(value))
    yield from sorted(found, key=lambda one: one.line or 0)


def _is_meant_as_action(attribute: str, value: Any) -> bool:
    """Return whether this is meant to be an action: not every class with an `execute` method is one."""
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
    faults = []
    if isinstance(model, UnresolvedModel):
        try:
            model = actions.params_model_of(value)
        except ConfigError as error:
            model = value._action_params = None
            faults.append(ImportProblem(text=str(error), file=file, line=line))
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
        faults=[*faults, *_params_faults(value, model)],
        params_form=_params_form(actions.params_model_of(value)),
        result_form=_result_form(actions.result_model_of(value)),
    )


def _params_form(model: type[BaseModel] | None) -> list[FormField] | None:
    if model is None:
        return []
    return None if is_hidden(model) else [one for one in form_fields(model) if not one.hidden]


def _result_form(model: type[BaseModel] | None) -> list[FormField]:
    """Return the fields of a result model, under their own names: aliases are for validation."""
    return [] if model is None else [_under_its_own_name(one) for one in form_fields(model)]


def _under_its_own_name(field: FormField) -> FormField:
    return FormField(field=field.field, item={**field.item, "name": field.field})


def _place(value: Any) -> tuple[str | None, int | None]:
    try:
        file = inspect.getsourcefile(inspect.unwrap(value))
        if file is None:
            return None, None
        if not isinstance(value, type):
            return file, inspect.getsourcelines(value)[1]
    except (OSError, TypeError):
        return None, None
    node = _classes_in(file).get(value.__qualname__)
    return file, None if node is None else min([node.lineno, *(part.lineno for part in node.decorator_list)])


@functools.cache
def _classes_in(file: str) -> Mapping[str, ast.ClassDef]:
    """Return the classes that a file defines, by qualified name; `inspect` would parse the file for each of them."""
    found: dict[str, ast.ClassDef] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                found.setdefault(prefix + child.name, child)
                visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                visit(child, f"{prefix}{child.name}.<locals>.")
            else:
                visit(child, prefix)

    with contextlib.suppress(SyntaxError, ValueError, RecursionError):  # changed since it was imported, or generated
        visit(ast.parse("".join(linecache.getlines(file))), "")
    return found


def _description(value: Any) -> str:
    own = getattr(value, "_action_description", None) or getattr(value, "description", None)
    inherited = isinstance(value, type) and "__doc__" not in vars(value)
    text = own if isinstance(own, str) else "" if inherited else value.__doc__ or ""
    return " ".join(text.strip().partition("\n\n")[0].split())


def _plain(value: Any) -> str | None:
    value = value.value if isinstance(value, enum.Enum) else value
    return value if isinstance(value, str) else None


def _type_name(value: Any) -> str | None:
    """Return the name of an SDK data type, which is a class with a `name`, or the value itself if it is a string."""
    return value if isinstance(value, str) else _plain(getattr(value, "name", None))


def _params_faults(value: Any, model: Any) -> Iterator[ImportProblem]:
    """Yield the problems of an action's params model."""
    file, line = _place(value)
    named = f"action {actions.name_of(value)!r}"
    if model is None:
        for other in _other_params(value):
            text = f"{named}: params of type {actions.describe(other)} are not validated; use a pydantic model"
            yield ImportProblem(text=text, file=file, line=line, level="warning")
        return
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        text = f"{named}: params model {actions.describe(model)} is not a pydantic model; derive it from BaseModel"
        yield ImportProblem(text=text, file=file, line=line)
        return
    file, line = _place(model)
    try:
        model.model_json_schema()
    except PydanticInvalidForJsonSchema as error:
        text = f"{named}: {model.__name__} has no JSON schema: {error.message}; no form can be built for its params"
        yield ImportProblem(text=" ".join(text.split()), file=file, line=line, level="warning")
    except Exception as error:  # noqa: BLE001 - arbitrary plugin code runs here
        first = safe_str(error).partition("\n")[0]
        text = f"{named}: {model.__name__} cannot be used: {type(error).__name__}: {first}"
        yield ImportProblem(text=text, file=file, line=line)
    for param in model.model_fields:
        if hasattr(BaseModel, param):
            text = f"{named}: parameter {param!r} shadows BaseModel.{param}; rename it"
            yield ImportProblem(text=text, file=file, line=_line_of_param(model, param) or line, level="warning")


def _other_params(value: Any) -> Iterator[Any]:
    """Yield the type argument of `BaseAction[…]`, for an action without a params model."""
    for base in getattr(value, "__orig_bases__", ()):
        origin = get_origin(base)
        if isinstance(origin, type) and any(map(_is_base_action, origin.__mro__)):
            yield from (part for part in get_args(base)[:1] if isinstance(part, type) or get_origin(part))


def _line_of_param(model: type, param: str) -> int | None:
    file, _ = _place(model)
    node = None if file is None else _classes_in(file).get(model.__qualname__)
    for statement in () if node is None else node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == param for target in targets):
            return statement.lineno
    return None


if __name__ == "__main__":
    main(int(sys.argv[1]))

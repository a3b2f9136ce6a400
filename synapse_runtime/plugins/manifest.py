"""Read and check a plugin's config file; every problem has its file and line."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic_core import ValidationError as PydanticValidationError
from pydantic_core import core_schema as kinds

from synapse_runtime.enums import (
    AnnotationCategory,
    AnnotationTool,
    AnnotationType,
    DataType,
    PluginCategory,
    RunMethod,
    SmartToolType,
)
from synapse_runtime.errors import ConfigError, ConfigWarning, Problem, nearest
from synapse_runtime.plugins import yaml_reader
from synapse_runtime.plugins.discovery import CONFIG_NAMES, config_file_in
from synapse_runtime.plugins.sections import (
    ANYTHING,
    MAPPING,
    TEXT,
    TEXT_OR_NONE,
    TEXTS,
    Field,
    Section,
    changed_before,
    checked_after,
)
from synapse_runtime.plugins.yaml_reader import Document

SERVED = (RunMethod.SERVE, RunMethod.RESTAPI)  # Ray Serve classes and web applications, which the executors cannot call

# Fields with a fixed set of values. A newer backend may know more, so another value is only a warning.
_KNOWN_VALUES: dict[str, type[StrEnum]] = {
    "category": PluginCategory,
    "data_type": DataType,
    "supported_data_types": DataType,
    "annotation_category": AnnotationCategory,
    "annotation_type": AnnotationType,
    "smart_tool": SmartToolType,
    "smart_tool_type": SmartToolType,
}

_ALSO = {"supported_data_types": "supported_data_type"}

# Fields in which `3.10` is text, not the number 3.1.
_TEXT_AT = (
    *((name,) for name in ("code", "name", "version", "variant", "description", "readme")),
    *((name, "*") for name in ("requires", "dependencies", "tags")),
    *(("actions", "*", name) for name in ("name", "description", "input_type", "output_type")),
)


def _is_entrypoint(value: str) -> str:
    parts = value.replace(":", ".", 1).split(".")
    if value and (len(parts) < 2 or not all(part.isidentifier() for part in parts)):
        raise ValueError(f"expected 'module:Name' or 'module.Name', got {value!r}")
    return value


class ActionSpec(Section):
    """One action of the config file.

    Attributes:
        name: The action's name; its key if the actions are a mapping.
        entrypoint: `module:Name` or `module.Name`, relative to the plugin's directory. If empty, the action cannot run.
        method: How the action runs in production: `job`, `task`, `serve` or `restapi`.
        description: One line for display.
        input_type: Name of the SDK data type that the action takes, such as `yolo_dataset`.
        output_type: Name of the SDK data type that the action returns.
        serve_options: Options of a `serve` action.
        params_schema: Read by the SDK; not used here, because the params model comes from the code.
        ui_schema: The form for the params of an upload action, as written by `update-config`.
        hyperparameters: The form for the params of other actions, at `train_ui_schemas`, as written by `update-config`.
        result_schema: The fields of the result, as written by `update-config`.
    """

    name: str
    entrypoint: str
    method: str
    description: str
    input_type: str | None
    output_type: str | None
    serve_options: dict[str, Any] | None
    params_schema: Any
    ui_schema: Any
    hyperparameters: Any
    result_schema: Any

    model_fields: ClassVar[Mapping[str, Field]] = {
        "name": Field(TEXT),
        "entrypoint": Field(checked_after(_is_entrypoint, TEXT), ""),
        "method": Field(TEXT, "task"),
        "description": Field(TEXT, ""),
        "input_type": Field(TEXT_OR_NONE, None),
        "output_type": Field(TEXT_OR_NONE, None),
        "serve_options": Field(kinds.nullable_schema(MAPPING), None),
        "params_schema": Field(ANYTHING, None),
        "ui_schema": Field(ANYTHING, None),
        "hyperparameters": Field(ANYTHING, None),
        "result_schema": Field(ANYTHING, None),
    }


class Requires(Section):
    """The versions that a plugin requires, as specifiers such as `>=3.10,<3.13`.

    Attributes:
        sdk: Versions of `synapse-sdk`.
        python: Versions of Python.
        cuda: Versions of CUDA.
    """

    sdk: str | None
    python: str | None
    cuda: str | None

    model_fields: ClassVar[Mapping[str, Field]] = {
        name: Field(TEXT_OR_NONE, None) for name in ("sdk", "python", "cuda")
    }


def _variables_are_a_mapping(value: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value.get("env_vars") or {}, dict):
        raise ValueError("env_vars must be a mapping of variable names to values")
    return value


def _by_name(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {str(key): _action(key, spec) for key, spec in value.items()}


def _action(key: object, spec: Any) -> Any:
    if isinstance(spec, str):
        spec = {"entrypoint": spec}
    if spec is None:
        spec = {}
    return {**spec, "name": spec.get("name") or str(key)} if isinstance(spec, dict) else spec


class Manifest(Section):
    """A plugin's config file.

    Attributes:
        code: The plugin's unique id.
        name: The plugin's display name; the code by default.
        version: `X.Y.Z`.
        variant: Distinguishes several plugins with the same code.
        category: What the plugin is for, one of `synapse_runtime.enums.PluginCategory`.
        description: One line for display.
        readme: The plugin's readme, relative to its directory.
        env: Environment variables of the actions. Values given in code override them; they override those of
            `runtime_env`.
        runtime_env: Ray's runtime environment for workers that do not share this file system. Its `env_vars` are moved
            to `env`: they are sent with each call, so that no cluster lists them.
        package_manager: Installs `requirements.txt` and wheels on such workers: `pip` or `uv`.
        package_manager_options: Options of its `install` command.
        wheels_dir: Directory of wheels to install on such workers, relative to the plugin's directory.
        requires: Required versions of Python, the SDK and CUDA.
        dependencies: Versions of the plugins that it depends on, by code.
        tags: Search keywords.
        data_type: The kind of data it works on, such as `image`.
        tasks: What it does with the data, such as `image.object_detection`.
        supported_data_types: Data types that an upload plugin accepts. The file may also say `supported_data_type`.
        supported_annotation_tools: Tools by annotation category.
        annotation_category: The data that a smart tool works on.
        annotation_type: The annotations that a smart tool creates, such as `bbox`.
        smart_tool: How a smart tool works, such as `interactive`.
        smart_tool_type: The same as `smart_tool`, under the name used by the SDK's templates.
        actions: The actions by name, in the order of the file.
    """

    code: str
    name: str
    version: str
    variant: str | None
    category: str | None
    description: str
    readme: str
    env: dict[str, Any]
    runtime_env: dict[str, Any]
    package_manager: Literal["pip", "uv"]
    package_manager_options: list[str]
    wheels_dir: str
    requires: Requires
    dependencies: dict[str, str]
    tags: list[str]
    data_type: str | None
    tasks: list[str]
    supported_data_types: list[str]
    supported_annotation_tools: dict[str, list[str]]
    annotation_category: str | None
    annotation_type: str | None
    smart_tool: str | None
    smart_tool_type: str | None
    actions: dict[str, ActionSpec]

    model_fields: ClassVar[Mapping[str, Field]] = {
        "code": Field(TEXT, ""),
        "name": Field(TEXT, ""),
        "version": Field(TEXT, "0.1.0"),
        "variant": Field(TEXT_OR_NONE, None),
        "category": Field(TEXT_OR_NONE, None),
        "description": Field(TEXT, ""),
        "readme": Field(TEXT, "README.md"),
        "env": Field(MAPPING, dict, is_secret=True),
        "runtime_env": Field(checked_after(_variables_are_a_mapping, MAPPING), dict),
        "package_manager": Field(kinds.literal_schema(["pip", "uv"]), "pip"),
        "package_manager_options": Field(TEXTS, list),
        "wheels_dir": Field(TEXT, "wheels"),
        "requires": Field(Requires.kind(), Requires),
        "dependencies": Field(kinds.dict_schema(TEXT, TEXT), dict),
        "tags": Field(TEXTS, list),
        "data_type": Field(TEXT_OR_NONE, None),
        "tasks": Field(TEXTS, list),
        "supported_data_types": Field(TEXTS, list, also=_ALSO["supported_data_types"]),
        "supported_annotation_tools": Field(kinds.dict_schema(TEXT, TEXTS), dict),
        "annotation_category": Field(TEXT_OR_NONE, None),
        "annotation_type": Field(TEXT_OR_NONE, None),
        "smart_tool": Field(TEXT_OR_NONE, None),
        "smart_tool_type": Field(TEXT_OR_NONE, None),
        "actions": Field(changed_before(_by_name, kinds.dict_schema(TEXT, ActionSpec.kind())), dict),
    }

    def __init__(self, /, **values: Any) -> None:
        super().__init__(**values)
        self.name = self.name or self.code
        # Sent with each call instead, so that no cluster lists them: they may be secrets.
        self.env = {**(self.runtime_env.pop("env_vars", None) or {}), **self.env}
        self._problems: tuple[Problem, ...] = ()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Unknown fields and values, each with file and line; the plugin works nevertheless.

        After `read_manifest_leniently`, these also include the invalid fields.
        """
        return self._problems


def read_manifest(path: Path) -> Manifest:
    """Read a config file.

    Args:
        path: The file, or the directory that contains it.

    Returns:
        The manifest; its `problems` list unknown fields and values.

    Raises:
        ConfigError: The file does not exist, is not valid YAML, or has invalid fields. The message has file and line;
            `problems` lists everything that is wrong.
    """
    manifest = read_manifest_leniently(path)
    errors = [problem for problem in manifest.problems if problem.level == "error"]
    if errors:
        raise ConfigError.of(errors)
    return manifest


def read_manifest_leniently(path: Path) -> Manifest:
    """Read a config file leniently: invalid fields are left out and listed in `problems`.

    Args:
        path: The file, or the directory that contains it.

    Raises:
        ConfigError: The file does not exist, or is not a YAML mapping.
    """
    path = config_file(path)
    return parse_manifest_leniently(yaml_reader.read_text(path), path)


def parse_manifest_leniently(text: str, path: Path) -> Manifest:
    """Like `read_manifest_leniently`, for the text of a config file.

    Args:
        text: The content of a config file.
        path: The file, for problems and errors.

    Raises:
        ConfigError: The text is not a YAML mapping.
    """
    document = yaml_reader.parse(text, path, text_at=_TEXT_AT)
    if document.data is None:
        raise ConfigError("the file is empty; a plugin needs at least 'code' and 'actions'", path=path)
    if not isinstance(document.data, dict):
        kind = type(document.data).__name__
        raise ConfigError(f"expected a mapping of keys to values, got a {kind}", path=path, line=1)
    faults = _Faults(path, document)
    manifest = _what_fits(_with_named_actions(document.data, faults), faults)
    for keys, text in _unknown(manifest):
        faults.add(keys, text, "warning")
    manifest._problems = tuple(sorted(faults.found, key=lambda problem: problem.line or 0))
    return manifest


def config_file(path: Path) -> Path:
    """Return the config file for a path: the path itself, or the config file in this directory.

    Raises:
        ConfigError: The path is a directory without a config file.
    """
    if not path.is_dir():
        return path
    found = config_file_in(path)
    if found is None:
        raise ConfigError(f"no {' or '.join(CONFIG_NAMES[::2])} in this directory", path=path)
    return found


def warn_about_problems(manifest: Manifest) -> None:
    """Issue a `ConfigWarning` for each problem of a config file."""
    for problem in manifest.problems:
        # The line number is part of the file name, because Python prints the source line of a file that it can find,
        # and that line may contain a secret.
        place = f"{problem.path}:{problem.line}"
        warnings.warn_explicit(problem.text, ConfigWarning, place, 1, module=__name__)


def line_of(text: str, keys: Sequence[str | int]) -> int | None:
    r"""Return the line number, from 1, of the deepest key of this path that exists in the YAML text.

    Example:
        >>> line_of("code: x\nactions:\n  train:\n    entrypoint: 3\n", ("actions", "train", "entrypoint"))
        4
    """
    try:
        return yaml_reader.parse(text).line(keys)
    except ConfigError:  # the file has changed since it was read
        return None


class _Faults:
    """Collects the problems of one file."""

    def __init__(self, path: Path, document: Document) -> None:
        self.found: list[Problem] = []
        self._path = path
        self._document = document

    def add(self, keys: Sequence[str | int], text: str, level: Literal["error", "warning"] = "error") -> None:
        line = self._document.line(keys) or self._document.line([_ALSO.get(str(keys[0]), "")])
        self.found.append(Problem(text, self._path, line, level))


def _with_named_actions(data: dict[str, Any], faults: _Faults) -> dict[str, Any]:
    """Return the data with its actions as a mapping by name, if they are a list."""
    entries = data.get("actions")
    if not isinstance(entries, list):
        return data
    named: dict[str, Any] = {}
    for place, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(entry, dict):
            text = f"must be a mapping with a name and an entrypoint, got a {type(entry).__name__}"
        elif not name or not isinstance(name, str):
            text = "has no name; add `name: …`"
        elif name in named:
            text = f"repeats the name {name!r}; rename one of them"
        else:
            named[name] = entry
            continue
        faults.add(("actions", place), f"actions: entry {place + 1} {text}")
    return {**data, "actions": named}


def _what_fits(data: dict[str, Any], faults: _Faults) -> Manifest:
    """Validate the data; leave out invalid values and record why."""
    validator = Manifest.validator()
    while True:
        try:
            manifest: Manifest = validator.validate_python(data)
            return manifest
        except PydanticValidationError as error:
            problems = error.errors(include_input=False, include_url=False)
        for problem in problems:
            where = ".".join(str(part) for part in problem["loc"])
            what = problem["msg"].removeprefix("Value error, ").partition(" or instance of ")[0]
            faults.add(problem["loc"], f"{where}: {what}")
        rest = _without(data, [problem["loc"] for problem in problems])
        if rest is data:
            return Manifest()
        data = rest


def _without(data: Any, paths: Sequence[Sequence[str | int]]) -> Any:
    """Return a copy of nested mappings without the values at these paths, or at the deepest keys of them that exist.

    Returns:
        The copy; the data itself if none of the keys exists.
    """
    if not isinstance(data, Mapping):
        return data
    deeper: dict[str | int, list[Sequence[str | int]]] = {}
    for path in paths:
        if path and path[0] in data:
            deeper.setdefault(path[0], []).append(path[1:])
    if not deeper:
        return data
    copy = dict(data)
    for key, rests in deeper.items():
        rest = _without(data[key], rests) if all(rests) else data[key]
        if rest is data[key]:
            del copy[key]
        else:
            copy[key] = rest
    return copy


_ReportedProblems: TypeAlias = tuple[tuple[str, ...], str]


def _unknown(manifest: Manifest) -> Iterator[_ReportedProblems]:
    """Yield each unknown field and value: its keys, and the message."""
    fields = {*Manifest.model_fields, *_ALSO.values()}
    yield from _unknown_fields(manifest, (), fields, ActionSpec.model_fields, "it belongs in an action")
    yield from _unknown_fields(manifest.requires, ("requires",), Requires.model_fields, (), "")
    for field, words in _KNOWN_VALUES.items():
        value = getattr(manifest, field)
        yield from _unknown_values((field,), value if isinstance(value, list) else [value], words)
    tools = "supported_annotation_tools"
    for category, named in manifest.supported_annotation_tools.items():
        yield from _unknown_values((tools,), [category], AnnotationCategory, (tools, category))
        yield from _unknown_values((tools, category), named, AnnotationTool)
    for name, action in manifest.actions.items():
        place = ("actions", name)
        yield from _unknown_fields(action, place, ActionSpec.model_fields, fields, "it belongs at the top level")
        yield from _unknown_values((*place, "method"), [action.method], RunMethod)


def _unknown_fields(
    section: Section, place: tuple[str, ...], known: Iterable[str], elsewhere: Iterable[str], hint: str
) -> Iterator[_ReportedProblems]:
    for field in section.model_extra:
        if field in known or field.startswith(("x-", "_", ".")):  # such fields commonly hold anchors
            continue
        guess = nearest(field, known)
        advice = hint if field in elsewhere else f"did you mean {guess!r}?" if guess else "it has no effect"
        where = f" in {'.'.join(place)}" if place else ""
        yield (*place, field), f"unknown field {field!r}{where}; {advice}"


def _unknown_values(
    field: tuple[str, ...], values: Iterable[str | None], words: type[StrEnum], place: tuple[str, ...] = ()
) -> Iterator[_ReportedProblems]:
    known = [word.value for word in words]
    for value in values:
        if value is None or value in known:
            continue
        guess = nearest(value, known)
        advice = f"did you mean {guess!r}?" if guess else f"expected one of {', '.join(known)}"
        yield place or field, f"{'.'.join(field)}: unknown value {value!r}; {advice}"

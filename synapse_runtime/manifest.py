"""A plugin's config file: read, checked, and every problem told with file and line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic import ValidationError as PydanticValidationError

from synapse_runtime.errors import ConfigError
from synapse_runtime.locate import CONFIG_NAMES, config_in


class ActionSpec(BaseModel):
    """One action of the config file.

    Attributes:
        name: The action's name; where actions are a mapping, its key.
        entrypoint: `module:Name` or `module.Name`, seen from the plugin's directory. Empty: cannot be run.
        method: How the action runs in production: `job`, `task`, `serve` or `restapi`.
        description: One line for people.
    """

    model_config = ConfigDict(extra="allow")

    name: str
    entrypoint: str = ""
    method: str = "task"
    description: str = ""

    @field_validator("entrypoint")
    @classmethod
    def _is_entrypoint(cls, value: str) -> str:
        parts = value.replace(":", ".", 1).split(".")
        if value and (len(parts) < 2 or not all(part.isidentifier() for part in parts)):
            raise ValueError(f"must be 'module:Name' or 'module.Name', not {value!r}")
        return value


class Manifest(BaseModel):
    """A plugin's config file.

    Attributes:
        code: The plugin's unique id.
        name: The plugin's name for people; the code by default.
        version: `X.Y.Z`.
        category: What the plugin is for, one of `synapse_runtime.enums.PluginCategory`.
        env: Variables of the action's environment, under those given in code; those of `runtime_env` under them.
        runtime_env: What a worker needs that does not share this disk, as Ray takes it; but for `env_vars`, which are
            in `env`: they travel with each call, and no cluster lists them.
        package_manager: What installs `requirements.txt` and wheels there: `pip` or `uv`.
        package_manager_options: Options of its `install` command.
        wheels_dir: Directory of wheels to install there, from the plugin's.
        actions: The actions by name, in the order of the file.
    """

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)  # in `env` may be secrets

    code: str = ""
    name: str = ""
    version: str = "0.1.0"
    description: str = ""
    category: str | None = None
    env: dict[str, Any] = Field(default_factory=dict, repr=False)  # values may be secrets
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    package_manager: Literal["pip", "uv"] = "pip"
    package_manager_options: list[str] = Field(default_factory=list)
    wheels_dir: str = "wheels"
    actions: dict[str, ActionSpec] = Field(default_factory=dict)

    @field_validator("env", "runtime_env", "package_manager_options", "actions", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None:
            return value
        return [] if info.field_name == "package_manager_options" else {}

    @field_validator("runtime_env")
    @classmethod
    def _variables_are_a_mapping(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("env_vars") or {}, dict):
            raise ValueError("env_vars must be a mapping of names to values")
        return value

    @field_validator("version", "code", "name", mode="before")
    @classmethod
    def _numbers_are_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("actions", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, list):
            value = {entry.get("name", ""): entry for entry in value if isinstance(entry, dict)}
        if not isinstance(value, dict):
            return value
        named: dict[str, Any] = {}
        for key, spec in value.items():
            if isinstance(spec, str):
                spec = {"entrypoint": spec}
            if spec is None:
                spec = {}
            named[str(key)] = {"name": str(key), **spec} if isinstance(spec, dict) else spec
        return named

    @model_validator(mode="after")
    def _name_or_code(self) -> Manifest:
        self.name = self.name or self.code
        return self

    @model_validator(mode="after")
    def _variables_travel_with_the_call(self) -> Manifest:
        self.env = {**(self.runtime_env.pop("env_vars", None) or {}), **self.env}
        return self


def read_manifest(path: Path) -> Manifest:
    """Read a config file.

    Args:
        path: The file, or the directory that it is in.

    Raises:
        ConfigError: No file there, broken YAML, or fields that do not fit; names file and line.
    """
    if path.is_dir():
        found = config_in(path)
        if found is None:
            raise ConfigError(f"there is no {' or '.join(CONFIG_NAMES[::2])} in this directory", path=path)
        path = found
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 text: {error.reason} at byte {error.start}", path=path) from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path=path) from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _broken_yaml(path, error) from None  # its text shows lines of the file
    if data is None:
        raise ConfigError("is empty; a plugin has at least 'code' and 'actions'", path=path)
    if not isinstance(data, dict):
        raise ConfigError(f"must be a mapping of keys to values, not a {type(data).__name__}", path=path, line=1)
    try:
        return Manifest.model_validate(data)
    except PydanticValidationError as error:
        raise _bad_fields(path, text, error) from error


def _broken_yaml(path: Path, error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None)
    text = f"broken YAML: {problem}" + (f" ({context})" if context else "")
    return ConfigError(text, path=path, line=None if mark is None else mark.line + 1)


def _bad_fields(path: Path, text: str, error: PydanticValidationError) -> ConfigError:
    problems = error.errors()
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"])
    message = f"{where}: {first['msg'].removeprefix('Value error, ')}"
    if len(problems) > 1:
        others = ", ".join(".".join(map(str, problem["loc"])) for problem in problems[1:6])
        message += f" (and {len(problems) - 1} more: {others})"
    return ConfigError(message, path=path, line=line_of(text, first["loc"]))


def line_of(text: str, keys: Sequence[str | int]) -> int | None:
    r"""Return the line, counted from 1, of the deepest key of this path that the YAML text has.

    Example:
        >>> line_of("code: x\nactions:\n  train:\n    entrypoint: 3\n", ("actions", "train", "entrypoint"))
        4
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    line: int | None = None
    for key in keys:
        if isinstance(node, yaml.SequenceNode):
            node = next((item for item in node.value if _named(item, str(key))), None)
            line = line if node is None else node.start_mark.line + 1
            continue
        if not isinstance(node, yaml.MappingNode):
            break
        for key_node, value_node in node.value:
            if key_node.value == str(key):
                line, node = key_node.start_mark.line + 1, value_node
                break
        else:
            break
    return line


def _named(node: yaml.Node, name: str) -> bool:
    """Tell whether this is a mapping with `name: <name>` in it."""
    return isinstance(node, yaml.MappingNode) and any(
        key.value == "name" and value.value == name for key, value in node.value
    )

"""An action's params from the command line: `--params` for all, `--param` for one, typed by the params model."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from synapse_runtime.cli.usage_error import usage_error
from synapse_runtime.errors import ValidationError, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

INFER_PATH = "/"


@dataclass(frozen=True)
class ParamsFile:
    """A YAML file with params.

    Attributes:
        path: The file.
        texts: Its numbers, booleans and nulls as they are written, by their paths.
        line: Returns the line of a path's deepest key that exists.
    """

    path: Path
    texts: Mapping[tuple[str | int, ...], str]
    line: Callable[[Sequence[str | int]], int | None]


@dataclass(frozen=True)
class GivenParams:
    """The options of a command line that set an action's params.

    Attributes:
        whole: The value of `--params`.
        file: The YAML file that this value is from, if it is.
        pairs: Each `--param`, as key and text.
        input: The value of `--input`, in a list of one; empty if it was not given.
        infer_path: The value of `--infer-path`; None if it was not given.
    """

    whole: dict[str, Any] = field(default_factory=dict)
    file: ParamsFile | None = None
    pairs: Sequence[tuple[str, str]] = ()
    input: Sequence[Any] = ()
    infer_path: str | None = None

    @property
    def needs_model(self) -> bool:
        """Whether the action's params model is needed to read them."""
        return bool((self.file and self.file.texts) or self.pairs or self.input or self.infer_path is not None)

    def for_action(self, name: str, model: type[BaseModel] | None) -> dict[str, Any]:
        """Return the action's params; `--param` overrides `--params`.

        Args:
            name: The action's name.
            model: Its params model, which defines the valid names and how the text of a `--param` is read.
                Without one, a text is parsed as JSON if possible, and is otherwise a string.

        Raises:
            typer.BadParameter: The model has no such param; suggests the closest name.
        """
        if not self.needs_model:
            return dict(self.whole)
        from pydantic import RootModel

        kind: Any = Any if model is None or issubclass(model, RootModel) else model
        params: dict[str, Any] = _typed(self.whole, kind, {} if self.file is None else self.file.texts, ())
        if self.input:
            _put(params, _Target.of("input", kind, name, "--input"), self.input[0])
        infer_path = self.infer_path
        if infer_path is None and self.input and _requires(kind, "infer_path"):
            infer_path = INFER_PATH
        if infer_path is not None:
            # The platform's name for it is `path`.
            key = "infer_path" if _field(kind, "path") is None or _field(kind, "infer_path") else "path"
            _put(params, _Target.of(key, kind, name, "--infer-path"), infer_path)
        for key, text in self.pairs:
            target = _Target.of(key, kind, name, "--param")
            _put(params, target, _value(text, target.kind))
        return params

    def lines(self, error: BaseException | None) -> list[str]:
        """Return where the file has the params that an error of validation is about, as `param: file:line`."""
        if self.file is None or not isinstance(error, ValidationError):
            return []
        changed = {key.split(".")[0] for key, _ in self.pairs}
        found = []
        for problem in error.errors():
            keys = [key for key in problem["loc"] if isinstance(key, str | int)]
            line = self.file.line(keys)
            if line is not None and keys and keys[0] not in changed:
                found.append(f"{'.'.join(map(str, keys))}: {self.file.path}:{line}")
        return found


def read_params(text: str) -> tuple[dict[str, Any], ParamsFile | None]:
    """Return the object given by `--params`, and the YAML file that it is from, if it is.

    Raises:
        typer.BadParameter: It cannot be read; shows where it is invalid.

    Example:
        >>> read_params('{"epochs": 5}')
        ({'epochs': 5}, None)
    """
    value, file = _read(text, "--params")
    if not isinstance(value, dict):
        raise usage_error(
            f"expected a JSON object such as '{{\"epochs\": 5}}', got {type(value).__name__}",
            "--params",
        )
    return value, file


def read_json(text: str, option: str) -> Any:
    """Return the value given by an option: as JSON, in a JSON, YAML or TOML file (`@file`), or on stdin (`-`).

    Raises:
        typer.BadParameter: It cannot be read; shows where the JSON is invalid.
    """
    return _read(text, option)[0]


def _read(text: str, option: str) -> tuple[Any, ParamsFile | None]:
    if text == "-":
        return _parsed(sys.stdin.read().removeprefix("\ufeff"), option, "standard input: "), None
    if not text.startswith("@"):
        return _parsed(text, option, ""), None
    path = Path(text[1:])
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise usage_error(f"{path} cannot be read: {error.strerror}", option) from None
    except UnicodeDecodeError as error:
        raise usage_error(f"{path} is not UTF-8 text: {error.reason}", option) from None
    if path.suffix in (".yaml", ".yml"):
        return _parsed_yaml(content, option, path)
    if path.suffix == ".toml":
        return _parsed_toml(content, option, path), None
    return _parsed(content, option, f"{path}: "), None


def read_pairs(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Return the key and the text of each `--param`.

    Raises:
        typer.BadParameter: One is not `KEY=VALUE`.

    Example:
        >>> read_pairs(["epochs=5", "note=a=b", "optimizer.lr=0.1"])
        [('epochs', '5'), ('note', 'a=b'), ('optimizer.lr', '0.1')]
    """
    pairs = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise usage_error(f"expected KEY=VALUE (such as epochs=5), got {text!r}", "--param")
        pairs.append((key, value))
    return pairs


def accepted_names(model: type[BaseModel], name: str) -> list[str]:
    """Return the names that a model accepts for one of its fields: its aliases, or the field's own name.

    Example:
        >>> from pydantic import BaseModel, Field
        >>> class TrainParams(BaseModel):
        ...     rate: float = Field(0.1, alias="learning-rate")
        >>> accepted_names(TrainParams, "rate")
        ['learning-rate']
    """
    from pydantic import AliasChoices

    alias = model.model_fields[name].validation_alias
    aliases = alias.choices if isinstance(alias, AliasChoices) else [alias]
    names = [choice for choice in aliases if isinstance(choice, str)]
    by_name = any(model.model_config.get(setting) for setting in ("populate_by_name", "validate_by_name"))
    return [*names, name] if by_name or not names else names


def models_in(kind: Any) -> list[type[BaseModel]]:
    """Return the models in a type: two for `Adam | SGD | None`."""
    from pydantic import BaseModel

    origin = get_origin(kind)
    if origin is Annotated:
        return models_in(get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return [model for part in get_args(kind) for model in models_in(part)]
    return [kind] if isinstance(kind, type) and issubclass(kind, BaseModel) else []


@dataclass(frozen=True)
class _Target:
    """Where a param is set: the path of keys, and the type of the value, or `Any` if unknown."""

    keys: tuple[str, ...]
    kind: Any
    option: str

    @classmethod
    def of(cls, key: str, kind: Any, action: str, option: str) -> _Target:
        keys: list[str] = []
        rest = key
        while rest:
            models = models_in(kind)
            found = next((name for name in (rest, rest.partition(".")[0]) if _field(kind, name)), None)
            if found is not None:
                kind = _field(kind, found).annotation  # type: ignore[union-attr]
            elif models and not any(model.model_config.get("extra") == "allow" for model in models):
                raise usage_error(_unknown(action, keys, rest.partition(".")[0], models), option)
            elif models:
                found, kind = rest.partition(".")[0], Any
            else:
                found, kind = rest.partition(".")[0], _inside(kind, action, keys, option)
            keys.append(found)
            rest = rest[len(found) + 1 :]
        return cls(tuple(keys), kind, option)


def _unknown(action: str, keys: list[str], name: str, models: list[type[BaseModel]]) -> str:
    known = [accepted_names(model, field)[0] for model in models for field in model.model_fields]
    guess = nearest(name, known)
    where = f"{'.'.join(keys)} of {action}" if keys else action
    hint = f" Did you mean {'.'.join([*keys, guess])!r}?" if guess else ""
    return f"{where} has no param {name!r}.{hint} Available: {', '.join(known) or 'none'}."


def _field(kind: Any, name: str) -> FieldInfo | None:
    for model in models_in(kind):
        for own_name, info in model.model_fields.items():
            if name in accepted_names(model, own_name):
                return info
    return None


def _requires(kind: Any, name: str) -> bool:
    info = _field(kind, name)
    return info is not None and info.is_required()


def _inside(kind: Any, action: str, keys: list[str], option: str) -> Any:
    """Return the type of a mapping's values."""
    if get_origin(kind) is Annotated:
        return _inside(get_args(kind)[0], action, keys, option)
    if get_origin(kind) in (Union, types.UnionType):
        mappings = [part for part in get_args(kind) if _is_mapping(part)]
        kind = mappings[0] if mappings else kind
    if not keys or kind is Any or kind is object or _is_mapping(kind):
        return (*get_args(kind), Any, Any)[1] if get_args(kind) else Any
    raise usage_error(
        f"{'.'.join(keys)} of {action} has no keys: pass its whole value, as --param {'.'.join(keys)}=VALUE",
        option,
    )


def _is_mapping(kind: Any) -> bool:
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _put(params: dict[str, Any], target: _Target, value: Any) -> None:
    inner = params
    for key in target.keys[:-1]:
        current = inner.get(key)
        if current is not None and not isinstance(current, dict):
            raise usage_error(
                f"cannot set {'.'.join(target.keys)}: {key!r} is a {type(current).__name__} in --params",
                target.option,
            )
        inner[key] = dict(current or {})
        inner = inner[key]
    inner[target.keys[-1]] = value


def _value(text: str, kind: Any) -> Any:
    """Read a text as a value of a type: as JSON, unless only the text itself is valid for the type."""
    import json

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if kind is Any or not _is_valid(text, kind):
        return value
    return text if isinstance(value, str) or not _is_valid(value, kind) else value


def _typed(value: Any, kind: Any, texts: Mapping[tuple[str | int, ...], str], path: tuple[str | int, ...]) -> Any:
    """Return a value of a YAML file, in which `NO` and `1.10` are text where the type is text."""
    if path in texts:
        is_text = kind is not Any and not _is_valid(value, kind) and _is_valid(texts[path], kind)
        return texts[path] if is_text else value
    if isinstance(value, dict):
        return {key: _typed(part, _kind_of(kind, key), texts, (*path, key)) for key, part in value.items()}
    if isinstance(value, list):
        return [_typed(part, _kind_at(kind, index), texts, (*path, index)) for index, part in enumerate(value)]
    return value


def _kind_of(kind: Any, key: str) -> Any:
    """Return the type of a key of a model or mapping, or `Any`."""
    info = _field(kind, key)
    if info is not None:
        return info.annotation
    mapping = next(filter(_is_mapping, _alternatives(kind)), None)
    return (*get_args(mapping), Any, Any)[1] if get_args(mapping) else Any


def _kind_at(kind: Any, index: int) -> Any:
    """Return the type of an item of a list, set or tuple, or `Any`."""
    for part in _alternatives(kind):
        origin, kinds = get_origin(part), get_args(part)
        if isinstance(origin, type) and issubclass(origin, Collection) and not issubclass(origin, Mapping):
            is_fixed = origin is tuple and kinds[-1:] != (Ellipsis,)
            return (kinds[index] if index < len(kinds) else Any) if is_fixed else kinds[0]
    return Any


def _alternatives(kind: Any) -> list[Any]:
    """Return the types in a union; otherwise the type itself."""
    if get_origin(kind) is Annotated:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [each for part in get_args(kind) for each in _alternatives(part)]
    return [kind]


def _is_valid(value: Any, kind: Any) -> bool:
    """Return whether pydantic accepts a value for a type."""
    try:
        try:
            model = _model_with(kind)
        except TypeError:  # the type cannot be hashed
            model = _model_with.__wrapped__(kind)
        model.model_validate({"value": value})
    except Exception:  # noqa: BLE001 - custom validators may raise anything
        return False
    return True


@functools.lru_cache(maxsize=64)
def _model_with(kind: Any) -> type[BaseModel]:
    """Return a model with one field: unlike a TypeAdapter, it accepts any type that a field may have."""
    from pydantic import ConfigDict, create_model

    return create_model("_Model", __config__=ConfigDict(arbitrary_types_allowed=True), value=(kind, ...))


def _parsed(text: str, option: str, where: str) -> Any:
    if text == "{}":  # the default
        return {}
    import json

    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1]
        start = max(error.colno - 41, 0)
        shown = line[start : error.colno + 40]
        pointer = " " * (error.colno - 1 - start) + "^"
        raise usage_error(
            f"{where}invalid JSON: {error.msg} at line {error.lineno}, column {error.colno}\n  {shown}\n  {pointer}",
            option,
        ) from None
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, or deep nesting
        raise usage_error(f"{where}JSON exceeds a limit: {error}", option) from None


def _parsed_yaml(text: str, option: str, path: Path) -> tuple[Any, ParamsFile]:
    from synapse_runtime.errors import ConfigError
    from synapse_runtime.plugins import yaml_reader

    try:
        document = yaml_reader.parse(text, path)
    except ConfigError as error:
        raise usage_error(str(error), option) from None
    return document.data, ParamsFile(path, document.texts(), document.line)


def _parsed_toml(text: str, option: str, path: Path) -> Any:
    import tomllib

    try:
        return _without_dates(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise usage_error(f"{path}: invalid TOML: {error}", option) from None


def _without_dates(value: Any) -> Any:
    """Return a value of a TOML file with dates and times as text, which JSON would have, and which models accept."""
    if isinstance(value, dict):
        return {key: _without_dates(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_dates(part) for part in value]
    return value if isinstance(value, str | int | float) else value.isoformat()

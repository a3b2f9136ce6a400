"""An action's params from the command line: `--params` at once, `--param` one by one, typed by the params model."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from synapse_runtime.cli.usage_error import usage_error
from synapse_runtime.errors import nearest

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

INFER_PATH = "/"


@dataclass(frozen=True)
class GivenParams:
    """What a command line says of an action's params.

    Attributes:
        whole: What `--params` gave.
        pairs: Each `--param`, as key and text.
        input: What `--input` gave, in a list of one; empty where it was not given.
        infer_path: What `--infer-path` gave.
    """

    whole: dict[str, Any] = field(default_factory=dict)
    pairs: Sequence[tuple[str, str]] = ()
    input: Sequence[Any] = ()
    infer_path: str | None = None

    @property
    def needs_model(self) -> bool:
        """Whether these can only be read by the action's params model."""
        return bool(self.pairs or self.input or self.infer_path is not None)

    def for_action(self, name: str, model: type[BaseModel] | None) -> dict[str, Any]:
        """Return the action's params; `--param` wins over `--params`.

        Args:
            name: The action's name.
            model: Its params model, which decides what the text of a `--param` means, and what names there are.
                Without one a text is JSON if it can be, else itself.

        Raises:
            typer.BadParameter: The model has no such param; suggests the nearest.
        """
        if not self.needs_model:
            return dict(self.whole)
        from pydantic import RootModel

        kind: Any = Any if model is None or issubclass(model, RootModel) else model
        params = dict(self.whole)
        if self.input:
            _put(params, _Place.of("input", kind, name, "--input"), self.input[0])
        infer_path = self.infer_path
        if infer_path is None and self.input and _requires(kind, "infer_path"):
            infer_path = INFER_PATH
        if infer_path is not None:
            # The platform calls it `path`.
            key = "infer_path" if _field(kind, "path") is None or _field(kind, "infer_path") else "path"
            _put(params, _Place.of(key, kind, name, "--infer-path"), infer_path)
        for key, text in self.pairs:
            place = _Place.of(key, kind, name, "--param")
            _put(params, place, _value(text, place.kind))
        return params


def read_params(text: str) -> dict[str, Any]:
    """Return the object that `--params` gives: as JSON, in a file (`@params.json`), or on standard input (`-`).

    Raises:
        typer.BadParameter: It is none of these; shows where the JSON is broken.

    Example:
        >>> read_params('{"epochs": 5}')
        {'epochs': 5}
    """
    value = read_json(text, "--params")
    if not isinstance(value, dict):
        raise usage_error(
            f"a JSON object is wanted, such as '{{\"epochs\": 5}}', not {type(value).__name__}",
            "--params",
        )
    return value


def read_json(text: str, option: str) -> Any:
    """Return the value that an option gives: as JSON, in a file of JSON, YAML or TOML (`@file`), or on stdin (`-`).

    Raises:
        typer.BadParameter: It is none of these; shows where the JSON is broken.
    """
    if text == "-":
        return _parsed(sys.stdin.read(), option, "standard input: ")
    if not text.startswith("@"):
        return _parsed(text, option, "")
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
        return _parsed_toml(content, option, path)
    return _parsed(content, option, f"{path}: ")


def read_pairs(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Return key and text of each `--param`.

    Raises:
        typer.BadParameter: One is not `key=value`.

    Example:
        >>> read_pairs(["epochs=5", "note=a=b", "optimizer.lr=0.1"])
        [('epochs', '5'), ('note', 'a=b'), ('optimizer.lr', '0.1')]
    """
    pairs = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise usage_error(f"key=value is wanted, such as epochs=5, not {text!r}", "--param")
        pairs.append((key, value))
    return pairs


def accepted_names(model: type[BaseModel], name: str) -> list[str]:
    """Return the names by which a model takes one of its fields: its aliases, or the field's own name.

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
    """Return the models that a type is, or may be: `Adam | SGD | None` may be two."""
    from pydantic import BaseModel

    origin = get_origin(kind)
    if origin is Annotated:
        return models_in(get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return [model for part in get_args(kind) for model in models_in(part)]
    return [kind] if isinstance(kind, type) and issubclass(kind, BaseModel) else []


@dataclass(frozen=True)
class _Place:
    """Where a param goes: the keys that lead there, and the type of what is wanted; `Any` where nothing says."""

    keys: tuple[str, ...]
    kind: Any
    option: str

    @classmethod
    def of(cls, key: str, kind: Any, action: str, option: str) -> _Place:
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
    return f"{where} has no param {name!r}.{hint} There are: {', '.join(known) or 'none'}."


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
    """Return the type of what a mapping holds."""
    if get_origin(kind) is Annotated:
        return _inside(get_args(kind)[0], action, keys, option)
    if get_origin(kind) in (Union, types.UnionType):
        mappings = [part for part in get_args(kind) if _is_mapping(part)]
        kind = mappings[0] if mappings else kind
    if not keys or kind is Any or kind is object or _is_mapping(kind):
        return (*get_args(kind), Any, Any)[1] if get_args(kind) else Any
    raise usage_error(
        f"{'.'.join(keys)} of {action} has no keys of its own: give it whole, as --param {'.'.join(keys)}=VALUE",
        option,
    )


def _is_mapping(kind: Any) -> bool:
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _put(params: dict[str, Any], place: _Place, value: Any) -> None:
    inner = params
    for key in place.keys[:-1]:
        held = inner.get(key)
        if held is not None and not isinstance(held, dict):
            raise usage_error(
                f"{'.'.join(place.keys)} does not go with --params, where {key!r} is a {type(held).__name__}",
                place.option,
            )
        inner[key] = dict(held or {})
        inner = inner[key]
    inner[place.keys[-1]] = value


def _value(text: str, kind: Any) -> Any:
    """Return what a text means where a value of this type is wanted: JSON, unless only the text itself fits."""
    import json

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if kind is Any or not _fits(text, kind):
        return value
    return text if isinstance(value, str) or not _fits(value, kind) else value


def _fits(value: Any, kind: Any) -> bool:
    """Tell whether pydantic takes a value for one of this type."""
    from pydantic import ConfigDict, create_model

    try:
        # A model around the type takes any type that a field may have.
        model = create_model("_Fits", __config__=ConfigDict(arbitrary_types_allowed=True), value=(kind, ...))
        model.model_validate({"value": value})
    except Exception:  # noqa: BLE001 - validators of the author's may raise anything
        return False
    return True


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
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, or too many brackets
        raise usage_error(f"{where}JSON that is too much: {error}", option) from None


def _parsed_yaml(text: str, option: str, path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        problem = getattr(error, "problem", None) or str(error)
        raise usage_error(f"{path}{line}: invalid YAML: {problem}", option) from None


def _parsed_toml(text: str, option: str, path: Path) -> Any:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise usage_error(f"{path}: invalid TOML: {error}", option) from None

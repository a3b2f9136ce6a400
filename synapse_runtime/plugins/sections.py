"""Sections of a config file, validated by pydantic-core as pydantic models are.

They are not pydantic models, because building model classes would double the time of a short run of an action.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, NamedTuple, Self

from pydantic_core import SchemaValidator
from pydantic_core import core_schema as kinds

TEXT = kinds.str_schema()
TEXT_OR_NONE = kinds.nullable_schema(TEXT)
ANYTHING = kinds.any_schema()
MAPPING = kinds.dict_schema(TEXT, ANYTHING)
TEXTS = kinds.list_schema(TEXT)

REQUIRED: Any = object()


class Field(NamedTuple):
    """A field of a section.

    Attributes:
        kind: The schema of its values, for pydantic-core.
        default: Its value if it is not given; if this is a type, each section gets a new instance.
        also: An alias in files.
        is_secret: Whether its value must not be shown.
    """

    kind: kinds.CoreSchema
    default: Any = REQUIRED
    also: str | None = None
    is_secret: bool = False


class Section:
    """A section of the config file. Fields without a value are treated as absent; unknown ones are kept.

    It has the attributes and methods of a pydantic model that are needed here. The constructor does not validate its
    values; `validator` does.

    Attributes:
        model_fields: The fields, by name.
        model_extra: Unknown fields that were given.
        model_fields_set: The names of the fields that were given.
    """

    model_fields: ClassVar[Mapping[str, Field]] = {}
    model_extra: dict[str, Any]
    model_fields_set: set[str]

    def __init__(self, /, **values: Any) -> None:
        for name, field in self.model_fields.items():
            if name not in values and field.default is REQUIRED:
                raise TypeError(f"{type(self).__name__} needs {name!r}")
            setattr(self, name, values[name] if name in values else _default(field))
        self.model_extra = {name: value for name, value in values.items() if name not in self.model_fields}
        self.model_fields_set = {name for name in values if name in self.model_fields}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._values() == other._values()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = [f"{name}={value!r}" for name, value in self._values().items() if not self._is_secret(name)]
        return f"{type(self).__name__}({', '.join(shown)})"

    def model_dump(
        self,
        *,
        include: Collection[str] | None = None,
        exclude: Collection[str] = (),
        exclude_none: bool = False,
        exclude_defaults: bool = False,
    ) -> dict[str, Any]:
        """Return the values as plain data.

        Args:
            include: Include only these fields.
            exclude: Leave out these fields.
            exclude_none: Leave out fields that are None.
            exclude_defaults: Leave out fields that equal their default.
        """
        settings: Any = {"exclude_none": exclude_none, "exclude_defaults": exclude_defaults}
        plain: dict[str, Any] = {}
        for name, value in self._values().items():
            if name in exclude or (include is not None and name not in include) or (exclude_none and value is None):
                continue
            if exclude_defaults and name in self.model_fields and value == _default(self.model_fields[name]):
                continue
            plain[name] = _plain(value, settings)
        return plain

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.model_fields} | self.model_extra

    def _is_secret(self, name: str) -> bool:
        field = self.model_fields.get(name)
        return field is not None and field.is_secret

    @classmethod
    def kind(cls) -> kinds.CoreSchema:
        """Return the schema of this section, for a field of this type."""
        fields = {}
        for name, field in cls.model_fields.items():
            names: list[list[str | int]] = [[name], [field.also or name]]
            is_required = field.default is REQUIRED
            fields[name] = kinds.typed_dict_field(field.kind, required=is_required, validation_alias=names)
        given = kinds.typed_dict_schema(fields, extra_behavior="allow")
        made = kinds.no_info_after_validator_function(cls._of, given)
        return kinds.no_info_before_validator_function(cls._without_empty, made)

    @classmethod
    def validator(cls) -> SchemaValidator:
        """Return a validator that turns a mapping into a section; its errors show no values, which may be secrets."""
        return SchemaValidator(cls.kind(), kinds.CoreConfig(hide_input_in_errors=True))

    @classmethod
    def _of(cls, values: dict[str, Any]) -> Self:
        return cls(**values)

    @classmethod
    def _without_empty(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: item for key, item in value.items() if item is not None or key not in cls.model_fields}


def checked_after(check: Callable[[Any], Any], kind: kinds.CoreSchema) -> kinds.CoreSchema:
    """Return a schema whose values are checked, or changed, by a function after validation."""
    return kinds.no_info_after_validator_function(check, kind)


def changed_before(change: Callable[[Any], Any], kind: kinds.CoreSchema) -> kinds.CoreSchema:
    """Return a schema whose values are changed by a function before validation."""
    return kinds.no_info_before_validator_function(change, kind)


def _default(field: Field) -> Any:
    return field.default() if isinstance(field.default, type) else field.default


def _plain(value: Any, settings: Any) -> Any:
    if isinstance(value, Section):
        return value.model_dump(**settings)
    if isinstance(value, dict):
        return {key: _plain(item, settings) for key, item in value.items()}
    return [_plain(item, settings) for item in value] if isinstance(value, list) else value

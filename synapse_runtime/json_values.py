"""Values as plain JSON, and back: nothing is unpickled, nothing is imported.

Values that JSON does not have are tagged, such as `{"$tuple": [1, 2]}`, `{"$float": "nan"}` or
`{"$type": "plugin.train:TrainResult", "fields": {…}}`. A tagged value is rebuilt if its type is one of a fixed list, or
a pydantic model, dataclass, named tuple or enum of the plugin or of the standard library whose module is already
imported; otherwise it stays a dict. Rebuilding validates nothing again, so the value is as it was.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import decimal
import enum
import math
import os
import pathlib
import sys
import uuid
import zoneinfo
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from pydantic import BaseModel

from synapse_runtime import serialization

# Values nested deeper than this are left out: JSON parsers have limits too.
_MAX_DEPTH = 100
_MAX_DECODED_DEPTH = 2 * _MAX_DEPTH
# A value that occurs more than once is written each time, but not more often than this in all.
_MAX_REPEATED = 100_000
_MAX_TEXT = 4000
# Many JSON parsers round integers of more than 53 bits, and Python's refuses very long ones.
_MAX_INTEGER_BITS = 64


def encode_value(value: Any) -> tuple[Any, bool]:
    """Return a value as JSON data, and whether decoding it gives exactly this value.

    It does for builtin types that contain nothing more than once.

    Example:
        >>> encode_value({"path": pathlib.Path("w.npz"), 1: b"abc"})
        ({'$dict': [['path', {'$type': 'pathlib:Path', 'value': 'w.npz'}], [1, {'$bytes': 'YWJj'}]]}, False)
    """
    encoder = Encoder()
    return encoder.encode(value), encoder.is_exact


def decode_value(data: Any, import_root: str | None = None) -> Any:
    """Return the value of JSON data; `import_root` as for `RunRecord.to_run`."""
    return Decoder(import_root).decode(data)


# Types of the standard library by name: how an instance is written as a builtin value, and how it is read.
_STANDARD: Final[dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]]] = {
    "pathlib:Path": (type(pathlib.Path()), str, pathlib.Path),
    "pathlib:PurePosixPath": (pathlib.PurePosixPath, str, pathlib.PurePosixPath),
    "pathlib:PureWindowsPath": (pathlib.PureWindowsPath, str, pathlib.PureWindowsPath),
    "datetime:datetime": (dt.datetime, lambda value: _encode_time(value), lambda data: _decode_time(dt.datetime, data)),
    "datetime:date": (dt.date, dt.date.isoformat, dt.date.fromisoformat),
    "datetime:time": (dt.time, lambda value: _encode_time(value), lambda data: _decode_time(dt.time, data)),
    "datetime:timedelta": (
        dt.timedelta,
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda parts: dt.timedelta(*parts),
    ),
    "decimal:Decimal": (decimal.Decimal, str, decimal.Decimal),
    "uuid:UUID": (uuid.UUID, str, uuid.UUID),
    "builtins:complex": (complex, repr, complex),
    "builtins:range": (range, lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
    "builtins:bytearray": (bytearray, bytes, bytearray),
    "collections:OrderedDict": (OrderedDict, dict, OrderedDict),
    "collections:Counter": (Counter, dict, Counter),
    "collections:deque": (deque, list, deque),
}


def _encode_time(value: dt.datetime | dt.time) -> Any:
    """Return a time as ISO 8601; with a zone or `fold` that has not: that, and these."""
    text, zone = value.isoformat(), value.tzinfo
    named: dict[str, Any] = {}
    if isinstance(zone, zoneinfo.ZoneInfo) and zone.key is not None:
        named["zone"] = zone.key
    elif type(zone) is dt.timezone:
        name = zone.tzname(None)
        if name != dt.timezone(zone.utcoffset(None)).tzname(None):
            named["name"] = name
    if value.fold:
        named["fold"] = 1
    return {"iso": text, **named} if named else text


def _decode_time(cls: type[Any], data: Any) -> Any:
    if isinstance(data, str):
        return cls.fromisoformat(data)
    value = cls.fromisoformat(data["iso"])
    if "zone" in data:
        value = value.replace(tzinfo=zoneinfo.ZoneInfo(data["zone"]))
    elif "name" in data:
        value = value.replace(tzinfo=dt.timezone(value.utcoffset(), data["name"]))
    return value.replace(fold=data.get("fold", 0))


class Encoder:
    """Encodes one value.

    Attributes:
        is_exact: Whether decoding gives exactly this value.
    """

    def __init__(self) -> None:
        self.is_exact = True
        self._above: set[int] = set()
        self._seen: dict[int, Any] = {}  # keeps the values alive, so that no other gets the same id
        self._repeated = 0

    def encode(self, value: Any) -> Any:
        """Return the value as JSON data."""
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            return value if _is_unicode(value) else {"$text": base64.b64encode(_surrogates_kept(value)).decode()}
        if kind is int:
            return value if value.bit_length() <= _MAX_INTEGER_BITS else {"$int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if kind is bytes:
            return {"$bytes": base64.b64encode(value).decode()}
        parts_of = _BUILTIN_CONTAINERS.get(kind)
        if parts_of is None:
            self.is_exact = False
            parts_of = Encoder._typed
        return self._inside(value, parts_of)

    def _inside(self, value: Any, encode: Callable[[Encoder, Any], Any]) -> Any:
        """Encode a value that may contain others."""
        key = id(value)
        if key in self._above or len(self._above) >= _MAX_DEPTH:
            self.is_exact = False
            return {"$omitted": "it contains itself, or is nested too deeply"}
        if key in self._seen:
            self.is_exact = False
            self._repeated += 1
            if self._repeated > _MAX_REPEATED:
                return {"$omitted": "it occurs too often"}
        self._seen[key] = value
        self._above.add(key)
        try:
            return encode(self, value)
        finally:
            self._above.discard(key)

    def items(self, value: Iterable[Any]) -> list[Any]:
        """Return the items of a list, tuple or set as JSON data."""
        return [self.encode(item) for item in [*value]]

    def mapping(self, value: Mapping[Any, Any]) -> Any:
        """Return a dict as JSON data."""
        pairs = [*value.items()]
        if all(type(key) is str and not key.startswith("$") and _is_unicode(key) for key, _ in pairs):
            return {key: self.encode(item) for key, item in pairs}
        return {"$dict": [[self.encode(key), self.encode(item)] for key, item in pairs]}

    def _typed(self, value: Any) -> Any:
        kind: Any = type(value)
        for name, (cls, write, _) in _STANDARD.items():
            if cls is kind:
                return {"$type": name, "value": self.encode(write(value))}
        tag: dict[str, Any] = {"$type": f"{kind.__module__}:{kind.__qualname__}"}
        if isinstance(value, enum.Enum):
            name = value.name
            return tag | ({"name": name} if name in kind.__members__ else {"value": self.encode(value.value)})
        fields = _fields_of(value)
        if fields is not None:
            tag["fields"] = self.mapping(fields)
            if isinstance(value, BaseModel) and value.model_fields_set != type(value).model_fields.keys():
                tag["set"] = sorted(value.model_fields_set)
            return tag
        base: Any
        for base in (dict, list, tuple, set, frozenset, str, bytes, int, float):
            if isinstance(value, base):
                return tag | {"value": self.encode(base(value))}
        return tag | {"repr": _shortened(serialization.safe_repr(value))}


_BUILTIN_CONTAINERS: Final[dict[type, Callable[[Encoder, Any], Any]]] = {
    list: Encoder.items,
    dict: Encoder.mapping,
    tuple: lambda encoder, value: {"$tuple": encoder.items(value)},
    set: lambda encoder, value: {"$set": encoder.items(value)},
    frozenset: lambda encoder, value: {"$frozenset": encoder.items(value)},
}


def not_decoded(value: Any) -> str | None:
    """Return what a decoded value contains that could not be rebuilt, or None: the name of its type, or what it was.

    Example:
        >>> not_decoded([{"$type": "numpy:ndarray", "repr": "array([1])"}])
        'a numpy:ndarray'
    """
    stack = [value]
    while stack:
        value = stack.pop()
        if type(value) is dict:
            if isinstance(value.get("$type"), str):
                return f"a {value['$type']}"
            if "$omitted" in value:
                return f"a value that was left out: {value['$omitted']}"
            stack.extend(value.values())
        elif type(value) in (list, tuple, set, frozenset):
            stack.extend(value)
    return None


def _is_unicode(text: str) -> bool:
    """Return whether a text has no surrogates, which JSON parsers refuse."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _surrogates_kept(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _fields_of(value: Any) -> dict[str, Any] | None:
    """Return the fields of a pydantic model or a dataclass; None for other values."""
    if isinstance(value, BaseModel):
        return {**vars(value), **(value.__pydantic_extra__ or {})}
    if dataclasses.is_dataclass(value):
        names = (field.name for field in dataclasses.fields(value))
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    return None


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT // 2]}...{text[-_MAX_TEXT // 2 :]}"


class Decoder:
    """Decodes values and exceptions.

    Args:
        import_root: The directory of the plugin's modules, if there is a plugin.
    """

    def __init__(self, import_root: str | None) -> None:
        self._depth = 0
        self._root = None if import_root is None else os.path.join(os.path.realpath(import_root), "")

    def decode(self, data: Any) -> Any:
        """Return the value of JSON data."""
        if not isinstance(data, list | dict) or self._depth >= _MAX_DECODED_DEPTH:
            return data
        self._depth += 1
        try:
            if isinstance(data, list):
                return [self.decode(item) for item in data]
            # What is tagged but cannot be rebuilt stays a dict.
            with suppress(ValueError, TypeError, ArithmeticError, LookupError, AttributeError):
                if "$type" in data:
                    return self._typed(data)
                if len(data) == 1 and (tag := next(iter(data))) in _UNTYPED:
                    return _UNTYPED[tag](self, data[tag])
            return {key: self.decode(item) for key, item in data.items()}
        finally:
            self._depth -= 1

    def _typed(self, data: dict[str, Any]) -> Any:
        name = data["$type"]
        if name in _STANDARD:
            return _STANDARD[name][2](self.decode(data["value"]))
        module, _, qualname = name.partition(":")
        cls = self.find_class(module, qualname)
        if cls is None:
            raise LookupError(name)
        if issubclass(cls, tuple) and "value" in data:
            return _rebuild_named_tuple(cls, self.decode(data["value"]))
        if issubclass(cls, enum.Enum):
            return cls.__members__[data["name"]] if "name" in data else cls(self.decode(data["value"]))
        return _rebuild(cls, {key: self.decode(item) for key, item in data["fields"].items()}, data.get("set"))

    def find_class(self, module: str, qualname: str) -> type | None:
        """Return a class of the standard library, this package or the plugin, if its module is already imported."""
        outcome = _test_outcome(module, qualname)
        if outcome is not None:
            return outcome
        found: Any = sys.modules.get(module)
        if found is None or not self._may_use(module, found):
            return None
        for name in qualname.split("."):
            found = vars(found).get(name)  # not `getattr`, which may run a module's or metaclass's code
            if not isinstance(found, type):
                return None
        return found if (found.__module__, found.__qualname__) == (module, qualname) else None

    def _may_use(self, name: str, module: Any) -> bool:
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top == __package__:
            return True
        file = vars(module).get("__file__")
        if self._root is None or not isinstance(file, str):
            return False
        path = os.path.realpath(file)
        return path.startswith(self._root) and "site-packages" not in path[len(self._root) :].split(os.sep)


def _test_outcome(module: str, qualname: str) -> type | None:
    """Return the class of what `pytest.skip`, `fail`, `xfail` or `exit` raise, if it has this name."""
    pytest: Any = sys.modules.get("pytest")
    if pytest is None:
        return None
    classes = (pytest.skip.Exception, pytest.fail.Exception, pytest.xfail.Exception, pytest.exit.Exception)
    return next((cls for cls in classes if (cls.__module__, cls.__qualname__) == (module, qualname)), None)


def _rebuild_named_tuple(cls: type[tuple[Any, ...]], values: Any) -> Any:
    """Create an instance of a named tuple, without calling code of its class."""
    if not isinstance(values, tuple) or len(getattr(cls, "_fields", ())) != len(values):
        raise ValueError(f"{cls.__qualname__} is not a named tuple of these values")
    return tuple.__new__(cls, values)


def _rebuild(cls: type, fields: dict[str, Any], fields_set: list[str] | None) -> Any:
    """Create an instance of a pydantic model or a dataclass with these fields, without validating them again.

    Args:
        cls: The class.
        fields: The fields.
        fields_set: Those of a model that were given when it was created; all by default.
    """
    if issubclass(cls, BaseModel):
        missing = cls.model_fields.keys() - fields.keys()
        if missing or (fields.keys() - cls.model_fields.keys() and cls.model_config.get("extra") != "allow"):
            raise ValueError(f"not the fields of {cls.__qualname__}")
        return cls.model_construct(None if fields_set is None else {*fields_set}, **fields)
    if not dataclasses.is_dataclass(cls):
        raise ValueError(f"{cls.__qualname__} is not a model, dataclass or enum")
    names = {field.name for field in dataclasses.fields(cls)}
    if names != fields.keys():
        raise ValueError(f"not the fields of {cls.__qualname__}")
    instance = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(instance, name, value)  # also of a frozen one
    return instance


_UNTYPED: Final[dict[str, Callable[[Decoder, Any], Any]]] = {
    "$tuple": lambda decoder, items: tuple(map(decoder.decode, items)),
    "$set": lambda decoder, items: set(map(decoder.decode, items)),
    "$frozenset": lambda decoder, items: frozenset(map(decoder.decode, items)),
    "$dict": lambda decoder, pairs: {decoder.decode(key): decoder.decode(value) for key, value in pairs},
    "$text": lambda _, text: base64.b64decode(text, validate=True).decode("utf-8", "surrogatepass"),
    "$bytes": lambda _, text: base64.b64decode(text, validate=True),
    "$float": lambda _, text: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[text],
    "$int": lambda _, text: int(text, 16),
}

"""The patches of a test as JSON, for a backend, and the calls that its mocks have recorded there.

A backend unpickles nothing. So it gets constants, and descriptions of mocks, from which it creates mocks of its own.
What those have recorded is repeated here: the test's own mock is called in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import pkgutil
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from unittest import mock

from synapse_runtime.core.patches import (
    EVERY_KEY,
    MISSING,
    Patch,
    PatchesOfCall,
    Replacement,
    active_patches,
    applied,
    is_at,
)
from synapse_runtime.errors import NotSupportedRemotely, ResultNotInJson
from synapse_runtime.executors.patch_transfer import is_left_out, name_of, path_of_container, places_of_originals
from synapse_runtime.executors.remote.params import first_lost
from synapse_runtime.json_values import decode_value, encode_value
from synapse_runtime.serialization import is_pickled_by_value

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines

_MOCKS: Final = (
    mock.PropertyMock,
    mock.AsyncMock,
    mock.MagicMock,
    mock.Mock,
    mock.NonCallableMagicMock,
    mock.NonCallableMock,
)


@dataclass(frozen=True)
class JsonPatches:
    """The patches of a call.

    Attributes:
        data: How they are sent.
        mocks: The names of the patches that are mocks, and the mocks.
    """

    data: list[dict[str, Any]]
    mocks: Sequence[tuple[str, Any]]

    def repeat_calls(self, recorded: Sequence[Sequence[Any]], import_root: str | None) -> None:
        """Call the mocks here as the action has called those of the backend.

        Args:
            recorded: The answer of `ReceivedJsonPatches.recorded`.
            import_root: The directory of the plugin's modules, which arguments may be of.

        Raises:
            ResultNotInJson: JSON does not have an argument of a call.
        """
        for (name, each), calls in zip(self.mocks, recorded, strict=False):  # none, if they could not be applied
            for called, arguments, keywords in calls:
                if arguments is None:
                    raise ResultNotInJson(f"{name}: the mock was called with {keywords}, which JSON does not have")
                args, kwargs = decode_value(arguments, import_root), decode_value(keywords, import_root)
                with contextlib.suppress(Exception, SystemExit, KeyboardInterrupt):  # of its side effects
                    _call(_attribute(each, called), args, kwargs)


def encode_patches_as_json(name: str, import_root: str | None) -> JsonPatches | None:
    """Return the patches that are active in this process; None if there are none.

    Args:
        name: The action's name.
        import_root: The directory of the plugin's modules.

    Raises:
        NotSupportedRemotely: JSON cannot carry one.
        PatchNotSerializable: No worker could find what one replaces.
    """
    patches = [patch for patch in active_patches() if not is_left_out(patch)]
    if not patches:
        return None
    mocks: list[tuple[str, Any]] = []
    data = []
    places = places_of_originals(patches)
    for patch in patches:
        at = path_of_container(patch, places)
        encoder = _Encoder(name, patch, at, import_root)
        key = {"every_key": True} if patch.key is EVERY_KEY else {"key": encoder.plain(patch.key)}
        entry = {"at": at, **key, "is_item": patch.is_item}
        value = patch.value()
        if _mock_of(value) is not None:
            mocks.append((name_of(patch), value))
        data.append({**entry, "value": encoder.encode(value)})
    return JsonPatches(data, mocks)


class _Encoder:
    """Writes the replacement of a patch as JSON.

    Args:
        name: The action's name.
        patch: The patch.
        at: The path of its container.
        import_root: The directory of the plugin's modules.
    """

    def __init__(self, name: str, patch: Patch, at: str, import_root: str | None) -> None:
        self._action = name
        self._patch = patch
        self._at = at
        self._root = import_root

    def encode(self, value: Any, *, in_autospec: bool = False) -> dict[str, Any]:
        """Return a value with its kind.

        Args:
            value: The value.
            in_autospec: Whether it is part of a mock that autospec creates as a whole.
        """
        if value is MISSING:
            return {"kind": "missing"}
        found = _mock_of(value)
        if found is not None:
            return self._mock(value, found, in_autospec=in_autospec)
        if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
            path = f"{value.__module__}:{value.__qualname__}"
            if is_at(path, value) and not is_pickled_by_value(str(value.__module__)) and not self._is_own_name(path):
                return {"kind": "name", "path": path}
            raise self._refusal(value, f"the function or class {value.__qualname__}")
        if isinstance(value, BaseException):
            return self._error(value)
        return {"kind": "value", "value": self.plain(value)}

    def _is_own_name(self, path: str) -> bool:
        """Return whether a path is that of what the patch replaces."""
        return path == f"{self._at}.{self._patch.key}".replace(":.", ":")

    def plain(self, value: Any) -> Any:
        """Return plain data."""
        lost = first_lost(value)
        if lost is not None:
            raise self._refusal(lost, f"{type(lost).__name__}")
        return encode_value(value)[0]

    def _error(self, error: BaseException) -> dict[str, Any]:
        cls = type(error)
        if cls.__module__.partition(".")[0] not in sys.stdlib_module_names or first_lost(error.args) is not None:
            raise self._refusal(error, f"an exception of {cls.__module__}")
        return {"kind": "error", "path": f"{cls.__module__}:{cls.__qualname__}", "args": encode_value(error.args)[0]}

    def _mock(self, value: Any, found: Any, *, in_autospec: bool) -> dict[str, Any]:
        cls = next((each for each in _MOCKS if isinstance(found, each)), None)
        attributes = vars(found)
        if cls is None or attributes.get("_mock_wraps") is not None or not _is_of_mock(type(found)):
            raise self._refusal(value, "a mock that is of a class of its own, or wraps an object")
        described: dict[str, Any] = {"kind": "mock", "class": cls.__name__, "name": attributes["_mock_name"]}
        spec = None if in_autospec else self._spec(found)
        if spec is not None:
            is_autospec = found is not value or any(
                vars(child).get("_spec_signature") is not None for child in _children(found).values()
            )
            described |= {"spec": spec, "is_autospec": is_autospec}
            in_autospec = is_autospec
        effect = found.side_effect if isinstance(found, mock.CallableMixin) else None
        if effect is not None:
            described["side_effect"] = self._side_effect(effect)
        delegate = attributes.get("_mock_delegate")  # the function, of a mock of autospec
        returned = attributes.get("_mock_return_value", mock.DEFAULT) if delegate is None else delegate.return_value
        if returned is not mock.DEFAULT:
            described["return_value"] = self.encode(returned, in_autospec=in_autospec)
        children = _children(found)
        described["children"] = {
            name: self.encode(child, in_autospec=in_autospec)
            for name, child in children.items()
            if _is_configured(child)
        }
        plain = {name: each for name, each in attributes.items() if _is_users_attribute(name) and name not in children}
        described["attributes"] = {name: self.encode(each) for name, each in plain.items()}
        return described

    def _spec(self, found: Any) -> str | None:
        spec = vars(found).get("_spec_class")
        if spec is None:
            if vars(found).get("_mock_methods") is not None:
                raise self._refusal(found, "a mock with a list of names as its spec")
            return None
        original = getattr(self._patch.original, "__func__", self._patch.original)
        target = original if isinstance(original, types.FunctionType) and spec is types.FunctionType else spec
        path = f"{target.__module__}:{target.__qualname__}"
        if target is not original and not is_at(path, target):
            raise self._refusal(found, "a mock whose spec cannot be imported")
        return path

    def _side_effect(self, effect: Any) -> dict[str, Any]:
        if isinstance(effect, type) and issubclass(effect, BaseException):
            return {"raises": self._error(effect())}
        if isinstance(effect, BaseException):
            return {"raises": self._error(effect)}
        if not callable(effect):
            try:
                return {"values": [self.encode(each) for each in copy.copy(effect)]}
            except TypeError:
                raise self._refusal(effect, "a generator") from None
        raise self._refusal(effect, "a function")

    def _refusal(self, value: Any, what: str) -> NotSupportedRemotely:
        return NotSupportedRemotely(
            f"{self._action}: the patch of {name_of(self._patch)} cannot be sent to a backend: JSON does not have "
            f"{what}; use a constant, or a mock with plain values and exceptions of Python"
        )


class ReceivedJsonPatches(PatchesOfCall):
    """The patches of a call, at the backend.

    Args:
        data: How they were sent.
        import_root: The directory of the plugin's modules.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], import_root: str | None) -> None:
        self._data = data
        self._root = import_root
        self._mocks: list[Any] = []

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Apply the patches during the block."""
        replacements = []
        for entry in self._data:
            container = pkgutil.resolve_name(entry["at"])
            key = EVERY_KEY if entry.get("every_key") else decode_value(entry["key"], self._root)
            value = self._decode(entry["value"])
            if entry["value"]["kind"] == "mock":
                self._mocks.append(value)
            replacements.append(Replacement(container, key, entry["is_item"], value))
        with applied(replacements):
            yield

    def recorded(self) -> list[list[tuple[str, Any, Any]]]:
        """Return the calls of each mock: name, arguments and keyword arguments as JSON data."""
        return [[_as_json(call) for call in each.mock_calls] for each in self._mocks]

    def _decode(self, data: Mapping[str, Any]) -> Any:
        kind = data["kind"]
        if kind == "missing":
            return MISSING
        if kind == "name":
            return pkgutil.resolve_name(data["path"])
        if kind == "error":
            cls = pkgutil.resolve_name(data["path"])
            if not issubclass(cls, BaseException):
                raise TypeError(f"{data['path']} is not an exception")
            return cls(*decode_value(data["args"], self._root))
        return self._new_mock(data) if kind == "mock" else decode_value(data["value"], self._root)

    def _new_mock(self, data: Mapping[str, Any]) -> Any:
        if data.get("is_autospec"):
            made = mock.create_autospec(pkgutil.resolve_name(data["spec"]))
        else:
            cls = next(each for each in _MOCKS if each.__name__ == data["class"])
            spec = pkgutil.resolve_name(data["spec"]) if data.get("spec") else None
            made = cls(name=data["name"]) if spec is None else cls(spec, name=data["name"])
        self._configure(made, data)
        return made

    def _configure(self, made: Any, data: Mapping[str, Any]) -> None:
        returned = data.get("return_value")
        if returned is not None and returned["kind"] == "mock":
            self._configure(made.return_value, returned)
        elif returned is not None:
            made.return_value = self._decode(returned)
        effect = data.get("side_effect")
        if effect is not None:
            raises = effect.get("raises")
            made.side_effect = (
                self._decode(raises) if raises is not None else [self._decode(each) for each in effect["values"]]
            )
        for name, child in data["children"].items():
            self._configure(getattr(made, name), child)
        for name, value in data["attributes"].items():
            setattr(made, name, self._decode(value))


def _mock_of(value: Any) -> Any:
    """Return a mock, or that of a function of autospec; None if it is neither."""
    if issubclass(type(value), mock.NonCallableMock):
        return value
    found = getattr(value, "mock", None) if isinstance(value, types.FunctionType) else None
    return found if found is not None and issubclass(type(found), mock.NonCallableMock) else None


def _is_of_mock(cls: type[Any]) -> bool:
    """Return whether the class of a mock is derived only from those of `mock`, as it is for each mock."""
    return all(base.__module__ == mock.__name__ for base in cls.__bases__)


def _children(found: Any) -> dict[str, Any]:
    children: dict[str, Any] = vars(found)["_mock_children"]
    return {name: child for name, child in children.items() if name != "()" and _is_child(child)}


def _is_child(child: Any) -> bool:
    """Return whether this is a mock, and not one with which pytest-mock warns of its own use in a `with` statement."""
    found = _mock_of(child)
    if found is None:
        return False
    effect = vars(found).get("_mock_side_effect")
    return not str(getattr(effect, "__module__", "")).startswith("pytest_mock.")


def _is_configured(child: Any) -> bool:
    """Return whether a child mock does something else than one that is created when it is used."""
    found = _mock_of(child)
    attributes = vars(found)
    return (
        attributes.get("_mock_return_value", mock.DEFAULT) is not mock.DEFAULT
        or attributes.get("_mock_side_effect") is not None
        or any(map(_is_configured, _children(found).values()))
        or any(map(_is_users_attribute, attributes))
    )


def _is_users_attribute(name: str) -> bool:
    return not name.startswith(("_mock", "_spec", "_is_coroutine", "__")) and name != "method_calls"


def _as_json(call: Any) -> tuple[str, Any, Any]:
    name, args, kwargs = call
    for part in (args, kwargs):
        lost = first_lost(part)
        if lost is not None:
            return name, None, f"an object of {type(lost).__module__}.{type(lost).__qualname__}"
    return name, encode_value(args)[0], encode_value(kwargs)[0]


def _attribute(found: Any, path: str) -> Any:
    """Return the child of a mock that `mock.call` names, such as `get().json`."""
    for part in path.replace("()", ".()").split("."):
        if part == "()":
            found = found.return_value
        elif part:
            found = getattr(found, part)
    return found


def _call(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    answer = function(*args, **kwargs)
    if asyncio.iscoroutine(answer):
        with contextlib.suppress(StopIteration), contextlib.closing(answer):
            answer.send(None)

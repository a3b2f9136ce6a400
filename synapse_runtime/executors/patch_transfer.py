"""Send the patches of a test to a worker with its call, and bring back what the action has done to them.

A replacement goes by value, with everything that it refers to and that no worker can import. A mock is created anew in
the worker, as it is here: its configuration, its spec and what it has recorded. What the action changes in these
copies comes back afterwards: calls that mocks have recorded, items of lists and dicts, attributes, variables of
enclosing functions.
"""

from __future__ import annotations

import contextlib
import os
import pkgutil
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from synapse_runtime import class_copies, serialization
from synapse_runtime.core.patches import (
    MISSING,
    Patch,
    PatchesOfCall,
    Replacement,
    active_patches,
    applied,
    is_at,
    path_of,
)
from synapse_runtime.errors import PatchNotSerializable, safe_str
from synapse_runtime.executors.mock_pickling import MockPickler, is_mock
from synapse_runtime.executors.object_changes import Change, NotSent, Tracked, is_dunder, mutable_parts

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines

# Patches of these packages are about the tests, not about the action.
_STAY: Final = frozenset(("_pytest", "pluggy", "xdist", "execnet", "coverage", "unittest", "mock", "synapse_runtime"))
# Attributes of `sys` that a worker gets in another way, or that are its own.
_OWN_SYS_NAMES: Final = frozenset(("path", "meta_path", "path_hooks", "path_importer_cache", "modules"))


@dataclass(frozen=True)
class SentPatches:
    """The patches of a call.

    Attributes:
        data: How they are sent.
        objects: The objects here whose copies the action may change in the worker.
    """

    data: bytes
    objects: Sequence[Any]

    def apply_changes(self, changes: bytes) -> None:
        """Make the changes that a worker's copies have had to the objects here.

        Args:
            changes: The answer of `ReceivedPatches.changes`.
        """
        (found,) = serialization.loads_extended(changes, 1, _ChangeUnpickler, in_caller=True, objects=self.objects)
        for index, change in found.items():
            Tracked.of(self.objects[index]).apply(change)
        for mock in filter(is_mock, self.objects):
            for name, child in mock._mock_children.items():
                if is_dunder(name) and is_mock(child):  # the action has used the special method
                    setattr(type(mock), name, child)


def encode_patches() -> SentPatches | None:
    """Encode the patches that are active in this process; None if there are none.

    Raises:
        PatchNotSerializable: One cannot be sent.
    """
    patches = [patch for patch in active_patches() if not is_left_out(patch)]
    if not patches:
        return None
    originals, places = replaced_definitions(patches), places_of_originals(patches)
    entries = [(path_of_container(patch, places), patch.key, patch.is_item, patch.value()) for patch in patches]
    namesakes = _namesakes(patches)
    objects = mutable_parts([entry[-1] for entry in entries], originals, namesakes)
    encode = partial(serialization.dumps_extended, extension=_PatchPickler, originals=originals, namesakes=namesakes)
    data, problem = _tried(encode, [entries, objects])
    if data is not None:
        return SentPatches(data, objects)
    for patch, entry in zip(patches, entries, strict=True):
        _, reason = _tried(encode, [entry])
        if reason:
            raise _cannot_be_sent(patch, reason)
    raise PatchNotSerializable(f"the patches of this test cannot be sent to a worker: {problem}")


def _tried(encode: Callable[[list[Any]], bytes], values: list[Any]) -> tuple[bytes | None, str]:
    """Return values encoded; or None and why they cannot be."""
    try:
        return encode(values), ""
    except Exception as error:  # noqa: BLE001 - pickling runs users' code
        return None, safe_str(error) or type(error).__name__


class ReceivedPatches(PatchesOfCall):
    """The patches of a call, in the worker.

    Args:
        data: How they were sent.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._tracked: list[Tracked] = []
        self._before: list[Any] = []

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Apply the patches during the block."""
        entries, objects = serialization.loads_extended(self._data, 2, _PatchUnpickler)
        replacements = [
            Replacement(pkgutil.resolve_name(path), key, is_item, value) for path, key, is_item, value in entries
        ]
        self._tracked = [Tracked.of(each) for each in objects]
        self._before = [tracked.snapshot() for tracked in self._tracked]
        with applied(replacements):
            yield

    def changes(self) -> bytes:
        """Return what the action has changed in the objects that came with the patches; empty if it is nothing."""
        changed = {}
        for index, (tracked, before) in enumerate(zip(self._tracked, self._before, strict=True)):
            change = tracked.change_since(before)
            if change is not None:
                changed[index] = change
        if not changed:
            return b""
        known = {id(tracked.object): index for index, tracked in enumerate(self._tracked)}
        try:
            return serialization.dumps_extended([changed], _ChangePickler, known=known)
        except Exception:  # noqa: BLE001 - an argument of a call, or what the action has stored, cannot be pickled
            changed = {index: _sendable(change, known) for index, change in changed.items()}
            return serialization.dumps_extended([changed], _ChangePickler, known=known)


def _cannot_be_sent(patch: Patch, reason: str) -> PatchNotSerializable:
    return PatchNotSerializable(
        f"the patch of {name_of(patch)} cannot be sent to a worker: its replacement "
        f"{_short(serialization.safe_repr(patch.value()))}: {reason}. Replace it with a function, a mock or plain "
        "data; or set it up in the worker with a context manager: @pytest.mark.synapse(around=...)"
    )


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


def name_of(patch: Patch) -> str:
    """Return what to call a patch in messages."""
    container = patch.container
    name = getattr(container, "__qualname__", None) or getattr(container, "__name__", None)
    if isinstance(container, type):
        name = f"{container.__module__}.{container.__qualname__}"
    elif not isinstance(container, types.ModuleType):
        path = path_of(container)
        name = _short(serialization.safe_repr(container)) if path is None else path.replace(":", ".")
    return f"{name}[{patch.key!r}]" if patch.is_item else f"{name}.{patch.key}"


def is_left_out(patch: Patch) -> bool:
    """Return whether a patch is not meant for the action, or reaches it in another way."""
    container = patch.container
    if container is os.environ or container is getattr(os, "environb", None):
        return True  # the environment is sent as such
    if container is sys and patch.key in _OWN_SYS_NAMES:
        return True
    if is_mock(container):
        return True  # it is sent with what refers to it
    if isinstance(container, types.ModuleType):
        return _is_of_tests(container.__name__)
    if isinstance(container, type | types.FunctionType):
        return _is_of_tests(str(container.__module__)) or _is_local(container)
    cls = type(container)
    is_node = any(base.__module__.startswith("_pytest.") for base in cls.__mro__)
    return is_node or _is_of_tests(str(cls.__module__)) or _is_local(cls) or _is_variable_of_tests(container)


def _is_variable_of_tests(value: Any) -> bool:
    """Return whether an object is a variable of a module whose definitions go by value, and so goes with them."""
    modules = [sys.modules[name] for name in serialization.modules_pickled_by_value() if name in sys.modules]
    is_here = any(found is value for module in modules for found in [*vars(module).values()])
    return is_here and path_of(value) is None


def _is_of_tests(module: str) -> bool:
    """Return whether a module is one of pytest, of its plugins, or of the tests, which go by value."""
    top = module.partition(".")[0]
    return top in _STAY or top.startswith("pytest") or serialization.is_pickled_by_value(module)


def _is_local(owner: Any) -> bool:
    """Return whether a class or function is defined in a function, so that it is sent with what refers to it."""
    return "<locals>" in getattr(owner, "__qualname__", "")


def path_of_container(patch: Patch, places: Mapping[int, str]) -> str:
    """Return the path by which a worker finds the container of a patch: `module:name.name`.

    Args:
        patch: The patch.
        places: The answer of `places_of_originals`: a worker finds these before it applies the patches.

    Raises:
        PatchNotSerializable: It is reached from no module.
    """
    path = places.get(id(patch.container)) or path_of(patch.container)
    if path is None:
        raise PatchNotSerializable(
            f"the patch of {name_of(patch)} cannot be sent to a worker: no module has this "
            f"{type(patch.container).__qualname__}, so the worker cannot find its own. Patch a module or class, or "
            "pass the object to the action as a param"
        )
    return path


def places_of_originals(patches: Sequence[Patch]) -> dict[int, str]:
    """Return where a worker finds the objects that are replaced, such as a dict whose items are patched too, by id.

    Args:
        patches: The patches that are active.
    """
    places = replaced_definitions(patches)
    for patch in patches:
        container = None if patch.is_item else places.get(id(patch.container)) or path_of(patch.container)
        if container is not None and patch.original is not MISSING:
            places.setdefault(id(patch.original), f"{container}{'' if container.endswith(':') else '.'}{patch.key}")
    return places


def replaced_definitions(patches: Sequence[Patch]) -> dict[int, str]:
    """Return the functions and classes that are replaced where a worker would import them, with their paths, by id.

    A replacement may refer to them, as that of `mocker.spy` does: in the worker it refers to the worker's own.

    Args:
        patches: The patches that are active.
    """
    found: dict[int, str] = {}
    for patch in patches:
        original = getattr(patch.original, "__func__", patch.original)
        if isinstance(original, type | types.FunctionType):
            path = f"{original.__module__}:{original.__qualname__}"
            if not is_at(path, original):
                found[id(original)] = path
    return found


def _namesakes(patches: Sequence[Patch]) -> set[int]:
    """Return the ids of functions that replace one of the same name, as those of `functools.wraps` and autospec do."""
    found = set()
    for patch in patches:
        value = patch.value()
        function = getattr(value, "__func__", value)
        if isinstance(function, types.FunctionType) and not patch.is_item:
            owner = patch.container
            prefix = f"{owner.__qualname__}." if isinstance(owner, type) else ""
            module = owner.__module__ if prefix else getattr(owner, "__name__", None)
            if function.__module__ in (module, None) and function.__qualname__ == prefix + str(patch.key):
                found.add(id(function))
    return found


class _PatchPickler(MockPickler):
    """Pickles patches for a worker."""

    originals: dict[int, str]
    namesakes: set[int]

    def persistent_id(self, value: Any) -> Any:
        path = self.originals.get(id(value))
        return super().persistent_id(value) if path is None else ("path", path)

    def reducer_override(self, value: Any) -> Any:
        reduced = super().reducer_override(value)
        if reduced is NotImplemented and id(value) in self.namesakes:  # the worker would find what it replaces
            reduced = self._dynamic_function_reduce(value)  # type: ignore[attr-defined]
            return *reduced[:-1], class_copies.set_function_state
        return reduced


class _PatchUnpickler:
    """Loads patches in the worker."""

    def persistent_load(self, pid: tuple[str, str]) -> Any:
        found = pkgutil.resolve_name(pid[1])
        return getattr(found, "__func__", found) if isinstance(found, types.MethodType) else found


class _ChangePickler(MockPickler):
    """Pickles changes for the caller, whose objects they are about."""

    known: dict[int, int]

    def persistent_id(self, value: Any) -> Any:
        index = self.known.get(id(value))
        return super().persistent_id(value) if index is None else index


class _ChangeUnpickler:
    """Loads changes in the caller's process."""

    objects: Sequence[Any]

    def persistent_load(self, pid: int | tuple[str, str]) -> Any:
        return self.objects[pid] if isinstance(pid, int) else pkgutil.resolve_name(pid[1])


def _sendable(value: Any, known: dict[int, int]) -> Any:
    """Return a value with `NotSent` instead of its parts that cannot be pickled."""
    try:
        serialization.dumps_extended([value], _ChangePickler, known=known)
    except Exception:  # noqa: BLE001 - pickling runs users' code
        if isinstance(value, tuple) and type(value).__new__ is not tuple.__new__:  # `mock.call`
            copy = tuple.__new__(type(value), [_sendable(part, known) for part in value])
            copy.__dict__.update(getattr(value, "__dict__", {}))
            return copy
        if type(value) in (tuple, list):
            return type(value)(_sendable(part, known) for part in value)
        if type(value) is dict:
            return {key: _sendable(part, known) for key, part in value.items()}
        if isinstance(value, Change):
            return Change(*(_sendable(part, known) for part in (value.changed, value.removed, value.added)))
        return NotSent(serialization.safe_repr(value))
    return value

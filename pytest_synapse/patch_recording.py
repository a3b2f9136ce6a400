"""Know which patches of `monkeypatch` and `unittest.mock` are active, for the workers that run the tests' actions.

Neither has a public list of them, so new `MonkeyPatch` objects and started patches of `mock` are noted.
"""

from __future__ import annotations

import functools
import importlib
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

# The `MonkeyPatch` objects, the oldest first.
_monkeypatches: dict[int, weakref.ref[pytest.MonkeyPatch]] = {}
# The patches of `mock` that are active, in the order in which they were started.
_mock_patches: dict[int, Any] = {}
_watched: set[str] = set()
_NOT_SET = ("NotSetType", "Notset")  # by the version of pytest
_NAMES_OF_MOCK = ("unittest.mock", "mock.mock")


def watch_monkeypatch() -> None:
    """Note each `MonkeyPatch` from now on."""
    if "pytest" not in _watched:
        _watched.add("pytest")
        pytest.MonkeyPatch.__init__ = _noting(pytest.MonkeyPatch.__init__)  # type: ignore[method-assign]


def watch_mock() -> None:
    """Note each patch of `unittest.mock`, and of the package `mock` if it is imported, from now on."""
    from synapse_runtime.core import patches

    importlib.import_module("unittest.mock")

    if _active_patches not in patches.sources:
        patches.sources.append(_active_patches)
    for name in _NAMES_OF_MOCK:
        module = sys.modules.get(name)
        if module is not None and name not in _watched:
            _watched.add(name)
            _watch(module)


def _noting(init: Any) -> Any:
    @functools.wraps(init)
    def noted(self: pytest.MonkeyPatch) -> None:
        init(self)
        key = id(self)
        _monkeypatches.pop(key, None)
        _monkeypatches[key] = weakref.ref(self, lambda _: _monkeypatches.pop(key, None))

    return noted


def _watch(module: Any) -> None:
    patch, patch_dict = module._patch, module._patch_dict
    patch.__enter__ = _after(patch.__enter__, _add)
    patch.__exit__ = _before(patch.__exit__, _discard)
    patch_dict._patch_dict = _after(patch_dict._patch_dict, _add)
    patch_dict._unpatch_dict = _before(patch_dict._unpatch_dict, _discard)


def _add(patcher: Any) -> None:
    _mock_patches[id(patcher)] = patcher


def _discard(patcher: Any) -> None:
    _mock_patches.pop(id(patcher), None)


def _after(method: Any, note: Any) -> Any:
    @functools.wraps(method)
    def noted(self: Any, *args: Any) -> Any:
        result = method(self, *args)
        note(self)
        return result

    return noted


def _before(method: Any, note: Any) -> Any:
    @functools.wraps(method)
    def noted(self: Any, *args: Any) -> Any:
        note(self)
        return method(self, *args)

    return noted


def _active_patches() -> Iterator[Any]:
    """Yield the patches that are active in this process, the oldest first."""
    from synapse_runtime.core.patches import MISSING, Patch

    for reference in [*_monkeypatches.values()]:
        monkeypatch = reference()
        if monkeypatch is None:
            continue
        for is_item, changes in ((False, monkeypatch._setattr), (True, monkeypatch._setitem)):
            for container, key, before in changes:
                yield Patch(container, key, is_item, MISSING if type(before).__name__ in _NOT_SET else before)
    for patcher in [*_mock_patches.values()]:
        if hasattr(patcher, "in_dict"):
            yield from _changed_items(patcher)
        else:
            missing = patcher.temp_original is sys.modules[type(patcher).__module__].DEFAULT
            yield Patch(patcher.target, patcher.attribute, False, MISSING if missing else patcher.temp_original)


def _changed_items(patcher: Any) -> Iterator[Any]:
    from synapse_runtime.core.patches import EVERY_KEY, MISSING, Patch

    before, now = patcher._original, patcher.in_dict
    if patcher.clear:
        yield Patch(now, EVERY_KEY, True, MISSING)
    for key in [*now, *(key for key in before if key not in now)]:
        old = before.get(key, MISSING)
        if patcher.clear or key in patcher.values or key not in now or now[key] is not old:
            yield Patch(now, key, True, old)

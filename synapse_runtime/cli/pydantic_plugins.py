"""No search for plugins of pydantic where there are none.

For its first model pydantic looks through all packages that are installed. With what it imports to do so, that takes
longer than all of ours that an action needs.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

_METADATA = "importlib.metadata"
_GROUP = b"[pydantic]"
# What pydantic has found: None before it has looked. The second name is that before 2.14.
_FOUND = ("_plugins", "_pydantic_plugins")


def skip_search(*directories: str) -> None:
    """Let pydantic know that it has no plugins, unless there may be some, or it has looked already.

    There is no public way but a variable of the environment, which actions would see. Where the private names are
    missing, pydantic searches; a test notices.

    Args:
        directories: What will be on the import path besides what is there now.
    """
    if "pydantic.plugin._loader" in sys.modules or _may_be_in([*sys.path, *directories]):
        return
    if _METADATA in sys.modules:
        from pydantic.plugin import _loader
    else:
        sys.modules[_METADATA] = _WhenAsked(_METADATA)
        try:
            from pydantic.plugin import _loader
        finally:
            sys.modules.pop(_METADATA, None)
    for name in _FOUND:
        if vars(_loader).get(name, ...) is None:
            setattr(_loader, name, {})


class _WhenAsked(ModuleType):
    """Stands for `importlib.metadata` where it is only imported. What is asked of it later, the real one does."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in ("distributions", "entry_points"):
            return getattr(self._real(), name)
        return lambda *args, **kwargs: getattr(self._real(), name)(*args, **kwargs)

    def _real(self) -> ModuleType:
        if sys.modules.get(_METADATA) is self:
            del sys.modules[_METADATA]
        return importlib.import_module(_METADATA)


def _may_be_in(path: Iterable[str]) -> bool:
    """Tell whether a package on an import path may be a plugin of pydantic's, as far as a glance can tell."""
    if any(hasattr(finder, "find_distributions") for finder in sys.meta_path if finder is not PathFinder):
        return True
    return any(map(_has_plugin, dict.fromkeys(path)))


def _has_plugin(entry: str) -> bool:
    entry = entry or os.curdir
    try:
        names = os.listdir(entry)
    except OSError:
        return os.path.exists(entry)  # an archive, for instance
    for name in names:
        if name.endswith((".dist-info", ".egg-info")):
            try:
                with open(os.path.join(entry, name, "entry_points.txt"), "rb") as file:
                    if _GROUP in file.read():
                        return True
            except (FileNotFoundError, NotADirectoryError):
                continue
        elif name.endswith(".egg"):
            return True
    return False

"""Skip pydantic's search for plugins if there are none.

For its first model, pydantic searches all installed packages. With the imports for it, this takes longer than importing
everything of this package that an action needs.
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
# The plugins that pydantic has found; None before it has searched. The second name is used before pydantic 2.14.
_FOUND = ("_plugins", "_pydantic_plugins")


def skip_search(*directories: str) -> None:
    """Make pydantic skip its search for plugins, unless there may be some, or it has searched already.

    The only public way is an environment variable, which actions would see. If the private names are missing, pydantic
    searches as usual, and a test fails.

    Args:
        directories: Directories that will be added to the import path.
    """
    if "pydantic.plugin._loader" in sys.modules or _may_be_in([*sys.path, *directories]):
        return
    if _METADATA in sys.modules:
        from pydantic.plugin import _loader
    else:
        sys.modules[_METADATA] = _LazyMetadata(_METADATA)
        try:
            from pydantic.plugin import _loader
        finally:
            sys.modules.pop(_METADATA, None)
    for name in _FOUND:
        if vars(_loader).get(name, ...) is None:
            setattr(_loader, name, {})


class _LazyMetadata(ModuleType):
    """Stand-in for `importlib.metadata` that imports the real module on first use."""

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
    """Return whether an import path may contain a pydantic plugin, by a quick check without false negatives."""
    if any(hasattr(finder, "find_distributions") for finder in sys.meta_path if finder is not PathFinder):
        return True
    return any(map(_has_plugin, dict.fromkeys(path)))


def _has_plugin(entry: str) -> bool:
    entry = entry or os.curdir
    try:
        names = os.listdir(entry)
    except OSError:
        return os.path.exists(entry)  # such as a zip archive
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

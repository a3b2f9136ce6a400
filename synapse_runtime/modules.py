"""Whose modules a name means: plugins commonly have a top-level package named `plugin`, each its own.

While one plugin is in use, its directory is first on `sys.path` and the names of its modules mean its modules.
Modules of the same names from elsewhere are put aside and come back afterwards. Where no names clash, nothing moves.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import sysconfig
from collections.abc import Collection, Iterator
from pathlib import Path
from types import ModuleType

from synapse_runtime.errors import ConfigError

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help

# Modules of installed packages and of Python itself are everybody's; they never move.
_SHARED = tuple(
    os.path.join(path, "")
    for path in {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
)


class _Shelf:
    """What this process knows of plugin directories: top-level names, modules put aside, whose block we are in."""

    def __init__(self) -> None:
        self.names: dict[str, tuple[int, frozenset[str]]] = {}
        self.aside: dict[str, dict[str, ModuleType]] = {}
        self.in_use: str | None = None

    def top_level_names(self, root: str) -> frozenset[str]:
        changed = os.stat(root).st_mtime_ns
        known = self.names.get(root)
        if known is None or known[0] != changed:
            known = self.names[root] = (changed, _top_level_names(Path(root)))
            importlib.invalidate_caches()
        return known[1]


_shelf = _Shelf()


@contextlib.contextmanager
def modules_of(root: str | Path) -> Iterator[None]:
    """Let the modules in this directory be the ones that their names mean, inside the block.

    Args:
        root: The directory that holds them: modules and packages directly in it are importable.

    Raises:
        ConfigError: There is no such directory.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     _ = Path(root, "only_here.py").write_text("answer = 42")
        ...     with modules_of(root):
        ...         import only_here
        >>> only_here.answer
        42
    """
    root = os.fspath(root)
    if not os.path.isdir(root):
        raise ConfigError("the plugin's directory does not exist", path=root)
    names = _shelf.top_level_names(root)
    foreign = [name for name in names if name in sys.modules and not _may_stay(sys.modules[name], root)]
    moved = _take(foreign) if foreign else {}
    outer, _shelf.in_use = _shelf.in_use, root
    if moved and outer is not None:  # a block inside this one may be the outer plugin's again
        _shelf.aside[outer] = {name: module for name, module in moved.items() if is_within(module, outer)}
    sys.modules.update(_shelf.aside.pop(root, {}))
    sys.path.insert(0, root)
    try:
        yield
    finally:
        _shelf.in_use = outer
        with contextlib.suppress(ValueError):
            sys.path.remove(root)
        if moved:
            _shelf.aside[root] = _take(foreign)
            sys.modules.update(moved)
            if outer is not None:
                sys.modules.update(_shelf.aside.pop(outer, {}))


@contextlib.contextmanager
def fresh_modules(root: str | Path, *, but: Collection[str] = ()) -> Iterator[None]:
    """Import the modules of a plugin anew inside the block; afterwards those of before are back.

    Args:
        root: The plugin's directory.
        but: Modules that stay as they are, with the packages that they are in.
    """
    kept = {name.partition(".")[0] for name in but}
    with modules_of(root):
        before = _take(_loaded_from(root, kept))
        try:
            yield
        finally:
            _take(_loaded_from(root, kept))
            sys.modules.update(before)


def top_level_names(root: str | Path) -> frozenset[str]:
    """Return the names of the modules and packages directly in a directory."""
    return _shelf.top_level_names(os.fspath(root))


def _loaded_from(root: str | Path, kept: Collection[str]) -> list[str]:
    tops = _shelf.top_level_names(os.fspath(root)) - frozenset(kept)
    return [name for name in tops if name in sys.modules and is_within(sys.modules[name], root)]


def is_within(module: ModuleType, root: str | Path) -> bool:
    """Tell whether a module's file is in this directory or below it."""
    inside = os.path.join(os.fspath(root), "")
    return any(place.startswith(inside) for place in _places(module))


def is_installed(module: ModuleType) -> bool:
    """Tell whether a module comes with Python or an installed package, so that any worker has it too."""
    places = _places(module)
    return not places or any(place.startswith(_SHARED) for place in places)


def is_installed_path(path: str) -> bool:
    """Tell whether a directory of `sys.path` is Python's own or that of installed packages."""
    return not os.path.isdir(path) or os.path.join(path, "").startswith(_SHARED)


def _may_stay(module: ModuleType, root: str) -> bool:
    return is_within(module, root) or is_installed(module)


def _places(module: ModuleType) -> list[str]:
    file = getattr(module, "__file__", None)
    return [file] if file else [os.path.join(path, "") for path in getattr(module, "__path__", ())]


def _take(names: list[str]) -> dict[str, ModuleType]:
    """Take these top-level modules, and all below them, out of `sys.modules`."""
    tops = set(names)
    taken = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in tops}
    for name in taken:
        del sys.modules[name]
    return taken


def _top_level_names(root: Path) -> frozenset[str]:
    names = set()
    for entry in root.iterdir():
        if entry.suffix == ".py":
            names.add(entry.stem)
        elif entry.name.isidentifier() and entry.is_dir():  # a package, or nothing that clashes with one
            names.add(entry.name)
    return frozenset(names)

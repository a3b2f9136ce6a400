"""Whose modules a name means: plugins commonly have a top-level package named `plugin`, each its own.

While a plugin is the current one, its directory is first on `sys.path`, and the names of its modules mean its modules.
Afterwards `sys.path` and `sys.modules` are as they were: its modules wait on a shelf until it is the current one again.
Modules from elsewhere that have the same names are put aside meanwhile; where no names clash, they do not move. Modules
of installed packages never do.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import importlib.util
import os
import stat
import sys
import sysconfig
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from synapse_runtime.errors import ConfigError
from synapse_runtime.plugins.file_state import FileSnapshot, is_recent

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help

# Modules of installed packages and of Python itself are everybody's; they never move.
_SHARED: Final = tuple(
    os.path.join(path, "")
    for path in {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
)


@contextlib.contextmanager
def activate_modules(root: str | Path) -> Iterator[None]:
    """Let the modules in this directory be the ones that their names mean, inside the block.

    Where files of theirs have changed since they were imported, and no other block has them in use, they are imported
    anew.

    Args:
        root: The directory that holds them: modules and packages directly in it are importable.

    Raises:
        ConfigError: There is no such directory.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     _ = Path(root, "only_here.py").write_text("answer = 42")
        ...     with activate_modules(root):
        ...         import only_here
        >>> only_here.answer, "only_here" in sys.modules
        (42, False)
    """
    block = _registry.activate(os.fspath(root))
    try:
        yield
    finally:
        _registry.deactivate(block)


@contextlib.contextmanager
def fresh_modules(root: str | Path, *, but: Collection[str] = ()) -> Iterator[None]:
    """Import the modules of a plugin anew inside the block; afterwards those of before are back.

    Args:
        root: The plugin's directory.
        but: Modules that stay as they are, with the packages that they are in.
    """
    kept = {name.partition(".")[0] for name in but}
    with activate_modules(root):
        before = _pop_modules(_loaded_from(root, kept))
        try:
            yield
        finally:
            _pop_modules(_loaded_from(root, kept))
            sys.modules.update(before)


class ModuleScope:
    """Keeps a plugin the current one from one moment to another that no block could span.

    Example:
        >>> stay = ModuleScope()
        >>> stay.activate(None)  # outside of all plugins
        >>> stay.close()
    """

    def __init__(self) -> None:
        self._activation: _Activation | None = None

    def activate(self, root: str | None) -> None:
        """Let this directory's modules be the ones that their names mean, from now on; None for no plugin's.

        As with a block, those whose files have changed are imported anew.
        """
        self._activation = _registry.switch(self._activation, root)

    def close(self) -> None:
        """Let everything be as if this had not been."""
        if self._activation is not None:
            _registry.deactivate(self._activation)
            self._activation = None


def keep_module(name: str) -> None:
    """Let a module of the current plugin stay as it is when its plugin is imported anew, with the packages it is in.

    Args:
        name: That of a test module or conftest, which pytest imports once.
    """
    _registry.keep(name)


def top_level_names(root: str | Path) -> frozenset[str]:
    """Return the names of the modules and packages directly in a directory."""
    corner = _registry.modules_of(os.fspath(root))
    corner.refresh()
    return corner.names


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


@dataclass(eq=False)
class PluginModules:
    """What one plugin has for itself. That of no plugin has no root: it is everything outside.

    Attributes:
        root: The plugin's directory.
        modules: Its modules by name, as they were when they were last put on the shelf.
        homes: The directories that they were imported from.
        path: Its own entries of `sys.path`.
        left: What `sys.path` was when the corner was left, and what of that was not its own, if they were mixed.
        guests: Modules of other plugins that are to be seen from here too: their owners by their top-level names.
        files: The files that its modules were imported from, by module.
        kept: Modules that are not imported anew.
        names: What can be imported from the directory itself, by `refresh`.
        blocks: How many blocks have it in use.
    """

    root: str | None
    modules: dict[str, ModuleType] = field(default_factory=dict)
    directories: set[str] = field(default_factory=set)
    path: list[str] = field(default_factory=list)
    path_when_left: tuple[list[str], list[str]] | None = None
    shared_modules: dict[str, PluginModules] = field(default_factory=dict)
    files: dict[str, FileSnapshot] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    names: frozenset[str] = frozenset()
    blocks: int = 0
    _directories: dict[str, tuple[int, bool]] = field(default_factory=dict)

    def refresh(self) -> None:
        """Let Python look anew into the directories of this plugin where anything may have come or gone.

        Raises:
            ConfigError: There is no such plugin any more.
        """
        assert self.root is not None
        if self._refresh_directory(self.root):
            self.names = _top_level_names(self.root)
        elif self.root not in self._directories:
            raise ConfigError("the plugin's directory does not exist", path=self.root)
        for directory in [*self._directories]:  # of packages
            if directory != self.root:
                self._refresh_directory(directory)

    def record_file(self, name: str, module: ModuleType, since: int) -> None:
        """Remember the file that a module was imported from, some time after `since`."""
        path = _attribute(module, "__file__")
        if name in self.kept or not isinstance(path, str) or not path.endswith(".py"):
            return
        with contextlib.suppress(OSError):
            file = FileSnapshot.read(path)
            # What was written since then may not be what was imported.
            self.files[name] = file._replace(content=None, is_recent=True) if file.changed_at > since else file
            if _attribute(module, "__path__") is not None:
                self._directories.setdefault(os.path.dirname(path), (0, True))

    def changed_files(self) -> dict[str, str]:
        """Return the files that have changed, or are gone, since their modules were imported; by module."""
        changed = {}
        for name, file in [*self.files.items()]:
            if file.is_surely_current():
                continue
            try:
                now = self.files[name] = FileSnapshot.read(file.path)
            except OSError:
                changed[name] = file.path
                del self.files[name]
                continue
            if now.content != file.content:
                changed[name] = file.path
        return changed

    def _refresh_directory(self, directory: str) -> bool:
        """Tell whether anything may have come or gone in a directory; if so, Python looks anew too."""
        try:
            status = os.stat(directory)
        except OSError:
            status = None
        if status is None or not stat.S_ISDIR(status.st_mode):
            self._directories.pop(directory, None)
            return False
        changed, young = self._directories.get(directory, (0, True))
        if changed == status.st_mtime_ns and not young:
            return False
        self._directories[directory] = (status.st_mtime_ns, is_recent(status))
        importlib.invalidate_caches()
        return True


@dataclass(eq=False)
class _Activation:
    """One who wants a corner to be the current one: a block, or a stay.

    Attributes:
        corner: The corner.
        is_block: Whether it is a block: what is in use by one is not imported anew.
        is_first: Whether the plugin's directory was put first on `sys.path` for it alone.
    """

    modules: PluginModules
    is_block: bool
    is_first: bool = False


class ModuleRegistry:
    """Which plugin is the current one in this process, and what the others have on their shelves."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._outside = self._current = PluginModules(None)
        self._plugins: dict[str, PluginModules] = {}
        self._activations: list[_Activation] = []  # the last has its way
        self._seen: dict[str, PluginModules] = {}  # whose a module is, of those in sys.modules that are a plugin's
        self._shadowed: dict[str, ModuleType] = {}
        self._outside_path: list[str] = []
        self._path: list[str] = []  # as it was when the current corner had been entered
        self._rest: list[str] = []  # and just before
        self._mark: tuple[int, str | None] = (0, None)  # how sys.modules was when it was looked through last
        self._looked = 0

    def modules_of(self, root: str) -> PluginModules:
        """Return a plugin's corner."""
        known = self._plugins.get(root) or self._plugins.get(root := os.path.abspath(root))
        if known is not None:
            return known
        with self._lock:
            self._scan_new_modules()
            self._drop_deleted_plugins()
            corner = self._plugins[root] = PluginModules(root, path=[root])
            self._mark = (0, None)  # what is loaded already may be that plugin's
            return corner

    def _drop_deleted_plugins(self) -> None:
        used = {self._current, *self._seen.values(), *self._outside.shared_modules.values()}
        used.update(place.modules for place in self._activations)
        for root, corner in [*self._plugins.items()]:
            if corner not in used and not os.path.isdir(root):
                del self._plugins[root]

    def activate(self, root: str) -> _Activation:
        """Begin a block."""
        with self._lock:
            corner = self.modules_of(root)
            corner.refresh()
            self._switch_to(corner)
            if not corner.blocks:
                self._import_edited_anew(corner)
            assert corner.root is not None
            place = _Activation(corner, is_block=True, is_first=sys.path[:1] != [corner.root])
            if place.is_first:
                sys.path.insert(0, corner.root)
            corner.blocks += 1
            self._activations.append(place)
            return place

    def switch(self, place: _Activation | None, root: str | None) -> _Activation:
        """Begin a stay, or let it be elsewhere."""
        with self._lock:
            corner = self._outside if root is None else self.modules_of(root)
            if root is not None:
                with contextlib.suppress(ConfigError):  # then there is nothing to import
                    corner.refresh()
            if place is None or self._activations[-1] is not place:  # over what others have left behind
                if place is not None:
                    self._activations.remove(place)
                place = _Activation(corner, is_block=False)
                self._activations.append(place)
            place.modules = corner
            self._switch_to(corner)
            if root is not None and not corner.blocks:
                self._import_edited_anew(corner)
            return place

    def keep(self, name: str) -> None:
        """Keep a module, and the packages that it is in."""
        with self._lock:
            self._scan_new_modules()
            owner = self._seen.get(name)
            while name and owner is not None:
                owner.kept.add(name)
                owner.files.pop(name, None)
                name = name.rpartition(".")[0]

    def deactivate(self, place: _Activation) -> None:
        """End a block or a stay; in whatever order they end, those that are left have their way."""
        with self._lock:
            self._activations.remove(place)
            place.modules.blocks -= place.is_block
            if place.is_first and place.modules.root in sys.path:
                sys.path.remove(place.modules.root)
            self._switch_to(self._activations[-1].modules if self._activations else self._outside)

    def _switch_to(self, corner: PluginModules) -> None:
        self._scan_new_modules()
        if corner is not self._current:
            self._store_current()
            self._restore(corner)

    def _scan_new_modules(self) -> None:
        """Take note of what has been imported since the last time."""
        before, self._looked = self._looked, time.time_ns()
        if self._mark == (mark := _mark()):
            return
        names = list(sys.modules)
        last = self._mark[1]
        self._mark = mark
        new = len(names)
        while new and names[new - 1] != last:
            new -= 1
        for name in names[new:]:
            module = sys.modules.get(name)
            if module is None:
                continue
            owner = self._owner(module) if "." not in name else self._seen.get(name.partition(".")[0])
            if owner is None:
                self._seen.pop(name, None)
            elif owner is not self._seen.get(name) or owner.modules.get(name) is not module:
                self._seen[name] = owner
                owner.modules[name] = module
                owner.record_file(name, module, before)

    def _owner(self, module: ModuleType) -> PluginModules | None:
        """Return whose a top-level module is: the deepest plugin that has the directory it was imported from."""
        home = _directory_of(module)
        if home is None or is_installed(module):
            return None
        owner = self._plugin_at(home)
        if owner is not None:
            owner.directories.add(home)
        return owner

    def _plugin_at(self, directory: str) -> PluginModules | None:
        inside = os.path.join(directory, "")
        roots = [root for root in self._plugins if inside.startswith(os.path.join(root, ""))]
        return self._plugins[max(roots, key=len)] if roots else None

    def _store_current(self) -> None:
        """Put what is a plugin's on its shelf, and bring back what was put aside for the current one."""
        corner = self._current
        corner.shared_modules = {
            name: owner for name, owner in self._seen.items() if owner is not corner and "." not in name
        }
        for name, owner in self._seen.items():
            module = sys.modules.pop(name, None)
            if module is None:
                owner.modules.pop(name, None)
                owner.files.pop(name, None)
            else:
                owner.modules[name] = module
        self._seen = {}
        sys.modules.update(self._shadowed)
        self._shadowed = {}
        if corner is self._outside:
            self._outside_path = list(sys.path)
        elif sys.path == self._path:
            sys.path[:] = self._rest
        else:
            self._part_path(corner)

    def _part_path(self, corner: PluginModules) -> None:
        """Take out of `sys.path` what has been put there for this plugin."""
        outside, own, rest = [*self._outside_path], [corner.root], []
        for entry in reversed(sys.path):  # what was there before is at the end
            if entry in outside:
                outside.remove(entry)
                rest.append(entry)
            elif isinstance(entry, str) and self._plugin_at(entry) is not None:
                own.append(entry)
            else:
                rest.append(entry)
        whole, sys.path[:] = list(sys.path), reversed(rest)
        corner.path_when_left = (whole, list(sys.path))
        corner.path = [*dict.fromkeys(entry for entry in reversed(own) if entry is not None)]

    def _restore(self, corner: PluginModules) -> None:
        """Bring what is this plugin's, and what else is to be seen from there."""
        self._current = corner
        self._rest = list(sys.path)
        if corner.path_when_left is not None and corner.path_when_left[1] == self._rest:
            sys.path[:] = corner.path_when_left[0]
        else:
            sys.path[:0] = corner.path
        self._path = list(sys.path)
        clashing = [name for name in corner.names if name in sys.modules and not self._may_stay(sys.modules[name])]
        self._shadowed = _pop_modules(clashing) if clashing else {}
        for owner in self._plugins.values():
            if owner is corner or corner.shared_modules or not owner.directories.isdisjoint(self._path):
                self._reload(owner)
        self._mark = _mark()

    def _may_stay(self, module: ModuleType) -> bool:
        return is_installed(module) or (self._current.root is not None and is_within(module, self._current.root))

    def _reload(self, owner: PluginModules) -> None:
        for name, module in owner.modules.items():
            if owner is self._current or self._is_seen(name.partition(".")[0], owner):
                sys.modules[name] = module
                self._seen[name] = owner

    def _is_seen(self, name: str, owner: PluginModules) -> bool:
        """Tell whether a top-level module of another plugin is seen from the current one: if Python would find it."""
        corner = self._current
        if corner.shared_modules.get(name) is owner:
            return True
        if name in corner.modules or name in corner.names:
            return False
        module = owner.modules.get(name)
        return module is not None and _directory_of(module) in self._path

    def _import_edited_anew(self, corner: PluginModules) -> None:
        """Forget the modules of the current plugin if any of their files has changed."""
        edited = corner.changed_files()
        if not edited:
            return
        for name, owner in [*self._seen.items()]:
            if owner is not corner or name in corner.kept:
                continue
            module = sys.modules.pop(name, None)
            parent, _, attribute = name.rpartition(".")
            if parent in corner.kept and getattr(sys.modules.get(parent), attribute, None) is module is not None:
                delattr(sys.modules[parent], attribute)
            del self._seen[name], corner.modules[name]
            corner.files.pop(name, None)
        for path in edited.values():
            _delete_bytecode(path)
        importlib.invalidate_caches()
        self._mark = _mark()


_registry = ModuleRegistry()


def _mark() -> tuple[int, str | None]:
    """Return what tells that nothing has been added to `sys.modules`, but in rare cases."""
    try:
        return len(sys.modules), next(reversed(sys.modules), None)
    except RuntimeError:  # another thread imports
        return -1, None


def _delete_bytecode(path: str) -> None:
    """Delete what was compiled from a file: its time is told in seconds there, and an edit may come within one."""
    with contextlib.suppress(NotImplementedError):
        compiled = importlib.util.cache_from_source(path)
        stem = os.path.splitext(os.path.basename(path))[0]
        for stale in glob.glob(glob.escape(os.path.join(os.path.dirname(compiled), stem)) + ".*.pyc"):
            with contextlib.suppress(OSError):
                os.unlink(stale)


def _loaded_from(root: str | Path, kept: Collection[str]) -> list[str]:
    tops = top_level_names(root) - frozenset(kept)
    return [name for name in tops if name in sys.modules and is_within(sys.modules[name], root)]


def _places(module: ModuleType) -> list[str]:
    file = _attribute(module, "__file__")
    return [file] if file else [os.path.join(path, "") for path in _attribute(module, "__path__") or ()]


def _directory_of(module: ModuleType) -> str | None:
    """Return the directory of `sys.path` that a top-level module was imported from, if any."""
    places = _places(module)
    if not places:
        return None
    directory = os.path.dirname(places[0])
    return directory if _attribute(module, "__path__") is None else os.path.dirname(directory)


def _attribute(module: ModuleType, name: str) -> Any:
    """Return an attribute, or None; a module that is loaded when it is first used does not notice."""
    try:
        return object.__getattribute__(module, "__dict__").get(name)
    except AttributeError:  # there are other things than modules in `sys.modules`
        return None


def _pop_modules(names: Collection[str]) -> dict[str, ModuleType]:
    """Take these top-level modules, and all below them, out of `sys.modules`."""
    tops = set(names)
    taken = {name: module for name, module in list(sys.modules.items()) if name.partition(".")[0] in tops}
    for name in taken:
        del sys.modules[name]
    return taken


def _top_level_names(root: str) -> frozenset[str]:
    names = set()
    for entry in Path(root).iterdir():
        if entry.suffix == ".py":
            names.add(entry.stem)
        elif entry.name.isidentifier() and entry.is_dir():  # a package, or nothing that clashes with one
            names.add(entry.name)
    return frozenset(names)

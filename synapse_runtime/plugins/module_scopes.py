"""Let several plugins use the same top-level package name, commonly `plugin`, in one process.

While a plugin is active, its directory is first on `sys.path`, and module names refer to its own modules. Afterwards
`sys.path` and `sys.modules` are restored, and the plugin's modules are stored until its next activation. Other modules
with the same names are removed from `sys.modules` during the activation; modules whose names do not clash remain.
Modules of installed packages are always shared.
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
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from synapse_runtime.errors import ConfigError
from synapse_runtime.plugins.file_state import FileSnapshot, is_recent

__tracebackhide__ = True  # pytest leaves the frames of this module out of failure reports

# Modules of installed packages and of Python itself are shared by all plugins.
_INSTALLED: Final = tuple(
    os.path.join(path, "")
    for path in {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
)
_EXTENSIONS: Final = sysconfig.get_config_var("DESTSHARED")
# Where Python's own modules are. Python's `test` is excepted: plugins often have their tests in a directory `test`.
_STDLIB_PATH: Final = [*filter(None, {*map(sysconfig.get_path, ("stdlib", "platstdlib")), _EXTENSIONS})]
_STDLIB_NAMES: Final = sys.stdlib_module_names - {"test"}


@contextlib.contextmanager
def activate_modules(root: str | Path) -> Iterator[None]:
    """Make module names refer to the modules in this directory, inside the block.

    If a module's file has changed since its import, the plugin's modules are imported again, unless another block is
    using them.

    Args:
        root: The directory of the modules: modules and packages directly in it can be imported.

    Raises:
        ConfigError: The directory does not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     _ = Path(root, "only_here.py").write_text("answer = 42")
        ...     with activate_modules(root):
        ...         import only_here
        >>> only_here.answer, "only_here" in sys.modules
        (42, False)
    """
    activation = _registry.activate(os.fspath(root))
    try:
        yield
    finally:
        _registry.deactivate(activation)


@contextlib.contextmanager
def fresh_modules(root: str | Path, *, but: Collection[str] = ()) -> Iterator[None]:
    """Import a plugin's modules again inside the block, and restore the previous ones afterwards.

    Args:
        root: The plugin's directory.
        but: Modules that are not imported again, and neither are their packages.
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
    """Keeps a plugin active between two points in time that no `with` block can span.

    Example:
        >>> scope = ModuleScope()
        >>> scope.activate(None)  # outside of all plugins
        >>> scope.close()
    """

    def __init__(self) -> None:
        self._activation: _Activation | None = None

    def activate(self, root: str | None) -> None:
        """Make module names refer to the modules in this directory from now on; None for outside of all plugins.

        As with `activate_modules`, modules whose files have changed are imported again.
        """
        self._activation = _registry.switch(self._activation, root)

    def close(self) -> None:
        """End the scope and restore the previous state."""
        if self._activation is not None:
            _registry.deactivate(self._activation)
            self._activation = None


def keep_module(name: str) -> None:
    """Exclude a module of the active plugin, and its packages, from being imported again.

    Args:
        name: The name of a test module or conftest, which pytest imports once.
    """
    _registry.keep(name)


def top_level_names(root: str | Path) -> frozenset[str]:
    """Return the names of the modules and packages directly in a directory."""
    plugin = _registry.modules_of(os.fspath(root))
    plugin.refresh()
    return plugin.names


def names_of_python(root: str | Path) -> list[str]:
    """Return the names of modules directly in a directory that Python's own modules have, which are imported instead.

    Which one is imported would otherwise depend on whether the process has imported Python's before.
    """
    found = []
    for name in top_level_names(root) & _STDLIB_NAMES:
        path = os.path.join(root, name)
        if os.path.isfile(f"{path}.py") or (os.path.isdir(path) and any(Path(path).glob("*.py"))):
            found.append(name)
    return sorted(found)


def is_within(module: ModuleType, root: str | Path) -> bool:
    """Return whether a module's file is in this directory or below it."""
    inside = os.path.join(os.fspath(root), "")
    return any(one.startswith(inside) for one in _locations(module))


def is_installed(module: ModuleType) -> bool:
    """Return whether a module is part of Python or an installed package, so that every worker has it too."""
    locations = _locations(module)
    return not locations or any(one.startswith(_INSTALLED) for one in locations)


def is_installed_path(path: str) -> bool:
    """Return whether an entry of `sys.path` belongs to Python or holds installed packages."""
    return os.path.join(path, "").startswith(_INSTALLED)


@dataclass(eq=False)
class PluginModules:
    """The modules and `sys.path` entries of one plugin, or, without a root, of everything outside of plugins.

    Attributes:
        root: The plugin's directory.
        modules: Its modules by name, as of the end of its last activation.
        directories: The directories that they were imported from.
        path: Its own entries of `sys.path`.
        path_when_left: `sys.path` at the end of the last activation, and the entries of it that are not the plugin's
            own; only if the two are mixed.
        shared_modules: Modules of other plugins that are visible here: their owners by top-level name.
        files: The files that its modules were imported from, by module.
        before_import: Files just before they were imported, by path, until their modules are recorded.
        kept: Modules that are never imported again.
        names: The names that can be imported from the directory itself; set by `refresh`.
        blocks: The number of blocks that are using it.
    """

    root: str | None
    modules: dict[str, ModuleType] = field(default_factory=dict)
    directories: set[str] = field(default_factory=set)
    path: list[str] = field(default_factory=list)
    path_when_left: tuple[list[str], list[str]] | None = None
    shared_modules: dict[str, PluginModules] = field(default_factory=dict)
    files: dict[str, FileSnapshot] = field(default_factory=dict)
    before_import: dict[str, FileSnapshot] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    names: frozenset[str] = frozenset()
    blocks: int = 0
    _directories: dict[str, tuple[int, bool]] = field(default_factory=dict)

    def refresh(self) -> None:
        """Invalidate Python's import caches if entries of this plugin's directories may have been added or removed.

        Raises:
            ConfigError: The plugin's directory no longer exists.
        """
        assert self.root is not None
        if self._refresh_directory(self.root):
            self.names = _top_level_names(self.root)
        elif self.root not in self._directories:
            raise ConfigError("the plugin's directory does not exist", path=self.root)
        for directory in [*self._directories]:  # of packages
            if directory != self.root:
                self._refresh_directory(directory)

    def record_file(self, name: str, module: ModuleType) -> None:
        """Record the file of a module that has been imported."""
        path = _attribute(module, "__file__")
        if not isinstance(path, str):
            return
        before = self.before_import.pop(path, None)
        if name in self.kept or not path.endswith(".py"):
            return
        with contextlib.suppress(OSError):
            file = FileSnapshot.read(path)
            # If it has been written since the import, it may not be what was imported.
            is_imported = before is None or before.content == file.content
            self.files[name] = file if is_imported else file._replace(content=None, is_recent=True)
            if _attribute(module, "__path__") is not None:
                self._directories.setdefault(os.path.dirname(path), (0, True))

    def changed_files(self) -> dict[str, str]:
        """Return the files that were changed or deleted since their modules were imported, by module."""
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
        """Return whether entries of a directory may have been added or removed; if so, invalidate import caches."""
        try:
            status = os.stat(directory)
        except OSError:
            status = None
        if status is None or not stat.S_ISDIR(status.st_mode):
            self._directories.pop(directory, None)
            return False
        changed, recent = self._directories.get(directory, (0, True))
        if changed == status.st_mtime_ns and not recent:
            return False
        self._directories[directory] = (status.st_mtime_ns, is_recent(status))
        importlib.invalidate_caches()
        return True


@dataclass(eq=False)
class _Activation:
    """An activation of a plugin: by `activate_modules` or by a `ModuleScope`.

    Attributes:
        modules: The plugin's modules.
        is_block: Whether it was made by `activate_modules`; modules that a block is using are not imported again.
        is_first: Whether the plugin's directory was inserted into `sys.path` for this activation alone.
    """

    modules: PluginModules
    is_block: bool
    is_first: bool = False


class ModuleRegistry:
    """The active plugin of this process, and the stored modules of the others."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._outside = self._current = PluginModules(None)
        self._plugins: dict[str, PluginModules] = {}
        self._activations: list[_Activation] = []  # the last one is in effect
        self._owners: dict[str, PluginModules] = {}  # of those modules in sys.modules that belong to plugins
        self._shadowed: dict[str, ModuleType] = {}
        self._outside_path: list[str] = []
        self._path: list[str] = []  # sys.path just after the current plugin was activated
        self._rest: list[str] = []  # sys.path just before
        self._fingerprint: tuple[int, str | None] = (0, None)  # of sys.modules at the last scan
        self._observed: dict[str, PluginModules | None] = {}  # the plugins of directories, for `before_import`

    def modules_of(self, root: str) -> PluginModules:
        """Return the modules of a plugin."""
        known = self._plugins.get(root) or self._plugins.get(root := os.path.abspath(root))
        if known is not None:
            return known
        with self._lock:
            self._scan_new_modules()
            self._drop_deleted_plugins()
            plugin = self._plugins[root] = PluginModules(root, path=[root])
            self._observed.clear()
            _observer.install()
            self._fingerprint = (0, None)  # loaded modules may belong to that plugin
            return plugin

    def _drop_deleted_plugins(self) -> None:
        used = {self._current, *self._owners.values(), *self._outside.shared_modules.values()}
        used.update(one.modules for one in self._activations)
        for root, plugin in [*self._plugins.items()]:
            if plugin not in used and not os.path.isdir(root):
                del self._plugins[root]
                self._observed.clear()

    def is_in_plugin(self, name: str) -> bool:
        """Return whether the active plugin's directory has a module of this name."""
        return name in self._current.names

    def before_import(self, name: str, directories: Sequence[str]) -> None:
        """Note the file of a module that is about to be imported, if it belongs to a plugin.

        Args:
            name: The last part of the module's name.
            directories: Where Python looks for it.
        """
        for directory in directories:
            try:
                plugin = self._observed[directory]
            except KeyError:
                plugin = self._observed[directory] = self._plugin_at(directory)
            except TypeError:  # `sys.path` may contain anything
                continue
            if plugin is None:
                continue
            for path in (os.path.join(directory, name, "__init__.py"), os.path.join(directory, name + ".py")):
                with contextlib.suppress(OSError):
                    plugin.before_import[path] = FileSnapshot.read(path)
                    return

    def activate(self, root: str) -> _Activation:
        """Activate a plugin for a block."""
        with self._lock:
            plugin = self.modules_of(root)
            plugin.refresh()
            self._switch_to(plugin)
            if not plugin.blocks:
                self._drop_edited_modules(plugin)
            assert plugin.root is not None
            activation = _Activation(plugin, is_block=True, is_first=sys.path[:1] != [plugin.root])
            if activation.is_first:
                sys.path.insert(0, plugin.root)
            plugin.blocks += 1
            self._activations.append(activation)
            return activation

    def switch(self, activation: _Activation | None, root: str | None) -> _Activation:
        """Activate a plugin for a scope, or switch the scope to another plugin."""
        with self._lock:
            plugin = self._outside if root is None else self.modules_of(root)
            if root is not None:
                with contextlib.suppress(ConfigError):  # the directory does not exist, so there is nothing to import
                    plugin.refresh()
            # A new activation supersedes those that other code has never ended.
            if activation is None or self._activations[-1] is not activation:
                if activation is not None:
                    self._activations.remove(activation)
                activation = _Activation(plugin, is_block=False)
                self._activations.append(activation)
            activation.modules = plugin
            self._switch_to(plugin)
            if root is not None and not plugin.blocks:
                self._drop_edited_modules(plugin)
            return activation

    def keep(self, name: str) -> None:
        """Exclude a module and its packages from being imported again."""
        with self._lock:
            self._scan_new_modules()
            owner = self._owners.get(name)
            while name and owner is not None:
                owner.kept.add(name)
                owner.files.pop(name, None)
                name = name.rpartition(".")[0]

    def deactivate(self, activation: _Activation) -> None:
        """End an activation, in any order; the last of the remaining ones is in effect."""
        with self._lock:
            self._activations.remove(activation)
            activation.modules.blocks -= activation.is_block
            if activation.is_first and activation.modules.root in sys.path:
                sys.path.remove(activation.modules.root)
            self._switch_to(self._activations[-1].modules if self._activations else self._outside)

    def _switch_to(self, plugin: PluginModules) -> None:
        self._scan_new_modules()
        if plugin is not self._current:
            self._store_current()
            self._restore(plugin)

    def _scan_new_modules(self) -> None:
        """Record the modules that were imported since the last scan."""
        if self._fingerprint == (fingerprint := _fingerprint()):
            return
        names = list(sys.modules)
        last = self._fingerprint[1]
        self._fingerprint = fingerprint
        new = len(names)
        while new and names[new - 1] != last:
            new -= 1
        for name in names[new:]:
            module = sys.modules.get(name)
            if module is None:
                continue
            owner = self._owner(module) if "." not in name else self._owners.get(name.partition(".")[0])
            if owner is None:
                self._owners.pop(name, None)
            elif owner is not self._owners.get(name) or owner.modules.get(name) is not module:
                self._owners[name] = owner
                owner.modules[name] = module
                owner.record_file(name, module)

    def _owner(self, module: ModuleType) -> PluginModules | None:
        """Return the owner of a top-level module: the innermost plugin around the directory it was imported from."""
        directory = _directory_of(module)
        if directory is None or is_installed(module):
            return None
        owner = self._plugin_at(directory)
        if owner is not None:
            owner.directories.add(directory)
        return owner

    def _plugin_at(self, directory: str) -> PluginModules | None:
        inside = os.path.join(directory, "")
        roots = [root for root in [*self._plugins] if inside.startswith(os.path.join(root, ""))]
        return self._plugins[max(roots, key=len)] if roots else None

    def _store_current(self) -> None:
        """Store the modules of plugins, and restore the modules that the current one shadowed."""
        plugin = self._current
        plugin.shared_modules = {
            name: owner for name, owner in self._owners.items() if owner is not plugin and "." not in name
        }
        for name, owner in self._owners.items():
            module = sys.modules.pop(name, None)
            if module is None:
                owner.modules.pop(name, None)
                owner.files.pop(name, None)
            else:
                owner.modules[name] = module
        self._owners = {}
        sys.modules.update(self._shadowed)
        self._shadowed = {}
        if plugin is self._outside:
            self._outside_path = list(sys.path)
        elif sys.path == self._path:
            sys.path[:] = self._rest
        else:
            self._split_path(plugin)

    def _split_path(self, plugin: PluginModules) -> None:
        """Remove the entries that were added to `sys.path` for this plugin."""
        outside, own, rest = [*self._outside_path], [plugin.root], []
        for entry in reversed(sys.path):  # earlier entries are at the end
            if entry in outside:
                outside.remove(entry)
                rest.append(entry)
            elif isinstance(entry, str) and self._plugin_at(entry) is not None:
                own.append(entry)
            else:
                rest.append(entry)
        whole, sys.path[:] = list(sys.path), reversed(rest)
        plugin.path_when_left = (whole, list(sys.path))
        plugin.path = [*dict.fromkeys(entry for entry in reversed(own) if entry is not None)]

    def _restore(self, plugin: PluginModules) -> None:
        """Restore the modules of this plugin, and the modules of others that are visible to it."""
        self._current = plugin
        self._rest = list(sys.path)
        if plugin.path_when_left is not None and plugin.path_when_left[1] == self._rest:
            sys.path[:] = plugin.path_when_left[0]
        else:
            sys.path[:0] = plugin.path
        self._path = list(sys.path)
        clashing = [name for name in plugin.names if name in sys.modules and not self._may_remain(sys.modules[name])]
        self._shadowed = _pop_modules(clashing) if clashing else {}
        for owner in self._plugins.values():
            if owner is plugin or plugin.shared_modules or not owner.directories.isdisjoint(self._path):
                self._restore_modules(owner)
        self._fingerprint = _fingerprint()

    def _may_remain(self, module: ModuleType) -> bool:
        return is_installed(module) or (self._current.root is not None and is_within(module, self._current.root))

    def _restore_modules(self, owner: PluginModules) -> None:
        for name, module in owner.modules.items():
            if owner is self._current or self._is_visible(name.partition(".")[0], owner):
                sys.modules[name] = module
                self._owners[name] = owner

    def _is_visible(self, name: str, owner: PluginModules) -> bool:
        """Return whether the current plugin can import a top-level module of another plugin."""
        plugin = self._current
        if plugin.shared_modules.get(name) is owner:
            return True
        if name in plugin.modules or name in plugin.names:
            return False
        module = owner.modules.get(name)
        return module is not None and _directory_of(module) in self._path

    def _drop_edited_modules(self, plugin: PluginModules) -> None:
        """Remove the modules of the current plugin from `sys.modules` if any of their files has changed."""
        edited = plugin.changed_files()
        if not edited:
            return
        for name, owner in [*self._owners.items()]:
            if owner is not plugin or name in plugin.kept:
                continue
            module = sys.modules.pop(name, None)
            parent, _, attribute = name.rpartition(".")
            if parent in plugin.kept and getattr(sys.modules.get(parent), attribute, None) is module is not None:
                delattr(sys.modules[parent], attribute)
            del self._owners[name], plugin.modules[name]
            plugin.files.pop(name, None)
        for path in edited.values():
            _delete_bytecode(path)
        importlib.invalidate_caches()
        self._fingerprint = _fingerprint()


class _ImportObserver:
    """The first finder on `sys.meta_path`. It notes the files of plugins just before their import.

    Only so is it known whether a file was written after its import: the clocks of Python and of a file system differ.
    The only modules that it finds are those of Python whose names modules of a plugin have too.
    """

    def install(self) -> None:
        """Insert it, unless it is there."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Note the module's file."""
        if path is None and name in _STDLIB_NAMES and _registry.is_in_plugin(name):
            return PathFinder.find_spec(name, _STDLIB_PATH)
        _registry.before_import(name.rpartition(".")[2], sys.path if path is None else path)
        return None


_observer = _ImportObserver()
_registry = ModuleRegistry()


def _fingerprint() -> tuple[int, str | None]:
    """Return a fingerprint of `sys.modules`; while it is equal, in all but rare cases no module was added."""
    try:
        return len(sys.modules), next(reversed(sys.modules), None)
    except RuntimeError:  # another thread is importing
        return -1, None


def _delete_bytecode(path: str) -> None:
    """Delete the bytecode of a file: it records the mtime in seconds, so it can miss an edit within the same second."""
    with contextlib.suppress(NotImplementedError):
        compiled = importlib.util.cache_from_source(path)
        stem = os.path.splitext(os.path.basename(path))[0]
        for stale in glob.glob(glob.escape(os.path.join(os.path.dirname(compiled), stem)) + ".*.pyc"):
            with contextlib.suppress(OSError):
                os.unlink(stale)


def _loaded_from(root: str | Path, kept: Collection[str]) -> list[str]:
    tops = top_level_names(root) - frozenset(kept)
    return [name for name in tops if name in sys.modules and is_within(sys.modules[name], root)]


def _locations(module: ModuleType) -> list[str]:
    file = _attribute(module, "__file__")
    return [file] if file else [os.path.join(path, "") for path in _attribute(module, "__path__") or ()]


def _directory_of(module: ModuleType) -> str | None:
    """Return the directory of `sys.path` that a top-level module was imported from, if any."""
    locations = _locations(module)
    if not locations:
        return None
    directory = os.path.dirname(locations[0])
    return directory if _attribute(module, "__path__") is None else os.path.dirname(directory)


def _attribute(module: ModuleType, name: str) -> Any:
    """Return an attribute, or None, without triggering the import of lazily loaded modules."""
    try:
        return object.__getattribute__(module, "__dict__").get(name)
    except AttributeError:  # `sys.modules` may contain objects that are not modules
        return None


def _pop_modules(names: Collection[str]) -> dict[str, ModuleType]:
    """Remove these top-level modules and their submodules from `sys.modules`."""
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
        elif entry.name.isidentifier() and entry.is_dir():  # a package, or a directory that cannot clash with one
            names.add(entry.name)
    return frozenset(names)

"""Load a plugin: its config file, its actions and its modules."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from synapse_runtime import action as actions
from synapse_runtime.errors import ActionNotFoundError, ConfigError, nearest
from synapse_runtime.plugins.discovery import CONFIG_NAMES, MAX_CONFIG_BYTES, config_file_in
from synapse_runtime.plugins.file_state import DirectorySnapshot, FileSnapshot
from synapse_runtime.plugins.module_scopes import activate_modules

if TYPE_CHECKING:
    from synapse_runtime.plugins.manifest import ActionSpec, Manifest

__tracebackhide__ = True  # pytest leaves the frames of this module out of failure reports


class Plugin:
    """A plugin: its directory, config file and actions.

    Created by `Plugin.load`.

    Attributes:
        root: The plugin's directory: the working directory of its actions, from which their modules are imported.
        config_path: The config file; None if the plugin is an importable module without one.
    """

    def __init__(self, root: Path, manifest: Manifest, config_path: Path | None) -> None:
        self.root = root
        self.config_path = config_path
        self._manifest = manifest
        self._read: FileSnapshot | None = None  # state of the config file when the manifest was read

    def __repr__(self) -> str:
        return f"<Plugin {self.manifest.code or self.manifest.name} at {self.root}>"

    @classmethod
    def load(cls, source: str | Path) -> Plugin:
        """Find and read a plugin.

        Args:
            source: A directory with a config file, a config file, or the dotted name of an importable module.

        Raises:
            ConfigError: `source` is none of these, or its config file is invalid; the message has file and line.
        """
        path = Path(source)
        if path.is_dir() and not (isinstance(source, str) and _is_bare_package(source)):
            return cls._from_config(path)
        if path.is_file() and path.suffix in (".yaml", ".yml"):
            return cls._from_config(path)
        if path.suffix in (".yaml", ".yml") or len(path.parts) > 1 or path.is_absolute():
            raise ConfigError("the plugin does not exist: neither a directory nor a config file", path=path)
        return cls._from_module(str(source))

    @classmethod
    def load_cached(cls, source: str | Path) -> Plugin:
        """Find and read a plugin as `load` does, or return it from the cache if its files have not changed.

        Args:
            source: As for `load`.

        Raises:
            ConfigError: As for `load`.
        """
        place = os.path.abspath(source)
        known = _cached_plugins.get(place)
        if known is not None and known.is_current():
            return known.plugin
        _cached_plugins.pop(place, None)
        plugin = cls.load(source)
        if plugin.config_path is not None and place in (str(plugin.root), str(plugin.config_path)):
            if len(_cached_plugins) >= _MAX_CACHED:
                _cached_plugins.clear()
            with contextlib.suppress(OSError):  # deleted in the meantime
                _cached_plugins[place] = _CachedPlugin(plugin)
        return plugin

    @classmethod
    def _from_config(cls, path: Path) -> Plugin:
        from synapse_runtime.plugins.manifest import read_manifest

        config = config_file_in(path) if path.is_dir() else path
        seen = None
        if config is not None:
            config = config.absolute()
            with contextlib.suppress(OSError):  # reading it below raises the error
                seen = FileSnapshot.read(str(config), MAX_CONFIG_BYTES + 1)
        manifest = read_manifest(path)
        assert config is not None
        plugin = cls(config.parent, manifest, config)
        plugin._read = seen
        return plugin

    @classmethod
    def _from_module(cls, name: str) -> Plugin:
        from synapse_runtime.plugins.manifest import Manifest

        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"plugin {name!r} cannot be imported: {error}") from error
        if spec is None or spec.origin is None:
            raise ConfigError(f"plugin {name!r} is neither a directory, a config file nor an importable module")
        directory = Path(spec.origin).parent
        if spec.submodule_search_locations and config_file_in(directory) is not None:
            return cls._from_config(directory)
        found = _actions_in(importlib.import_module(name))
        if not found:
            raise ConfigError(
                f"module {name!r} has no config.yaml next to it and defines no action "
                "(a BaseAction subclass or an @action function)",
                path=spec.origin,
            )
        return cls(directory, Manifest(code=name, actions=found), None)

    @property
    def manifest(self) -> Manifest:
        """The content of the config file; read again if the file has changed.

        Raises:
            ConfigError: The file has become invalid; the message has file and line.
        """
        if self._read is not None and not self._read.is_surely_current():
            with contextlib.suppress(OSError):  # deleted: errors show when an action runs
                now = FileSnapshot.read(self._read.path, MAX_CONFIG_BYTES + 1)
                if now.content != self._read.content:
                    from synapse_runtime.plugins.manifest import read_manifest

                    self._manifest = read_manifest(Path(self._read.path))
                self._read = now
        return self._manifest

    @property
    def action_names(self) -> tuple[str, ...]:
        """The names of the actions, in the order of the config file."""
        return tuple(self.manifest.actions)

    def entrypoint(self, name: str) -> str:
        """Return the entrypoint of an action, as `module:Name`.

        Args:
            name: The name of an action of this plugin, or an entrypoint, which is returned in standard form.

        Raises:
            ActionNotFoundError: The plugin has no such action; the message lists its actions and suggests the nearest.
            ConfigError: The action has no entrypoint; the message has file and line.
        """
        return self.entrypoint_by(self.manifest, name)

    def entrypoint_by(self, manifest: Manifest, name: str) -> str:
        """Like `entrypoint`, for a manifest that was read before."""
        spec = manifest.actions.get(name)
        if spec is None:
            if is_entrypoint(name):
                return standard_entrypoint(name)
            raise self._not_found(name)
        if not spec.entrypoint:
            raise with_config_line(ConfigError("no entrypoint; add `entrypoint: module:Name`"), name, self.config_path)
        return standard_entrypoint(spec.entrypoint)

    def load_action(self, name: str) -> Any:
        """Import an action and return its class or function.

        Args:
            name: The name of an action, or an entrypoint.

        Raises:
            ActionNotFoundError, ConfigError: As for `entrypoint`; also if the module or the name does not exist.
            Exception: Anything that the plugin's module raises while it is imported.
        """
        entrypoint = self.entrypoint(name)
        with self.importable():
            try:
                return actions.require_action(import_entrypoint(entrypoint))
            except ConfigError as error:
                raise with_config_line(error, name, self.config_path) from error

    def importable(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager in which module names refer to this plugin's modules, and they can be imported."""
        return activate_modules(self.root) if self.config_path is not None else contextlib.nullcontext()

    def _not_found(self, name: str) -> ActionNotFoundError:
        guess = nearest(name, self.action_names)
        listed = ", ".join(self.action_names) or "none"
        hint = f" Did you mean {guess!r}?" if guess else ""
        where = self.config_path or self.manifest.code
        return ActionNotFoundError(
            f"there is no action {name!r} in {where}.{hint} Available: {listed}.", available=self.action_names
        )


class _CachedPlugin:
    """A loaded plugin, and the state of the files from which it was loaded."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        directory = DirectorySnapshot.read(str(plugin.root))
        configs = [path for name in CONFIG_NAMES if (path := plugin.root / name).is_file()]
        # If there is only one, the plugin itself checks whether its content has changed.
        others = configs if len(configs) > 1 else []
        self._seen: list[FileSnapshot | DirectorySnapshot] = [
            directory,
            *(FileSnapshot.read(str(path), MAX_CONFIG_BYTES + 1) for path in others),
        ]

    def is_current(self) -> bool:
        """Return whether certainly no file has changed."""
        return all(seen.is_surely_current() for seen in self._seen)


# Plugins by the absolute path that was passed to `load_cached`.
_cached_plugins: dict[str, _CachedPlugin] = {}
_MAX_CACHED = 100


def _is_bare_package(name: str) -> bool:
    """Return whether a subdirectory of the working directory is an importable package without a config file."""
    if not name.isidentifier() or config_file_in(Path(name)) is not None:
        return False
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None and Path(spec.origin).parent == Path(name).absolute()


def with_config_line(error: ConfigError, name: str, config_path: Path | str | None) -> ConfigError:
    """Return the error of an invalid entrypoint, with the file and line that define the entrypoint.

    Args:
        error: What is wrong with the entrypoint.
        name: The action's name.
        config_path: The plugin's config file, if it has one.
    """
    text = f"action {name!r}: {error}"
    if config_path is None:
        return ConfigError(text)
    from synapse_runtime.plugins.manifest import line_of

    with contextlib.suppress(OSError):  # on a worker the file may not exist
        line = line_of(Path(config_path).read_text(encoding="utf-8"), ("actions", name, "entrypoint"))
        return ConfigError(text, path=config_path, line=line)
    return ConfigError(text, path=config_path)


def standard_entrypoint(text: str) -> str:
    """Return an entrypoint in the form `module:Name`.

    Example:
        >>> standard_entrypoint("plugin.train.TrainAction")
        'plugin.train:TrainAction'
    """
    if ":" in text:
        return text
    module, _, name = text.rpartition(".")
    return f"{module}:{name}"


def import_entrypoint(entrypoint: str) -> Any:
    """Import the object that an entrypoint refers to.

    Args:
        entrypoint: `module:Name` or `module.Name`; in the first form the name may contain dots.

    Raises:
        ConfigError: The module, or the name in it, does not exist; the message suggests the nearest name.
        Exception: Anything that the module raises while it is imported.
    """
    module_name, _, name = standard_entrypoint(entrypoint).partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # If a module that the plugin's module imports is missing, the error is the plugin's own.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(f"module {module_name!r} does not exist ({error})") from error
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            guess = nearest(part, [known for known in dir(value) if not known.startswith("_")])
            hint = f"; did you mean {guess!r}?" if guess else ""
            if module_name.partition(".")[0] in sys.stdlib_module_names:
                hint = "; it is a module of Python: rename that of the plugin"
            raise ConfigError(f"module {module_name!r} has no {name!r}{hint}", path=module.__file__)
        value = getattr(value, part)
    return value


def is_entrypoint(text: str) -> bool:
    """Return whether a text has the form of an entrypoint: `module:Name` or `module.Name`."""
    parts = text.replace(":", ".", 1).split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts)


def _actions_in(module: ModuleType) -> dict[str, ActionSpec]:
    from synapse_runtime.plugins.manifest import ActionSpec

    found: dict[str, ActionSpec] = {}
    for attribute, value in vars(module).items():
        own = str(getattr(value, "__module__", "")).split(".")[: module.__name__.count(".") + 1]
        if attribute.startswith("_") or ".".join(own) != module.__name__ or not actions.is_action(value):
            continue
        if isinstance(value, type) and getattr(value, "__abstractmethods__", None):
            continue
        name = actions.name_of(value)
        found[name] = ActionSpec(name=name, entrypoint=f"{module.__name__}:{attribute}")
    return found

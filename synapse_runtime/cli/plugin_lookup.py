"""Find the plugin and the action that a command line names."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_runtime.errors import ConfigError

if TYPE_CHECKING:
    from synapse_runtime.plugins.plugin import Plugin


def find_plugin(path: Path, name: str | None = None) -> Plugin:
    """Load the plugin at a path, or by its name.

    Args:
        path: The plugin's directory or config file; `.` is the nearest plugin at or above the current directory.
        name: The code that the plugin must have, or the name of an importable module.

    Raises:
        ConfigError: There is no such plugin, or it cannot be read; has the file and the line.
    """
    from synapse_runtime.plugins.discovery import config_file_in, is_plugin
    from synapse_runtime.plugins.plugin import Plugin

    here = str(path) == "."
    above = nearest_config() if here else None
    at_path = path if above is None or above.parent == Path.cwd() else above
    if name is None and here and above is None and is_plugin(path):
        raise ConfigError("the plugin in this directory is not trusted, see the warning above", path=Path.cwd())
    if name is None:
        return Plugin.load(at_path)
    if not here or above is not None or (config_file_in(path) is not None and not is_plugin(path)):
        found = Plugin.load(at_path)
        if found.manifest.code == name:
            return found
        if not here:
            raise ConfigError(f"this is plugin {found.manifest.code!r}, not {name!r}", path=found.config_path)
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does, so that a module in the current directory can be named
    return Plugin.load(name)


def nearest_config() -> Path | None:
    """Return the config file of the nearest plugin at or above the current directory, if any.

    Those that are not trusted are reported on standard error.
    """
    from synapse_runtime.cli.console import print_note
    from synapse_runtime.plugins.discovery import find_config_above

    return find_config_above(Path.cwd(), on_untrusted=lambda text: print_note(f"warning: {text}"))


def import_action(plugin: Plugin, name: str, env: Mapping[str, Any] | None = None) -> Any:
    """Import an action, with the environment variables and the working directory that it has when it runs.

    Args:
        plugin: The plugin.
        name: The name of one of its actions, or an entrypoint.
        env: Environment variables, which override those of the config file.

    Returns:
        The action's class or function.

    Raises:
        ActionNotFoundError: The plugin has no such action; lists the available ones.
        ConfigError: The entrypoint does not exist, or is not an action; has the file and the line.
        ExecutionError: Importing the module failed; its cause is the original exception.
    """
    from synapse_runtime.core.execution import process_state_for, resolve
    from synapse_runtime.core.interrupts import shielded
    from synapse_runtime.executors.local import LocalExecutor

    call = LocalExecutor(env, plugin=plugin).call(name)
    with shielded() as interrupts, process_state_for(call):
        return interrupts.call_interruptibly(lambda: resolve(call))

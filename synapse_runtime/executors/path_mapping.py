"""Map paths between caller and worker if the worker does not share the caller's file system.

Each such worker has its own copy of the plugin's directory, unlike Ray's directory of a package, which workers share:
so other workers do not see the files that an action writes. The copy is deleted when the worker exits.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace

from synapse_runtime.core.execution import ActionCall
from synapse_runtime.core.tempdirs import temporary_directory
from synapse_runtime.errors import ConfigError, ExecutionError, PluginError


@dataclass(frozen=True)
class PathMap:
    """The plugin's directory in the caller's file system and in this worker's.

    Attributes:
        caller_root: The plugin's directory in the caller's file system; None if there is no plugin, or it is installed.
        worker_root: This worker's copy of it, or an empty directory.

    Example:
        >>> path_map = PathMap("/home/ada/digits", "/tmp/synapse-plugin-1/digits")
        >>> path_map.to_worker("/home/ada/digits/plugin"), path_map.to_worker("/home/ada/other")
        ('/tmp/synapse-plugin-1/digits/plugin', None)
        >>> path_map.to_caller('File "/tmp/synapse-plugin-1/digits/plugin/train.py", line 7')
        'File "/home/ada/digits/plugin/train.py", line 7'
    """

    caller_root: str | None
    worker_root: str

    def to_worker(self, path: str | None) -> str | None:
        """Return the path in this worker of a caller's file or directory; None if it is not in the plugin."""
        if path is None or self.caller_root is None:
            return None
        if path == self.caller_root:
            return self.worker_root
        inside = self.caller_root.rstrip("/") + "/"
        return os.path.join(self.worker_root, path.removeprefix(inside)) if path.startswith(inside) else None

    def all_to_worker(self, paths: Iterable[str]) -> tuple[str, ...]:
        """Return the paths in this worker of those of the caller's paths that are in the plugin."""
        return tuple(filter(None, map(self.to_worker, paths)))

    def call(self, call: ActionCall) -> ActionCall:
        """Return the caller's call with paths of this worker."""
        return replace(
            call,
            import_root=self.to_worker(call.import_root),
            cwd=self.to_worker(call.cwd) or self.worker_root,
            config_path=self.to_worker(call.config_path),
        )

    def to_caller(self, text: str) -> str:
        """Return a text of this worker, such as a file name or a stack, with the caller's paths."""
        return text if self.caller_root is None else text.replace(self.worker_root, self.caller_root)

    def file_to_caller(self, path: str) -> str | None:
        """Return the caller's path of a file; None for a file that exists only in this worker."""
        if path.startswith(os.path.join(self.worker_root, "")):
            return self.to_caller(path) if self.caller_root is not None else None
        return None if os.path.exists(path) else path  # the file of a function that was pickled by value

    def rewrite_error(self, error: PluginError) -> None:
        """Replace this worker's paths in an error by the caller's: those of the config file, and in stacks."""
        if isinstance(error, ExecutionError):
            error.details = self.to_caller(error.details)
            if hasattr(error, "__notes__"):
                error.__notes__ = [self.to_caller(note) for note in error.__notes__]
        part: BaseException | None = error
        while part is not None:
            if isinstance(part, SyntaxError) and part.filename is not None:
                part.filename = self.to_caller(part.filename)
            part = part.__cause__
        if isinstance(error, ConfigError):
            error.args = tuple(self.to_caller(arg) if isinstance(arg, str) else arg for arg in error.args)
            if error.path is not None:
                error.path = type(error.path)(self.to_caller(os.fspath(error.path)))


def create_worker_copy(caller_root: str | None, package_dir: str | None) -> PathMap:
    """Create this worker's own copy of the plugin, which is deleted when the worker exits, even if it is killed.

    Args:
        caller_root: The plugin's directory in the caller's file system.
        package_dir: Ray's directory of the uploaded package. Workers share it, so it is removed from `sys.path`.
    """
    directory = os.path.realpath(temporary_directory("synapse-plugin-"))
    worker_root = os.path.join(directory, os.path.basename(caller_root or "") or "plugin")
    if package_dir is None:
        os.mkdir(worker_root)
    else:
        shutil.copytree(package_dir, worker_root)
        remove_import_path(package_dir)
    return PathMap(caller_root, worker_root)


def remove_import_path(directory: str) -> None:
    """Remove a directory from the import path of this process and of its child processes."""
    real = os.path.realpath(directory)
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != real]
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    left = [path for path in paths if path and os.path.realpath(path) != real]
    if left:
        os.environ["PYTHONPATH"] = os.pathsep.join(left)
    else:
        os.environ.pop("PYTHONPATH", None)

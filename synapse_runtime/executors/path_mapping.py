"""A worker that does not see the caller's disk: its own copy of the plugin's directory, and which path means what.

The copy is the worker's alone, so that what an action writes there is not seen by other workers, as Ray's directory
for a package would be, and it ends with the worker.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace

from synapse_runtime.core.execution import ActionCall
from synapse_runtime.core.output_capture import Captured
from synapse_runtime.core.tempdirs import temporary_directory
from synapse_runtime.errors import ConfigError, ExecutionError, PluginError


@dataclass(frozen=True)
class PathMap:
    """Where the caller's plugin is in this worker.

    Attributes:
        there: The plugin's directory on the caller's disk; None where there is no plugin, or it is an installed one.
        here: This worker's copy of it, or an empty directory.

    Example:
        >>> moved = PathMap("/home/ada/digits", "/tmp/synapse-plugin-1/digits")
        >>> moved.to_worker("/home/ada/digits/plugin"), moved.to_worker("/home/ada/other")
        ('/tmp/synapse-plugin-1/digits/plugin', None)
        >>> moved.to_caller('File "/tmp/synapse-plugin-1/digits/plugin/train.py", line 7')
        'File "/home/ada/digits/plugin/train.py", line 7'
    """

    caller_root: str | None
    worker_root: str

    def to_worker(self, path: str | None) -> str | None:
        """Return where a file or directory of the caller's is here; None for one that has not come along."""
        if path is None or self.caller_root is None:
            return None
        if path == self.caller_root:
            return self.worker_root
        inside = self.caller_root.rstrip("/") + "/"
        return os.path.join(self.worker_root, path.removeprefix(inside)) if path.startswith(inside) else None

    def all_to_worker(self, paths: Iterable[str]) -> tuple[str, ...]:
        """Return where those of the caller's paths are here that have come along."""
        return tuple(filter(None, map(self.to_worker, paths)))

    def call(self, call: ActionCall) -> ActionCall:
        """Return a call of the caller's with the paths that it has here."""
        return replace(
            call,
            import_root=self.to_worker(call.import_root),
            cwd=self.to_worker(call.cwd) or self.worker_root,
            config_path=self.to_worker(call.config_path),
        )

    def to_caller(self, text: str) -> str:
        """Return a text of ours, such as a file's name or a stack, with the paths that it has at the caller's."""
        return text if self.caller_root is None else text.replace(self.worker_root, self.caller_root)

    def file_to_caller(self, path: str) -> str | None:
        """Return the name that a file has at the caller's; None for one that is only here."""
        if path.startswith(os.path.join(self.worker_root, "")):
            return self.to_caller(path) if self.caller_root is not None else None
        return None if os.path.exists(path) else path  # of a function that has come along by value

    def rewrite_error(self, error: PluginError) -> None:
        """Let an error of ours name the caller's files: in what it says of the config file, in stacks."""
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

    def rewrite_captured(self, captured: Captured) -> None:
        """Let log records and warnings name the caller's files."""
        for record in captured.records:
            record.pathname = self.to_caller(record.pathname)
        captured.warnings[:] = [item._replace(filename=self.to_caller(item.filename)) for item in captured.warnings]


def create_worker_copy(there: str | None, arrived_at: str | None) -> PathMap:
    """Give this worker a directory of its own, with a copy of what has come along, until it ends, however it does.

    Args:
        there: The plugin's directory on the caller's disk.
        arrived_at: Where Ray has put the package; workers share that, so nothing is imported from there any more.
    """
    directory = os.path.realpath(temporary_directory("synapse-plugin-"))
    here = os.path.join(directory, os.path.basename(there or "") or "plugin")
    if arrived_at is None:
        os.mkdir(here)
    else:
        shutil.copytree(arrived_at, here)
        remove_import_path(arrived_at)
    return PathMap(there, here)


def remove_import_path(directory: str) -> None:
    """Take a directory out of where this process, and those that it starts, import modules from."""
    real = os.path.realpath(directory)
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != real]
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    left = [path for path in paths if path and os.path.realpath(path) != real]
    if left:
        os.environ["PYTHONPATH"] = os.pathsep.join(left)
    else:
        os.environ.pop("PYTHONPATH", None)

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

from synapse_runtime.capture import Captured
from synapse_runtime.errors import ConfigError, ExecutionError, PluginError
from synapse_runtime.execution import ActionCall
from synapse_runtime.scratch import scratch_directory


@dataclass(frozen=True)
class Relocation:
    """Where the caller's plugin is in this worker.

    Attributes:
        there: The plugin's directory on the caller's disk; None where there is no plugin, or it is an installed one.
        here: This worker's copy of it, or an empty directory.

    Example:
        >>> moved = Relocation("/home/ada/digits", "/tmp/synapse-plugin-1/digits")
        >>> moved.arrived("/home/ada/digits/plugin"), moved.arrived("/home/ada/other")
        ('/tmp/synapse-plugin-1/digits/plugin', None)
        >>> moved.told('File "/tmp/synapse-plugin-1/digits/plugin/train.py", line 7')
        'File "/home/ada/digits/plugin/train.py", line 7'
    """

    there: str | None
    here: str

    def arrived(self, path: str | None) -> str | None:
        """Return where a file or directory of the caller's is here; None for one that has not come along."""
        if path is None or self.there is None:
            return None
        if path == self.there:
            return self.here
        inside = self.there.rstrip("/") + "/"
        return os.path.join(self.here, path.removeprefix(inside)) if path.startswith(inside) else None

    def all_arrived(self, paths: Iterable[str]) -> tuple[str, ...]:
        """Return where those of the caller's paths are here that have come along."""
        return tuple(filter(None, map(self.arrived, paths)))

    def call(self, call: ActionCall) -> ActionCall:
        """Return a call of the caller's with the paths that it has here."""
        return replace(
            call,
            import_root=self.arrived(call.import_root),
            cwd=self.arrived(call.cwd) or self.here,
            config_path=self.arrived(call.config_path),
        )

    def told(self, text: str) -> str:
        """Return a text of ours, such as a file's name or a stack, with the paths that it has at the caller's."""
        return text if self.there is None else text.replace(self.here, self.there)

    def told_file(self, path: str) -> str | None:
        """Return the name that a file has at the caller's; None for one that is only here."""
        if path.startswith(os.path.join(self.here, "")):
            return self.told(path) if self.there is not None else None
        return None if os.path.exists(path) else path  # of a function that has come along by value

    def tell_of(self, error: PluginError) -> None:
        """Let an error of ours name the caller's files: in what it says of the config file, in stacks."""
        if isinstance(error, ExecutionError):
            error.details = self.told(error.details)
            if hasattr(error, "__notes__"):
                error.__notes__ = [self.told(note) for note in error.__notes__]
        part: BaseException | None = error
        while part is not None:
            if isinstance(part, SyntaxError) and part.filename is not None:
                part.filename = self.told(part.filename)
            part = part.__cause__
        if isinstance(error, ConfigError):
            error.args = tuple(self.told(arg) if isinstance(arg, str) else arg for arg in error.args)
            if error.path is not None:
                error.path = type(error.path)(self.told(os.fspath(error.path)))

    def tell_of_captured(self, captured: Captured) -> None:
        """Let log records and warnings name the caller's files."""
        for record in captured.records:
            record.pathname = self.told(record.pathname)
        captured.warnings[:] = [item._replace(filename=self.told(item.filename)) for item in captured.warnings]


def settle(there: str | None, arrived_at: str | None) -> Relocation:
    """Give this worker a directory of its own, with a copy of what has come along, until it ends, however it does.

    Args:
        there: The plugin's directory on the caller's disk.
        arrived_at: Where Ray has put the package; workers share that, so nothing is imported from there any more.
    """
    directory = os.path.realpath(scratch_directory("synapse-plugin-"))
    here = os.path.join(directory, os.path.basename(there or "") or "plugin")
    if arrived_at is None:
        os.mkdir(here)
    else:
        shutil.copytree(arrived_at, here)
        forget_import_path(arrived_at)
    return Relocation(there, here)


def forget_import_path(directory: str) -> None:
    """Take a directory out of where this process, and those that it starts, import modules from."""
    real = os.path.realpath(directory)
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != real]
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    left = [path for path in paths if path and os.path.realpath(path) != real]
    if left:
        os.environ["PYTHONPATH"] = os.pathsep.join(left)
    else:
        os.environ.pop("PYTHONPATH", None)

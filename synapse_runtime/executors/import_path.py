"""The import path of a call: a worker imports in the order in which its caller would."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from synapse_runtime.executors.path_mapping import PathMap
from synapse_runtime.plugins.module_scopes import is_installed_path

_STDLIB = sysconfig.get_path("stdlib")


class ImportPath(NamedTuple):
    """A process's own entries of `sys.path`, as absolute paths; the others are of Python and installed packages.

    Attributes:
        first: Those before Python's own, whose modules take precedence.
        last: Those after them.
    """

    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()

    @classmethod
    def of(cls, paths: Iterable[str]) -> ImportPath:
        """Return the own entries of a list of absolute paths. What does not exist is left out."""
        first: list[str] = []
        last: list[str] = []
        own = first
        for path in paths:
            if path == _STDLIB:  # entries of installed packages may be anywhere: importing Ray puts one first
                own = last
            elif not is_installed_path(path) and os.path.exists(path):
                own.append(path)
        return cls(tuple(first), tuple(last))

    def to_worker(self, path_map: PathMap) -> ImportPath:
        """Return those that a worker has which does not share the caller's file system."""
        return ImportPath(path_map.all_to_worker(self.first), path_map.all_to_worker(self.last))

    @contextlib.contextmanager
    def applied(self, root: str | None) -> Iterator[None]:
        """Apply the caller's entries to `sys.path` inside the block, in a worker.

        Entries that are added inside the block stay, as modules that stay imported may need them.

        Args:
            root: The directory of the plugin's modules, which remains the first entry.
        """
        before = list(sys.path)
        first, last = (tuple(filter(os.path.exists, paths)) for paths in self)
        own = {*first, *last}
        plugins = before[:1] if root is not None and before[:1] == [root] else []
        rest = [path for path in before[len(plugins) :] if path not in own]
        applied = sys.path[:] = [*plugins, *(path for path in first if path not in plugins), *rest, *last]
        try:
            yield
        finally:
            if sys.path == applied:
                sys.path[:] = before
            else:
                _restore(before, applied)


def _restore(before: list[str], applied: list[str]) -> None:
    """Restore `sys.path`, except for what was added to it or removed from it since it was applied."""
    now = list(sys.path)
    known = set(applied)
    kept = next((index for index, path in enumerate(now) if path in known), len(now))
    removed = known - set(now)
    sys.path[:] = [
        *now[:kept],
        *(path for path in before if path not in removed),
        *(path for path in now[kept:] if path not in known),
    ]

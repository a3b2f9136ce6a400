"""Find a plugin's config file. Standard library only, because every pytest session imports this."""

from __future__ import annotations

import re
from pathlib import Path

CONFIG_NAMES = ("config.yaml", "config.yml", "synapse.yaml", "synapse.yml")
# Many programs have a `config.yaml`; only a file with one of these keys belongs to a plugin.
_PLUGIN_KEY = re.compile(r"""^(?:\{ *)?(["']?)(?:actions|code)\1\s*:""", re.MULTILINE)
_READ_AT_MOST = 1_000_000


def config_file_in(directory: Path) -> Path | None:
    """Return the config file in this directory, preferring one that looks like a plugin's; None if there is none."""
    found = [directory / name for name in CONFIG_NAMES if (directory / name).is_file()]
    return next(filter(_looks_like_a_plugin, found), found[0] if found else None)


def is_plugin(directory: Path) -> bool:
    """Return whether this directory contains a plugin's config file."""
    found = config_file_in(directory)
    return found is not None and _looks_like_a_plugin(found)


def find_config_above(start: Path) -> Path | None:
    """Return the config file of the nearest plugin at or above `start`; None if there is none."""
    for directory in (start, *start.parents):
        for name in CONFIG_NAMES:
            path = directory / name
            if path.is_file() and _looks_like_a_plugin(path):
                return path
    return None


def _looks_like_a_plugin(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return _PLUGIN_KEY.search(file.read(_READ_AT_MOST)) is not None
    except OSError:
        return False

"""Find a plugin's config file. Standard library only, because every pytest session imports this.

A directory that is found runs code: its modules are imported before installed packages. So the search ends at the top
of the repository, and what another user could have put there is ignored.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

CONFIG_NAMES = ("config.yaml", "config.yml", "synapse.yaml", "synapse.yml")
# Names directories that may belong to, or be written by, others; separated as in PATH. `*` is all.
SAFE_DIRECTORIES = "SYNAPSE_SAFE_DIRECTORIES"
# Many programs have a `config.yaml`; only a file with one of these keys belongs to a plugin.
_PLUGIN_KEY = re.compile(r"""^(?:\{ *)?(["']?)(?:actions|code)\1\s*:""", re.MULTILINE)
MAX_CONFIG_BYTES = 1_000_000  # larger config files are refused
_REPOSITORIES = (".git", ".hg", ".svn")


def config_file_in(directory: Path) -> Path | None:
    """Return the config file in this directory, preferring one that looks like a plugin's; None if there is none."""
    found = [directory / name for name in CONFIG_NAMES if (directory / name).is_file()]
    return next(filter(_looks_like_a_plugin, found), found[0] if found else None)


def is_plugin(directory: Path) -> bool:
    """Return whether this directory contains a plugin's config file."""
    found = config_file_in(directory)
    return found is not None and _looks_like_a_plugin(found)


def find_config_above(
    start: Path,
    *,
    top: Path | None = None,
    owners: Collection[int] = (),
    on_untrusted: Callable[[str], object] | None = None,
) -> Path | None:
    """Return the config file of the nearest plugin at or above `start`; None if there is none.

    The search ends at the top of the repository or at `top`, whichever is higher; without both, where another file
    system begins. A file is ignored if it, or its directory, belongs to another user than this one and root, or if
    others may write to it.

    Args:
        start: A directory.
        top: A directory that the search may reach, such as pytest's root directory.
        owners: Further users who are trusted, by their ids.
        on_untrusted: Called with the reason for each file that is ignored, and how to allow it.
    """
    for directory in _directories(start, top):
        for name in CONFIG_NAMES:
            path = directory / name
            if path.is_file() and _looks_like_a_plugin(path):
                problem = _distrust(path, {os.getuid(), 0, *owners}) if hasattr(os, "getuid") else None
                if problem is None:
                    return path
                if on_untrusted is not None:
                    on_untrusted(
                        f"{path} is ignored: {problem}. If you trust it, add {directory} to the environment variable "
                        f"{SAFE_DIRECTORIES}, or name it: --path, pytest --synapse-plugin"
                    )
    return None


def repository_of(directory: Path) -> Path:
    """Return the top of the repository that contains a directory; the directory itself if it is in none."""
    directory = Path(os.path.abspath(directory))
    return next(filter(_is_repository, (directory, *directory.parents)), directory)


def _directories(start: Path, top: Path | None) -> Iterator[Path]:
    """Yield `start` and the directories above it, up to where the search ends."""
    above = [start, *start.parents]
    repository = next(filter(_is_repository, above), None)
    ends = [above.index(directory) for directory in (repository, top) if directory in above]
    if ends:
        yield from above[: max(ends) + 1]
        return
    device = None
    for directory in above:
        try:
            here = os.stat(directory).st_dev
        except OSError:  # it does not exist, or cannot be entered
            yield directory
            continue
        if device not in (None, here):
            return
        device = here
        yield directory


def _is_repository(directory: Path) -> bool:
    return any((directory / name).exists() for name in _REPOSITORIES)


def _distrust(config: Path, owners: Collection[int]) -> str | None:
    """Return why a config file is not trusted; None if it is."""
    allowed = os.environ.get(SAFE_DIRECTORIES, "").split(os.pathsep)
    if "*" in allowed:
        return None
    if any(directory and os.path.realpath(directory) == os.path.realpath(config.parent) for directory in allowed):
        return None
    for path, what in ((config, "the file"), (config.parent, "its directory")):
        try:
            status = path.stat()
        except OSError as error:
            return f"{what} cannot be examined: {error.strerror}"
        if status.st_uid not in owners:
            return f"{what} belongs to another user, {_user(status.st_uid)}"
        if status.st_mode & stat.S_IWOTH:
            return f"others may write to {what}"
        if status.st_mode & stat.S_IWGRP and not _is_private_group(status.st_gid, status.st_uid):
            return f"its group may write to {what}"
    return None


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _is_private_group(gid: int, uid: int) -> bool:
    """Return whether a group is the owner's own: systems that create one for each user let it write by default."""
    import grp

    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return False
    name = _user(uid)
    return group.gr_name == name and not set(group.gr_mem) - {name}


def _looks_like_a_plugin(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return _PLUGIN_KEY.search(file.read(MAX_CONFIG_BYTES)) is not None
    except OSError:
        return False

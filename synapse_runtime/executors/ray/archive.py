"""Archive a directory for upload: select its files and pack them into a zip file that depends on the content alone."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from synapse_runtime.errors import ConfigError
from synapse_runtime.plugins.discovery import CONFIG_NAMES

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines

# The dashboard accepts no larger request; nor should every run upload more.
LIMIT_BYTES: Final = 100_000_000
IGNORE_FILES: Final = (".gitignore", ".synapseignore", ".rayignore")  # the last one that matches wins
# Useless to a worker, so excluded regardless of the ignore files.
_EXCLUDED: Final = {
    *(".git", ".hg", ".svn", ".venv", "venv", "node_modules", ".tox", ".nox", ".ipynb_checkpoints", ".DS_Store"),
    *("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".coverage"),
}
_EXCLUDED_SUFFIXES: Final = (".pyc", ".pyo")
# What does not belong to a release: what may be secret, is built, or is of no use elsewhere.
_NOT_RELEASED: Final = (".env", ".env.*", "*.log", "*.egg-info/", "/dist/", "/build/", ".idea/", ".vscode/")
_VENV_MARKER: Final = "pyvenv.cfg"
# The time of all files in the archive, the earliest that a zip file can store: times must not affect the content.
_ZIP_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_SHOWN_FILES: Final = 5
_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Package:
    """What Ray calls a package: a zip file with a name derived from its content. Here it is in memory.

    Attributes:
        data: Its bytes.
        uri: The name under which a cluster stores it, derived from its content.
    """

    data: bytes
    uri: str


def package_of_one_file(name: str, content: bytes) -> Package:
    """Return a package with one file, created in memory without touching the file system."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(name, _ZIP_EPOCH), content)
    return _to_package(buffer.getvalue())


class Entry(NamedTuple):
    """A file to be packed, or an empty directory, whose size and modification time are 0.

    Attributes:
        name: Its path relative to the packed directory, with slashes; the path of a directory ends with a slash.
        path: Its path in the file system.
        size: Size in bytes.
        mtime_ns: Modification time in nanoseconds.
        mode: Permissions.
    """

    name: str
    path: str
    size: int
    mtime_ns: int
    mode: int


class PackageBuilder:
    """Packs one directory, and packs it again only if a file in it has changed.

    Args:
        root: The directory.
        prefix: Prefix of all names in the package, such as `synapse_runtime/`.
        always: Files and directories, relative to `root`, that are packed even if the ignore files exclude them.
        excludes: Patterns to exclude in addition to those of the ignore files, in the same syntax.
    """

    def __init__(
        self, root: Path | str, *, prefix: str = "", always: Iterable[str] = (), excludes: Iterable[str] = ()
    ) -> None:
        self._root = os.path.abspath(root)
        self._prefix = prefix
        self._always = tuple(name.strip("/") for name in always)
        self._excludes = tuple(excludes)
        self._packed: tuple[list[Entry], Package] | None = None
        self._hashed: tuple[list[Entry], str] | None = None

    def entries(self) -> list[Entry]:
        """Return the entries to pack, sorted.

        Symbolic links are followed, so that a worker finds the files that the action finds here. Links to a parent
        directory, broken links, sockets and devices are skipped.

        Raises:
            ConfigError: A directory cannot be read.
        """
        return sorted(_walk(self._root, "", _rules_above(self._root), (), self._always, self._excludes))

    def package(self) -> Package:
        """Return the package of the directory in its current state.

        Raises:
            ConfigError: The package is too large (the error lists the largest files), or a file cannot be read.
        """
        entries = self.entries()
        if self._packed is None or self._packed[0] != entries:
            self._packed = (entries, _package(self._root, self._prefix, entries))
        return self._packed[1]

    def content_hash(self) -> str:
        """Return the hash of the directory's content in its current state: see `content_hash`.

        Raises:
            ConfigError: A file cannot be read.
        """
        entries = self.entries()
        if self._hashed is None or self._hashed[0] != entries:
            files = [entry for entry in entries if not entry.name.endswith("/")]
            hashes = [(entry.name, bool(entry.mode & 0o111), _file_hash(entry.path)) for entry in files]
            self._hashed = (entries, content_hash(hashes))
        return self._hashed[1]


def release_builder(root: Path | str) -> PackageBuilder:
    """Return the builder of a plugin's release: its config file always belongs to it, what may be secret never."""
    return PackageBuilder(root, always=CONFIG_NAMES, excludes=_NOT_RELEASED)


def content_hash(files: Iterable[tuple[str, bool, str]]) -> str:
    """Return the hash of a plugin's content, which depends on its files alone: a client and a server compare it.

    It is the SHA-256 of one line per file, sorted by name: the SHA-256 of its bytes, `x` if it is executable, else `-`,
    and its name, with a space between them.

    Args:
        files: The name, with slashes; whether it is executable; the SHA-256 of its bytes in hexadecimal, of each file.

    Example:
        >>> content_hash([("config.yaml", False, "0" * 64)])[:8]
        'c2e21828'
    """
    lines = sorted(
        (name, f"{file_hash} {'x' if executable else '-'} {name}\n") for name, executable, file_hash in files
    )
    return hashlib.sha256("".join(line for _, line in lines).encode("utf-8", "surrogateescape")).hexdigest()


class _Rules(NamedTuple):
    """The patterns of an ignore file, which apply to paths below its directory."""

    directory: str
    patterns: GitIgnoreSpec


def _walk(
    directory: str,
    inside: str,
    rules: tuple[_Rules, ...],
    above: tuple[str, ...],
    always: tuple[str, ...],
    excludes: tuple[str, ...],
) -> Iterator[Entry]:
    """Yield the entries to pack from a directory.

    Args:
        directory: Its path.
        inside: Its path relative to the root, with a trailing slash; empty for the root.
        rules: The rules of its parent directories, outermost first.
        above: The resolved paths of its parent directories.
        always: What is packed even if the rules exclude it.
        excludes: Patterns that apply to the root only.
    """
    real = os.path.realpath(directory)
    if real in above:
        return
    try:
        found = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(directory, error) from error
    rules = (*rules, *_rules_of(directory))
    if excludes and not inside:
        rules = (*rules, _Rules(directory, _patterns(excludes)))
    empty = True
    for entry in found:
        name = inside + entry.name
        try:
            status, is_directory = entry.stat(), entry.is_dir()
        except OSError:  # a broken link
            continue
        included = any(name == item or name.startswith(item + "/") for item in always)
        is_parent = is_directory and any(item.startswith(name + "/") for item in always)
        excluded = _is_excluded(entry, is_directory) or _ignored(entry.path, is_directory, rules)
        if excluded and not (included or is_parent):
            continue
        empty = False
        if is_directory:
            deeper = rules
            if is_parent and not included and _ignored(entry.path, True, rules):
                deeper = (*rules, _Rules(entry.path, _patterns(["*"])))  # entered only for what `always` names below it
            yield from _walk(entry.path, name + "/", deeper, (*above, real), always, excludes)
        elif stat.S_ISREG(status.st_mode):
            yield Entry(
                name, entry.path, status.st_size, status.st_mtime_ns, 0o755 if status.st_mode & 0o111 else 0o644
            )
    if empty and inside:
        yield Entry(inside, directory, 0, 0, 0o755)


def _is_excluded(entry: os.DirEntry[str], is_directory: bool) -> bool:
    if is_directory and os.path.exists(os.path.join(entry.path, _VENV_MARKER)):
        return True
    return entry.name in _EXCLUDED or (not is_directory and entry.name.endswith(_EXCLUDED_SUFFIXES))


def _ignored(path: str, is_directory: bool, rules: tuple[_Rules, ...]) -> bool:
    """Return whether the rules exclude a path. As in git, the last matching pattern decides."""
    for directory, patterns in reversed(rules):
        name = os.path.relpath(path, directory) + ("/" if is_directory else "")
        decided = patterns.check_file(name).include
        if decided is not None:
            return decided
    return False


def _rules_of(directory: str) -> Iterator[_Rules]:
    for name in IGNORE_FILES:
        path = os.path.join(directory, name)
        if os.path.isfile(path):
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    yield _Rules(directory, _patterns(file))
            except OSError as error:
                raise ConfigError(
                    f"cannot be read: {error.strerror}; it says which files of the plugin are not uploaded: change its "
                    "permissions",
                    path=path,
                ) from error


def _rules_above(root: str) -> tuple[_Rules, ...]:
    """Return the rules of ignore files above the root, up to the repository's top level.

    Rules that exclude the root itself do not apply.
    """
    parents = [os.fspath(parent) for parent in Path(root).parents]
    top = next((index for index, parent in enumerate(parents) if os.path.exists(os.path.join(parent, ".git"))), None)
    if top is None or os.path.exists(os.path.join(root, ".git")):
        return ()
    rules = tuple(rule for parent in reversed(parents[: top + 1]) for rule in _rules_of(parent))
    return tuple(rule for rule in rules if not _ignored(root, True, (rule,)))


def _patterns(lines: Iterable[str]) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(lines)


def _package(root: str, prefix: str, entries: list[Entry]) -> Package:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in entries:
            info = zipfile.ZipInfo(prefix + entry.name, _ZIP_EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3  # Unix, so that permissions are kept
            info.external_attr = entry.mode << 16
            info.file_size = entry.size
            if entry.name.endswith("/"):
                archive.writestr(info, b"")
                continue
            try:
                with open(entry.path, "rb") as source, archive.open(info, "w") as target:
                    for piece in iter(partial(source.read, _READ_BYTES), b""):
                        target.write(piece)
                        if buffer.tell() > LIMIT_BYTES:
                            raise _TooLarge
            except OSError as error:
                raise _unreadable(entry.path, error) from error
            except _TooLarge:
                break
        else:
            archive.close()
            data = buffer.getvalue()
            if len(data) <= LIMIT_BYTES:
                return _to_package(data)
    raise _too_large(root, entries)


def _file_hash(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _to_package(data: bytes) -> Package:
    return Package(data, f"gcs://_ray_pkg_{hashlib.sha1(data, usedforsecurity=False).hexdigest()}.zip")


class _TooLarge(Exception):
    """The zip file exceeds the limit."""


def _too_large(root: str, entries: list[Entry]) -> ConfigError:
    largest = sorted(entries, key=lambda entry: -entry.size)[:_SHOWN_FILES]
    width = max(len(readable_size(entry.size)) for entry in largest)
    listed = "\n".join(f"  {readable_size(entry.size):>{width}}  {entry.name}" for entry in largest)
    whole = readable_size(sum(entry.size for entry in entries))
    return ConfigError(
        f"the plugin is too large to upload: {whole} in {len(entries)} files, more than {readable_size(LIMIT_BYTES)} "
        "when compressed. Exclude files that the action does not need in .rayignore or .gitignore, or read large files "
        f"from shared storage. Largest files:\n{listed}",
        path=root,
    )


def _unreadable(path: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot be read, so the plugin cannot be uploaded: {error.strerror}; exclude it in .rayignore if not needed",
        path=path,
    )


def readable_size(size: float) -> str:
    """Return a number of bytes as readable text.

    Example:
        >>> readable_size(987), readable_size(1_234_567)
        ('987 B', '1.2 MB')
    """
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"

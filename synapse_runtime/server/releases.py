"""Plugins that can be run: directories, read live, and uploaded releases; their files, actions and content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from synapse_runtime.errors import ConfigError, nearest
from synapse_runtime.executors.ray.archive import PackageBuilder, content_hash, release_builder
from synapse_runtime.plugins.discovery import config_file_in
from synapse_runtime.plugins.manifest import Manifest
from synapse_runtime.plugins.plugin import Plugin
from synapse_runtime.server.store import PluginRow, ReleaseExists, ReleaseRow, Store, StoreUnavailable
from synapse_runtime.server.wire import ApiError

MAX_UPLOAD_BYTES: Final = 100_000_000
MAX_UNPACKED_BYTES: Final = 500_000_000
MAX_FILES: Final = 10_000
_READ_BYTES = 1 << 20
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# What the two spellings of an action's name are called; a client may send either.
_ALIASES: Final = {"infer": "inference", "deploy": "deployment"}
_SPELLINGS: Final = _ALIASES | {name: alias for alias, name in _ALIASES.items()}
INFERENCE: Final = ("inference", "infer")


class BadArchive(Exception):
    """An uploaded zip file is refused; the message says why."""


@dataclass(frozen=True)
class Upload:
    """What a client publishes.

    Attributes:
        plugin: The plugin's code.
        version: The version.
        debug: Whether it is a debug release, which replaces any of the same version.
        config: The content of the config file, if the client has sent it.
        requirements: Packages that it needs, if the client has sent them.
        archive: The zip file.
    """

    plugin: str
    version: str
    debug: bool
    config: dict[str, Any] | None
    requirements: list[str] | None
    archive: IO[bytes]


class Releases:
    """The plugins of a server.

    Args:
        store: The store.
        data: The data directory, in which uploaded releases are unpacked.
        directories: Plugin directories that are read live.

    Raises:
        ConfigError: A directory has no valid config file, or two have the same code.
    """

    def __init__(self, store: Store, data: Path, directories: Iterable[Path] = ()) -> None:
        self._store = store
        self._data = data / "releases"
        self._data.mkdir(exist_ok=True, mode=0o700)
        self._live: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._builders: dict[Path, PackageBuilder] = {}
        for directory in directories:
            self._add_live(directory)

    @property
    def live(self) -> dict[str, Path]:
        """The directories that are read live, by the plugin's code."""
        return dict(self._live)

    def _add_live(self, directory: Path) -> None:
        plugin = Plugin.load(directory)
        root, code = plugin.root, plugin.manifest.code or plugin.root.name
        if code in self._live:
            raise ConfigError(f"its code {code!r} is also that of the plugin in {self._live[code]}", path=root)
        self._live[code] = root
        self._live_release(code)

    def in_directory(self, code: str, path: Path) -> ReleaseRow:
        """Return the release of a plugin in any directory of this machine, as it is now.

        Args:
            code: The plugin's code.
            path: Its directory or config file.

        Raises:
            ApiError: 409; it cannot be read.
        """
        return self._live_release(code, path)

    def _live_release(self, code: str, path: Path | None = None) -> ReleaseRow:
        """Return the release of a live plugin, as its directory is now."""
        try:
            plugin = Plugin.load_cached(path or self._live[code])
            root, manifest = plugin.root, plugin.manifest
            content = self.content_of(root)
        except (ConfigError, OSError) as error:
            raise ApiError(409, f"the plugin {code!r} cannot be read: {error}") from error
        row = self._put_plugin(code, manifest)
        known = self._store.releases(plugin_id=row.id, version=_version(manifest), is_live=True)
        if known and known[0].content == content and known[0].directory == str(root):
            return known[0]
        return self._store.put_release(
            row.id,
            _version(manifest),
            is_live=True,
            directory=str(root),
            content=content,
            config=_config_of(manifest),
        )

    def _put_plugin(self, code: str, manifest: Manifest) -> PluginRow:
        known = self._store.plugin(code)
        values: dict[str, Any] = {
            "name": manifest.name or code,
            "category": str(manifest.category or "custom"),
            "description": manifest.description,
        }
        if known is not None and all(getattr(known, name) == value for name, value in values.items()):
            return known
        row = self._store.put_plugin(code, **values)
        assert row is not None
        return row

    def content_of(self, directory: Path) -> str:
        """Return the content hash of a directory, without the files that its ignore files exclude."""
        with self._lock:
            builder = self._builders.setdefault(directory, release_builder(directory))
        return builder.content_hash()

    def find(self, plugin: str, version: str | None, *, debug: bool = False) -> ReleaseRow:
        """Return the release to run.

        Args:
            plugin: The plugin's code or id.
            version: The version of an uploaded release. Without it, the live plugin, else the newest release.
            debug: Whether a debug release may be taken without naming its version.

        Raises:
            ApiError: 404; there is none. The message lists what there is.
        """
        row = self._store.plugin(plugin)
        if row is None:
            known = [found.code for found in self._store.plugins()]
            guess = nearest(plugin, known)
            hint = f"; did you mean {guess!r}?" if guess else f"; it has {', '.join(known) or 'none'}"
            raise ApiError(404, f"this server has no plugin {plugin!r}{hint}")
        if version is None and row.code in self._live:
            return self._live_release(row.code)
        uploaded = self._store.releases(plugin_id=row.id, is_live=False)
        if version is not None:
            for release in uploaded:
                if release.version == version:
                    return release
            known = [release.version for release in uploaded]
            raise ApiError(
                404, f"plugin {row.code!r} has no uploaded release {version!r}; it has {', '.join(known) or 'none'}"
            )
        for release in uploaded:
            if debug or not release.debug:
                return release
        if uploaded:
            raise ApiError(404, f"plugin {row.code!r} has only debug releases: name a version, or set debug to true")
        raise ApiError(404, f"plugin {row.code!r} has no release; publish one with `synapse plugin publish`")

    def action_of(self, release: ReleaseRow, action: str) -> str:
        """Return the name of an action of a release, in the spelling of its config file.

        Raises:
            ApiError: 404; there is none. The message lists those of the release.
        """
        names = self.actions_of(release)
        for name in (action, _SPELLINGS.get(action, action)):
            if name in names:
                return name
        guess = nearest(action, names)
        hint = f"; did you mean {guess!r}?" if guess else f"; it has {', '.join(names) or 'none'}"
        raise ApiError(404, f"plugin {release.code!r} {release.version} has no action {action!r}{hint}")

    def actions_of(self, release: ReleaseRow) -> list[str]:
        """Return the names of a release's actions."""
        try:
            return [*Plugin.load_cached(self.directory_of(release)).manifest.actions]
        except ConfigError as error:
            raise ApiError(409, f"the plugin {release.code!r} cannot be read: {error}") from error

    def directory_of(self, release: ReleaseRow) -> Path:
        """Return the directory of a release's files."""
        return Path(release.directory) if release.directory else self.unpacked(release.content)

    def unpacked(self, content: str) -> Path:
        """Return the directory of the files of uploaded releases with this content."""
        return self._data / content

    def archive_of(self, release: ReleaseRow) -> Path | None:
        """Return the zip file of an uploaded release."""
        path = None if release.archive is None else self._data / f"{release.archive}.zip"
        return path if path is not None and path.is_file() else None

    def publish(self, upload: Upload) -> ReleaseRow:
        """Store an uploaded release.

        Raises:
            ApiError: 400 if the zip file or its config file is refused; 409 if the version exists.
            StoreUnavailable: The data directory cannot be written to.
        """
        known = self._store.plugin(upload.plugin)
        is_new = known is None or not self._store.releases(plugin_id=known.id, version=upload.version, is_live=False)
        if not is_new and not upload.debug:
            raise _exists(upload)
        try:
            manifest, content, archive = self._store_files(upload)
        except BadArchive as error:
            raise ApiError(400, f"the uploaded file is refused: {error}") from error
        except OSError as error:
            raise StoreUnavailable(f"the data directory cannot be written to: {error.strerror}") from error
        row = self._put_plugin(upload.plugin, manifest)
        try:
            return self._store.put_release(
                row.id,
                upload.version,
                is_live=False,
                debug=upload.debug,
                content=content,
                archive=archive,
                config=upload.config or _config_of(manifest),
                requirements=upload.requirements,
            )
        except ReleaseExists:
            raise _exists(upload) from None

    def _store_files(self, upload: Upload) -> tuple[Manifest, str, str]:
        """Unpack and keep an upload; return its manifest, the hash of its content, and that of the zip file."""
        with tempfile.TemporaryDirectory(dir=self._data, prefix="upload-") as temporary:
            files = Path(temporary, "files")
            files.mkdir(mode=0o700)
            packed = Path(temporary, "release.zip")
            archive = _copy(upload.archive, packed)
            content = unpack(packed, files)
            if config_file_in(files) is None:
                if upload.config is None:
                    raise ApiError(400, "the uploaded zip file has no config.yaml, and no config was sent")
                text = json.dumps(upload.config)
                Path(files, "config.yaml").write_text(text, encoding="utf-8")
                content = content_hash(
                    [("config.yaml", False, hashlib.sha256(content.encode() + text.encode()).hexdigest())]
                )
            manifest = _manifest_of(files)
            if manifest.code and manifest.code != upload.plugin:
                raise ApiError(400, f"the config file's code is {manifest.code!r}, but plugin is {upload.plugin!r}")
            with self._lock:
                if not self.unpacked(content).exists():
                    files.rename(self.unpacked(content))
            packed.replace(self._data / f"{archive}.zip")
            return manifest, content, archive

    def remove_uploads(self) -> None:
        """Delete the files of all uploaded releases."""
        for entry in self._data.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def unpack(archive: Path, directory: Path) -> str:
    """Unpack an untrusted zip file into an empty directory and return its content hash.

    Raises:
        BadArchive: It is no zip file, too large, or has a name or a kind of file that is refused.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            names = _checked_names(members)
            return content_hash(_unpacked(opened, members, names, directory))
    except BadArchive:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError) as error:
        raise BadArchive(f"it is not a valid zip file: {error}") from error
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in _DISK_FULL:
            raise
        raise BadArchive(f"it cannot be unpacked: {getattr(error, 'strerror', None) or error}") from error


def _checked_names(members: list[zipfile.ZipInfo]) -> list[str]:
    if len(members) > MAX_FILES:
        raise BadArchive(f"it has {len(members):,} files, more than {MAX_FILES:,}")
    if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
        raise BadArchive(f"its files take more than {MAX_UNPACKED_BYTES // 1_000_000} MB when unpacked")
    names = [_checked_name(member) for member in members]
    directories = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    seen: set[str] = set()
    for name, member in zip(names, members, strict=True):
        if name in seen or (name in directories and not member.is_dir()):
            raise BadArchive(f"the name {name!r} is in it twice")
        seen.add(name)
    return names


def _checked_name(member: zipfile.ZipInfo) -> str:
    name = member.orig_filename
    parts = name.rstrip("/").split("/")
    if not name or "\0" in name or "\\" in name or name.startswith("/") or (len(name) > 1 and name[1] == ":"):
        raise BadArchive(f"the name {name!r} is not a relative path with slashes")
    if any(part in ("", ".", "..") for part in parts):
        raise BadArchive(f"the name {name!r} leaves the directory, or has empty parts")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BadArchive(f"{name!r} is a link or a special file")
    if member.flag_bits & 0x1:
        raise BadArchive(f"{name!r} is encrypted")
    return "/".join(parts)


def _unpacked(
    opened: zipfile.ZipFile, members: list[zipfile.ZipInfo], names: list[str], directory: Path
) -> Iterator[tuple[str, bool, str]]:
    """Write the files; yield name, whether it is executable, and hash of each."""
    remaining = MAX_UNPACKED_BYTES
    for member, name in zip(members, names, strict=True):
        path = directory / name
        if member.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        executable = bool(member.external_attr >> 16 & 0o111)
        digest = hashlib.sha256()
        with opened.open(member) as source, path.open("xb") as target:
            while piece := source.read(_READ_BYTES):
                remaining -= len(piece)
                if remaining < 0:
                    raise BadArchive(f"its files take more than {MAX_UNPACKED_BYTES // 1_000_000} MB when unpacked")
                digest.update(piece)
                target.write(piece)
        path.chmod(0o755 if executable else 0o644)
        yield name, executable, digest.hexdigest()


def _copy(source: IO[bytes], target: Path) -> str:
    """Copy an upload to a file and return its SHA-256."""
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as file:
        while piece := source.read(_READ_BYTES):
            size += len(piece)
            if size > MAX_UPLOAD_BYTES:
                raise BadArchive(f"it is larger than {MAX_UPLOAD_BYTES // 1_000_000} MB")
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def _manifest_of(files: Path) -> Manifest:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Plugin.load(files).manifest
    except ConfigError as error:
        text = str(error).replace(os.path.join(files, ""), "")
        raise ApiError(400, f"the plugin's config file is invalid: {text}") from error


def _version(manifest: Manifest) -> str:
    return manifest.version or "0.0.0"


def _config_of(manifest: Manifest) -> dict[str, Any]:
    actions = {
        name: {"entrypoint": spec.entrypoint, "method": spec.method, "description": spec.description}
        for name, spec in manifest.actions.items()
    }
    return {
        "name": manifest.name,
        "code": manifest.code,
        "version": _version(manifest),
        "category": str(manifest.category or "custom"),
        "description": manifest.description,
        "readme": manifest.readme,
        "actions": actions,
    }


def _exists(upload: Upload) -> ApiError:
    return ApiError(
        409,
        f"plugin {upload.plugin!r} has a release {upload.version!r}: raise the version in config.yaml, or publish a "
        "debug release",
    )

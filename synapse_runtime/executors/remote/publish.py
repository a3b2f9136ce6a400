"""Publish a plugin: pack its directory and upload it as a release."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synapse_runtime.errors import ConfigError
from synapse_runtime.executors.ray.archive import release_builder
from synapse_runtime.executors.remote.backend import Backend, Release

if TYPE_CHECKING:
    from synapse_runtime.plugins.manifest import ActionSpec, Manifest
    from synapse_runtime.plugins.plugin import Plugin

_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Archive:
    """A packed plugin.

    Attributes:
        code: The plugin's code.
        version: Its version.
        data: The zip file; the same files give the same bytes.
        content: The hash of its files, which does not depend on how they are packed.
        files: The names of its files.
        config: What the backend is told of the plugin.
    """

    code: str
    version: str
    data: bytes
    content: str
    files: tuple[str, ...]
    config: dict[str, Any]


def pack(plugin: Plugin) -> Archive:
    """Pack a plugin, without the files that `.gitignore` and `.synapseignore` exclude. Nothing is written.

    Raises:
        ConfigError: It has no directory or no code, a file cannot be read, or it is too large.
    """
    manifest = plugin.manifest
    if plugin.config_path is None:
        raise ConfigError(f"plugin {manifest.code!r} has no config file, so it cannot be published")
    if not _CODE.fullmatch(manifest.code):
        raise ConfigError("to publish the plugin, add its `code`, such as: code: digits", path=plugin.config_path)
    builder = release_builder(plugin.root)
    return Archive(
        code=manifest.code,
        version=manifest.version,
        data=builder.package().data,
        content=builder.content_hash(),
        files=tuple(entry.name for entry in builder.entries() if not entry.name.endswith("/")),
        config=config_of(manifest),
    )


def config_of(manifest: Manifest) -> dict[str, Any]:
    """Return what the backend is told of a plugin."""
    config: dict[str, Any] = {
        "name": manifest.name or manifest.code,
        "code": manifest.code,
        "version": manifest.version,
        "category": manifest.category or "custom",
        "description": manifest.description,
        "readme": manifest.readme,
    }
    if manifest.data_type:
        config["data_type"] = manifest.data_type
    if manifest.tasks:
        config["tasks"] = list(manifest.tasks)
    config["actions"] = {name: _action_config(spec) for name, spec in manifest.actions.items()}
    return config


def _action_config(spec: ActionSpec) -> dict[str, Any]:
    given = {
        "description": spec.description,
        "input_type": spec.input_type,
        "output_type": spec.output_type,
        "hyperparameters": spec.hyperparameters,
        "ui_schema": spec.ui_schema,
        "result_schema": spec.result_schema,
        "serve_options": spec.serve_options,
    }
    return {"entrypoint": spec.entrypoint.replace(":", "."), "method": spec.method} | {
        name: value for name, value in given.items() if value
    }


def publish(backend: Backend, archive: Archive, *, debug: bool) -> Release:
    """Upload a packed plugin as a release; a debug release replaces one of the same version.

    Raises:
        RemoteError: The backend refused it.
    """
    return backend.publish(
        {
            "plugin": archive.code,
            "version": archive.version,
            "config": json.dumps(archive.config, default=str),
            "debug": str(debug),
        },
        archive.data,
    )


def published(backend: Backend, archive: Archive) -> Release | None:
    """Return the release that has exactly these files; None if there is none, or the backend cannot say it."""
    if not backend.has_feature("releases"):
        return None
    return next(iter(backend.releases_with(archive.code, archive.content)), None)

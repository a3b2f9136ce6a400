"""`synapse plugin publish`: upload a plugin to a Synapse backend as a release."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synapse_runtime.cli.console import exit_on_errors, print_line, print_note, printable, to_json
from synapse_runtime.cli.options import AsJson, PluginPath
from synapse_runtime.cli.remote import Host, Insecure, Tenant, Token, TokenFile, connect, is_terminal, settings_from
from synapse_runtime.cli.usage_error import usage_error

if TYPE_CHECKING:
    from synapse_runtime.executors.remote.publish import Archive


def publish(
    path: PluginPath = Path("."),
    debug: Annotated[
        bool, typer.Option("--debug", help="Publish a debug release, which replaces one of the same version.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be uploaded, and upload and write nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before uploading.")] = False,
    host: Host = None,
    token: Token = None,
    token_file: TokenFile = None,
    tenant: Tenant = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Upload a plugin to a Synapse backend as a release.

    Files that .gitignore and .synapseignore exclude are left out, and so are .env files, logs and build output.
    """
    with exit_on_errors():
        from synapse_runtime.cli.plugin_lookup import find_plugin
        from synapse_runtime.executors.remote.publish import pack
        from synapse_runtime.executors.remote.publish import publish as upload

        archive = pack(find_plugin(path))
        facts = _facts(archive)
        if dry_run:
            _show(facts, as_json=as_json)
            return
        settings = settings_from(host, token, token_file, tenant)
        backend = connect(settings, insecure=insecure)
        if not yes:
            if not is_terminal():
                raise usage_error("required without a terminal", "--yes")
            question = f"Publish {archive.code}@{archive.version} ({len(archive.files)} files) to {settings.host}?"
            typer.confirm(question, default=True, abort=True, err=True)
        release = upload(backend, archive, debug=debug)
        if as_json:
            print_line(to_json(facts | {"id": release.id, "version": release.version, "host": settings.host}))
        else:
            kind = "debug release" if debug else "release"
            print_line(f"Published {archive.code}@{release.version} to {settings.host} ({kind} {release.id}).")


def _facts(archive: Archive) -> dict[str, Any]:
    return {
        "plugin": archive.code,
        "version": archive.version,
        "bytes": len(archive.data),
        "content": archive.content,
        "files": list(archive.files),
    }


def _show(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_line(to_json(facts))
        return
    for name in facts["files"]:
        print_line(printable(name))
    print_note(
        f"{facts['plugin']}@{facts['version']}: {len(facts['files'])} files, {facts['bytes']} bytes as zip, "
        f"content {facts['content'][:12]}; nothing was uploaded"
    )

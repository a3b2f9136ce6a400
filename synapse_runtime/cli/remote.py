"""What commands that talk to a backend share: options, settings, and the agent that is configured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synapse_runtime.cli.console import print_note
from synapse_runtime.cli.tokens import given_token

if TYPE_CHECKING:
    from synapse_runtime.executors.remote.backend import Backend
    from synapse_runtime.executors.remote.config import Settings

Host = Annotated[
    str | None,
    typer.Option("--host", metavar="URL", help="Synapse backend. Default: SYNAPSE_HOST, else that of `synapse login`."),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token", "-t", metavar="TOKEN", help="Access token. Visible in process listings: prefer --token-file."
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="File with the access token, or - for standard input."),
]
Tenant = Annotated[str | None, typer.Option("--tenant", metavar="NAME", help="Tenant of the Synapse backend.")]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Send the token without encryption, to an http:// host on another machine.")
]


def settings_from(
    host: str | None, token: str | None, token_file: Path | None, tenant: str | None, agent: str | None = None
) -> Settings:
    """Return the settings for the options of a command line.

    Raises:
        typer.BadParameter: The token cannot be read.
        RemoteError: The host is not a URL.
    """
    from synapse_runtime.executors.remote.config import resolve_settings

    return resolve_settings(
        host, given_token(token, token_file), tenant=tenant, agent=agent, on_problem=lambda text: print_note(text)
    )


def connect(settings: Settings, *, insecure: bool) -> Backend:
    """Return the backend of these settings.

    Raises:
        RemoteError: There are no credentials, or they would be sent without encryption.
    """
    from synapse_runtime.executors.remote.backend import Backend
    from synapse_runtime.executors.remote.transport import Transport

    settings.require_credentials()
    return Backend(Transport(settings, insecure=insecure))


def is_terminal() -> bool:
    """Return whether the user can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()

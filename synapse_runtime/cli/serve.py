"""`synapse serve`: a Synapse backend on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synapse_runtime.cli.console import exit_on_errors, print_line, print_note
from synapse_runtime.cli.usage_error import usage_error
from synapse_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from synapse_runtime.server.serve import Address

_RUN_IN = ("worker", "task", "job")
_NEEDS = ("fastapi", "uvicorn", "sqlalchemy", "alembic", "python_multipart")


def serve(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR]...", help="Plugin directories. An edit takes effect in the next run."),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 for a free one.")] = 8000,
    bind: Annotated[str, typer.Option("--bind", help="Address to listen on.")] = "127.0.0.1",
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Directory for jobs, releases and the access token. Default: ~/.local/state/synapse/server.",
            show_default=False,
        ),
    ] = None,
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Keep data in a temporary directory and delete it at the end.")
    ] = False,
    run_in: Annotated[
        str,
        typer.Option(
            "--run-in",
            metavar="worker|task|job",
            help="Where to run jobs: in processes of this machine, on Ray actors, or as Ray jobs.",
        ),
    ] = "worker",
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            help="Cluster address for task and job. Default: RAY_ADDRESS, else the warm cluster of "
            "`synapse cluster up`, else a new one.",
        ),
    ] = None,
    concurrency: Annotated[
        int,
        typer.Option("--concurrency", min=0, help="How many jobs run at a time; 0 for as many as there are CPUs."),
    ] = 0,
    open_page: Annotated[bool, typer.Option("--open", help="Open the server's page in a browser, logged in.")] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow --bind to an address that other machines reach, without TLS.")
    ] = False,
) -> None:
    """Run a Synapse backend on this machine until Ctrl-C."""
    if ephemeral and data is not None:
        raise usage_error("cannot be used with --ephemeral", "--data")
    if run_in not in _RUN_IN:
        raise usage_error(f"expected one of {', '.join(_RUN_IN)}, got {run_in!r}", "--run-in")
    if ray_address is not None and run_in == "worker":
        raise usage_error("requires --run-in task or job", "--ray-address")
    with exit_on_errors():
        missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(f"synapse serve needs {', '.join(missing)}: pip install 'pytest-synapse-harness[server]'")
        from synapse_runtime.server.runs import run_options
        from synapse_runtime.server.serve import ServeOptions, default_data
        from synapse_runtime.server.serve import serve as start

        kept = None if ephemeral else (data or default_data()).absolute()
        options = ServeOptions(
            directories=[path.absolute() for path in directories or []],
            port=port,
            bind=bind,
            data=kept,
            allow_remote=insecure,
            runs=run_options(run_in, ray_address, concurrency),  # type: ignore[arg-type]
        )
        if insecure:
            print_note("warning: requests are not encrypted; whoever can read them can run code on this machine")
        with contextlib.ExitStack() as stack:

            def on_ready(address: Address) -> None:
                _show(address)
                if open_page:
                    stack.enter_context(_opened_page(address))

            start(options, on_ready)


@contextlib.contextmanager
def _opened_page(address: Address) -> Iterator[None]:
    """Open the page in a browser, through a private file: other users can read a browser's command line."""
    from synapse_runtime.server.auth import write_private
    from synapse_runtime.server.serve import state_file

    file = state_file(int(address.host.rpartition(":")[2])).with_suffix(".html")
    redirect = f'<meta http-equiv="refresh" content="0; url={address.login_url}">'
    try:
        write_private(file, f"<!doctype html><title>Synapse</title>{redirect}\n")
    except OSError as error:
        print_note(f"warning: --open cannot write {file}: {error.strerror}; open the page's address instead")
    else:
        threading.Thread(target=_open_in_browser, args=(file.as_uri(),), daemon=True).start()
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _open_in_browser(url: str) -> None:
    if not webbrowser.open(url):
        print_note("warning: --open found no browser; open the page's address instead")


def _show(address: Address) -> None:
    port = address.host.rpartition(":")[2]
    print_line(f"serving on {address.host}")
    # A code is for a person, not for the log of a service.
    print_note(f"page:    {address.login_url if sys.stderr.isatty() else address.host + '/'}")
    print_note(f"log in:  synapse login --local --host {address.host}")
    if address.token_file is None:
        print_note(f"token:   in the login file of port {port}, until the server ends")
    else:
        print_note(f"token:   {address.token_file}")
    print_note("stop:    Ctrl-C")

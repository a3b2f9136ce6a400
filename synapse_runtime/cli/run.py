"""The options of `synapse plugin run`, which is implemented in `run_action.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synapse_runtime.cli.modes import mode_names
from synapse_runtime.cli.options import ActionName
from synapse_runtime.cli.params import INFER_PATH
from synapse_runtime.cli.run_action import run_action


def run(
    ctx: typer.Context,
    action: ActionName,
    plugin: Annotated[
        str | None,
        typer.Option("--plugin", "-p", help="Plugin code or module. Default: read from config.yaml."),
    ] = None,
    path: Annotated[Path, typer.Option("--path", help="Plugin directory, or one below it.")] = Path("."),
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            metavar="KEY=VALUE",
            help="Set one param; may be repeated, and overrides --params. The action's params model defines the type "
            "of VALUE: epochs=5, name=5, layers='[1, 2]', optimizer.lr=0.1.",
        ),
    ] = None,
    params: Annotated[
        str,
        typer.Option(
            "--params",
            metavar="JSON",
            help="The action's params: JSON, @FILE of JSON, YAML or TOML, or - for standard input.",
        ),
    ] = "{}",
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode",
            "-m",
            metavar="local|task|job|remote",
            help="Where to run. Prompts on a terminal; otherwise local.",
            autocompletion=mode_names,
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="NAME=VALUE",
            help="Environment variable for the action; may be repeated. Visible in process listings: "
            "use --env-file for secrets.",
        ),
    ] = None,
    env_file: Annotated[
        Path | None,
        typer.Option(
            "--env-file", help="File of environment variables: TOML, or lines of NAME=value. --env overrides it."
        ),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", help="Time limit for the action.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the result to standard output, as JSON.")] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="With --json: print the whole run, with its events, output and error, as a record."
        ),
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            help="Cluster address for task and job mode: host:port, ray://host:port, http://dashboard, or auto. "
            "Default: RAY_ADDRESS, else the warm cluster of `synapse cluster up`, else a new one for this run.",
        ),
    ] = None,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            help="Submit the job, print its id and exit (remote mode; job mode on a cluster that is already running).",
        ),
    ] = False,
    gpus: Annotated[int | None, typer.Option("--gpus", min=0, help="GPUs to request.")] = None,
    cpus: Annotated[int | None, typer.Option("--cpus", min=0, help="CPUs to request.")] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Memory to request: bytes, 2GB, 512MiB.")
    ] = None,
    resource: Annotated[
        list[str] | None,
        typer.Option("--resource", metavar="NAME=NUMBER", help="Custom resource to request; may be repeated."),
    ] = None,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug/--no-debug",
            help="Show the action's debug messages, and its traceback if it fails. With --no-debug, an error is a "
            "single line, and remote mode runs no debug release.",
        ),
    ] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if the config file has unknown fields or values.")
    ] = False,
    debug_sdk: Annotated[
        bool, typer.Option("--debug-sdk", help="Upload this runtime, too, to a cluster on other machines.")
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            help="URL of the Synapse backend (remote mode). Default: SYNAPSE_HOST, else that of `synapse login`.",
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            "-t",
            help="Access token (remote mode). Visible in process listings: use --token-file or `synapse login`.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with the access token, or - for standard input.")
    ] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Tenant (remote mode).")] = None,
    agent: Annotated[
        str | None,
        typer.Option(
            "--agent",
            metavar="ID|NAME",
            help="Agent that runs the job (remote mode). Default: SYNAPSE_AGENT_ID, else that of `synapse agent "
            "select`, else the only connected one.",
        ),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option("--version", help="Release of the plugin to run (remote mode). Default: the newest."),
    ] = None,
    publish: Annotated[
        bool,
        typer.Option(
            "--publish/--no-publish",
            help="Publish the plugin as a debug release before it runs, if the backend supports it (remote mode).",
        ),
    ] = True,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Send the token without encryption, to an http:// host on another machine."),
    ] = False,
    input_: Annotated[
        str | None,
        typer.Option(
            "--input", "-i", metavar="JSON", help="Input of an inference: the param 'input'. JSON, @FILE, or -."
        ),
    ] = None,
    infer_path: Annotated[
        str,
        typer.Option(
            "--infer-path",
            help="Endpoint path of an inference: the param 'infer_path', or 'path' if the params model has only that.",
        ),
    ] = INFER_PATH,
    language: Annotated[
        str | None,
        typer.Option("--lang", "-l", metavar="CODE", help="Language of the action's messages, such as en or ko."),
    ] = None,
) -> None:
    """Run an action of a plugin and print its result."""
    given = dict(locals())
    del given["ctx"]
    if isinstance(ctx.obj, BaseException):  # already known to be invalid: let typer report it
        raise ctx.obj
    run_action(**given | {"infer_path": infer_path if _is_given(ctx, "infer_path") else None})


def _is_given(ctx: typer.Context, parameter: str) -> bool:
    """Return whether an option was given, even with its default value."""
    source = ctx.get_parameter_source(parameter)
    return source is not None and source.name != "DEFAULT"

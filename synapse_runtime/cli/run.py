"""`synapse plugin run`: its options. The work is in `running.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synapse_runtime.cli.modes import mode_names
from synapse_runtime.cli.options import ActionName
from synapse_runtime.cli.params import INFER_PATH
from synapse_runtime.cli.run_impl import run_action


def run(
    ctx: typer.Context,
    action: ActionName,
    plugin: Annotated[
        str | None,
        typer.Option("--plugin", "-p", help="The plugin's code, or module. Default: read from config.yaml."),
    ] = None,
    path: Annotated[Path, typer.Option("--path", help="The plugin's directory.")] = Path("."),
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            metavar="KEY=VALUE",
            help="One param; may be repeated, and wins over --params. The action's params model says what VALUE means: "
            "epochs=5, name=5, layers='[1, 2]', optimizer.lr=0.1.",
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
            help="Where to run. Default: asks.",
            autocompletion=mode_names,
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="NAME=VALUE",
            help="A variable for the action; may be repeated. Whoever lists processes sees it: "
            "--env-file keeps secrets.",
        ),
    ] = None,
    env_file: Annotated[
        Path | None,
        typer.Option("--env-file", help="A file of variables: TOML, or lines of NAME=value. --env wins over it."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", help="How long the action may take.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result alone to standard output, as JSON.")
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            help="The cluster for task and job mode: host:port, ray://host:port, http://dashboard, or auto. "
            "Default: RAY_ADDRESS, else the warm cluster of `synapse cluster up`, else one for this run.",
        ),
    ] = None,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach", help="Submit the job, print its id and do not wait (job mode, on a cluster that runs already)."
        ),
    ] = False,
    gpus: Annotated[int | None, typer.Option("--gpus", min=0, help="GPUs to ask for.")] = None,
    cpus: Annotated[int | None, typer.Option("--cpus", min=0, help="CPUs to ask for.")] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Memory to ask for: bytes, 2GB, 512MiB.")
    ] = None,
    resource: Annotated[
        list[str] | None,
        typer.Option("--resource", metavar="NAME=NUMBER", help="A custom resource to ask for; may be repeated."),
    ] = None,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug/--no-debug",
            help="Show the action's messages of level debug, and its traceback when it fails. Without, an error is one "
            "line.",
        ),
    ] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a config file with fields or values that nobody knows.")
    ] = False,
    debug_sdk: Annotated[
        bool, typer.Option("--debug-sdk", help="Let this runtime travel too, to a cluster on other machines.")
    ] = False,
    host: Annotated[str | None, typer.Option("--host", help="The Synapse API's host (remote mode).")] = None,
    token: Annotated[str | None, typer.Option("--token", "-t", help="An access token (remote mode).")] = None,
    input_: Annotated[
        str | None,
        typer.Option(
            "--input", "-i", metavar="JSON", help="What infer is to look at: the param 'input'. JSON, @FILE, or -."
        ),
    ] = None,
    infer_path: Annotated[
        str,
        typer.Option(
            "--infer-path",
            help="Endpoint path of infer: the param 'infer_path', or 'path' where the params model has only that.",
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
    if isinstance(ctx.obj, BaseException):  # this command line has been refused already; typer is to tell
        raise ctx.obj
    run_action(**given | {"infer_path": infer_path if _is_given(ctx, "infer_path") else None})


def _is_given(ctx: typer.Context, parameter: str) -> bool:
    """Tell whether an option was given, be it with its default value."""
    source = ctx.get_parameter_source(parameter)
    return source is not None and source.name != "DEFAULT"

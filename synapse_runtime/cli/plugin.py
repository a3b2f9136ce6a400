"""`synapse plugin …`: what one does with a plugin."""

from __future__ import annotations

import contextlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synapse_runtime.cli.console import exit_on_errors, note, note_unknown, only_results_on_stdout, show_run
from synapse_runtime.cli.job import leave_or_stop, result_command
from synapse_runtime.errors import ConfigError, nearest

if TYPE_CHECKING:
    from synapse_runtime.plugin import Plugin

app = typer.Typer(help="Work with a plugin.", no_args_is_help=True, rich_markup_mode=None)

_MODES = ("local", "task", "job", "remote")


@app.callback()
def _plugin() -> None:
    """Work with a plugin."""


@app.command()
def run(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="The action to run, such as train.")],
    plugin: Annotated[
        str | None,
        typer.Option("--plugin", "-p", help="The plugin's code, or module. Default: read from config.yaml."),
    ] = None,
    path: Annotated[Path, typer.Option("--path", help="The plugin's directory.")] = Path("."),
    params: Annotated[str, typer.Option("--params", metavar="JSON", help="The action's params.")] = "{}",
    mode: Annotated[
        str | None,
        typer.Option("--mode", "-m", metavar="local|task|job|remote", help="Where to run. Default: asks."),
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
        str | None, typer.Option("--input", "-i", metavar="JSON", help="Input of infer: the param 'input'.")
    ] = None,
    infer_path: Annotated[str, typer.Option("--infer-path", help="Endpoint path of infer.")] = "/",
) -> None:
    """Run an action of a plugin and print its result."""
    values = _object(params, "--params")
    if input_ is not None:
        values["input"] = _json(input_, "--input")
    if infer_path != "/":
        values["infer_path"] = infer_path
    if timeout is not None and not timeout > 0:
        raise typer.BadParameter(f"a positive number of seconds is wanted, not {timeout:g}", param_hint="--timeout")
    asked = _resources(cpus, gpus, memory, resource or [])
    if detach and (mode or "").strip().lower() != "job":
        raise typer.BadParameter("only a job goes on by itself: give --mode job too", param_hint="--detach")
    with exit_on_errors(debug=debug):
        variables = _environment(env or [], env_file)
        found = _find_plugin(plugin, path)
        note_unknown(found.manifest, strict=strict)
        found.entrypoint(action)  # a wrong name is told before anybody is asked anything
        mode = _mode(mode)
        options: dict[str, Any] = {"env": variables, "plugin": found, "timeout": timeout}
        if mode != "local":
            options |= {"ray_address": ray_address, "debug_sdk": debug_sdk, **asked}
        _note_unused(mode, remote=bool(host or token), ray=bool(ray_address or asked), sdk=debug_sdk)
        fetch = result_command(ray_address, path)
        if detach:
            _submit(action, values, options, fetch)
            return
        if mode != "local":
            from synapse_runtime.executors.ray.cluster import describe

            note(f"cluster: {describe(ray_address)}")
        if mode == "job" and sys.stdin.isatty() and sys.stderr.isatty():
            options["leave_running"] = partial(leave_or_stop, fetch=fetch)
        _run(action, values, mode, options, as_json=as_json, debug=debug)


def _submit(action: str, values: dict[str, Any], options: dict[str, Any], fetch: str) -> None:
    """Submit a job that outlives this command, and print its id."""
    from synapse_runtime.executors.ray import RayJobsApiExecutor

    job_id = RayJobsApiExecutor(**options, start_cluster=False).submit(action, values)
    typer.echo(job_id)
    note(f"its result: {fetch} {job_id}")


def _run(
    action: str, values: dict[str, Any], mode: str, options: dict[str, Any], *, as_json: bool, debug: bool
) -> None:
    from synapse_runtime.loggers import ConsoleLogger
    from synapse_runtime.runner import executor_class, live_console

    with contextlib.ExitStack() as stack:
        results = stack.enter_context(only_results_on_stdout()) if as_json else sys.stdout
        console = ConsoleLogger(sys.stderr if as_json else None, debug=debug)
        executor = stack.enter_context(executor_class(mode)(**options, logger=console))
        outcome = executor.run(action, values, **live_console(mode, console))
        show_run(outcome, results, as_json=as_json, debug=debug)


def _note_unused(mode: str, *, remote: bool, ray: bool, sdk: bool) -> None:
    """Tell of options that were given and change nothing in this mode."""
    if remote:
        note(f"--host and --token are for remote mode; {mode} mode does not use them")
    if ray and mode == "local":
        note(
            "--ray-address, --cpus, --gpus, --memory and --resource are for task and job mode; local mode does not use "
            "them"
        )
    if sdk and mode == "local":
        note("--debug-sdk is for task and job mode; local mode runs this very runtime")


def _mode(given: str | None) -> str:
    if given is None and sys.stdin.isatty() and sys.stderr.isatty():
        given = typer.prompt("Where to run: local, task or job", default="local", err=True)
    elif given is None:
        note("no --mode given: running in local mode")
        given = "local"
    mode = str(given).strip().lower()
    if mode == "remote":
        raise typer.BadParameter(
            "running through a Synapse backend is not available yet; choose local, task or job",
            param_hint="--mode",
        )
    if mode not in _MODES:
        guess = nearest(mode, _MODES)
        hint = f" Did you mean {guess!r}?" if guess else ""
        raise typer.BadParameter(f"there is no mode {given!r}.{hint} Choose local, task or job.", param_hint="--mode")
    return mode


def _find_plugin(name: str | None, path: Path) -> Plugin:
    """Load the plugin: the one that was named, or the one at the path, or the nearest above where we stand."""
    from synapse_runtime.locate import config_in, plugin_above
    from synapse_runtime.plugin import Plugin

    here = str(path) == "."
    above = plugin_above(Path.cwd()) if here and config_in(path) is None else None
    at_path = above or path
    if name is None:
        return Plugin.load(at_path)
    if not here or above is not None or config_in(path) is not None:
        found = Plugin.load(at_path)
        if found.manifest.code == name:
            return found
        if not here:
            raise ConfigError(f"this is plugin {found.manifest.code!r}, not {name!r}", path=found.config_path)
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: a module beside us can be named
    return Plugin.load(name)


def _environment(pairs: list[str], file: Path | None) -> dict[str, Any]:
    from synapse_runtime.environment import PluginEnvironment

    values = {} if file is None else PluginEnvironment.from_file(file).to_dict()
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"expected NAME=VALUE, not {name!r}", param_hint="--env")
        values[name] = value
    return values


def _resources(cpus: int | None, gpus: int | None, memory: str | None, pairs: list[str]) -> dict[str, Any]:
    """Return what is asked of the cluster, as executors take it; nothing that was not given."""
    given = {"num_cpus": cpus, "num_gpus": gpus, "memory": memory, "resources": dict(map(_resource, pairs)) or None}
    if memory is not None:
        _check_resources("--memory", memory=memory)
    return {name: value for name, value in given.items() if value is not None}


def _resource(pair: str) -> tuple[str, float]:
    name, _, text = pair.rpartition("=")
    try:
        number = float(text)
    except ValueError:
        raise typer.BadParameter(f"expected NAME=NUMBER, not {pair!r}", param_hint="--resource") from None
    _check_resources("--resource", resources={name: number})
    return name, number


def _check_resources(option: str, **asked: Any) -> None:
    from synapse_runtime.executors.ray.resources import checked_resources

    try:
        checked_resources(**asked)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _object(text: str, option: str) -> dict[str, Any]:
    value = _json(text, option)
    if not isinstance(value, dict):
        raise typer.BadParameter(
            f"a JSON object is wanted, such as '{{\"epochs\": 5}}', not {type(value).__name__}",
            param_hint=option,
        )
    return value


def _json(text: str, option: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1] if text.strip() else ""
        start = max(error.colno - 41, 0)
        shown = line[start : error.colno + 40]
        pointer = " " * (error.colno - 1 - start) + "^"
        raise typer.BadParameter(
            f"invalid JSON: {error.msg} at line {error.lineno}, column {error.colno}\n  {shown}\n  {pointer}",
            param_hint=option,
        ) from None

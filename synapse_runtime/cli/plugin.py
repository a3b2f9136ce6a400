"""`synapse plugin …`: what one does with a plugin."""

from __future__ import annotations

import contextlib
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synapse_runtime.cli import check, create, show, testing
from synapse_runtime.cli.console import exit_on_errors, note, note_unknown, only_results_on_stdout, show_run, to_json
from synapse_runtime.cli.find import find_plugin, import_action
from synapse_runtime.cli.job import leave_or_stop, result_command
from synapse_runtime.cli.options import ActionName, checked_mode, mode_names
from synapse_runtime.cli.params import INFER_PATH, GivenParams, read_json, read_pairs, read_params
from synapse_runtime.errors import ConfigError, ExecutionError

if TYPE_CHECKING:
    from pydantic import BaseModel

_ABOUT = "Make, check, look at, test and run plugins."

app = typer.Typer(help=_ABOUT, no_args_is_help=True, rich_markup_mode=None)
app.command("create")(create.create)
app.command("check", short_help="Tell all that is wrong with a plugin.")(check.check)
app.command("update-config", short_help="Bring the code's actions into the config file.")(check.update_config)
app.command("list")(show.list_plugins)
app.command("actions")(show.list_actions)
app.command("schema")(show.schema)
app.command("test", cls=testing.ForPytest, short_help="Run pytest over a plugin's tests.")(testing.run_tests)


@app.callback(help=_ABOUT)
def _plugin() -> None:
    """Hold the commands together."""


@app.command()
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
    given = GivenParams(
        whole=read_params(params),
        pairs=read_pairs(param or []),
        input=[] if input_ is None else [read_json(input_, "--input")],
        infer_path=infer_path if _is_given(ctx, "infer_path") else None,
    )
    if timeout is not None and not timeout > 0:
        raise typer.BadParameter(f"a positive number of seconds is wanted, not {timeout:g}", param_hint="--timeout")
    asked = _resources(cpus, gpus, memory, resource or [])
    if detach and (mode or "").strip().lower() != "job":
        raise typer.BadParameter("only a job goes on by itself: give --mode job too", param_hint="--detach")
    with exit_on_errors(debug=debug):
        variables = _environment(env or [], env_file)
        found = find_plugin(path, plugin)
        note_unknown(found.manifest, strict=strict)
        found.entrypoint(action)  # a wrong name is told before anybody is asked anything
        mode = _mode(mode)
        options: dict[str, Any] = {"env": variables, "plugin": found, "timeout": timeout, "language": language}
        if mode != "local":
            options |= {"ray_address": ray_address, "debug_sdk": debug_sdk, **asked}
        _note_unused(mode, remote=bool(host or token), ray=bool(ray_address or asked), sdk=debug_sdk)
        fetch = result_command(ray_address, path)
        if detach:
            _submit(action, given, options, fetch, as_json=as_json)
            return
        if mode != "local":
            from synapse_runtime.executors.ray.cluster import describe

            note(f"cluster: {describe(ray_address)}")
        if mode == "job" and sys.stdin.isatty() and sys.stderr.isatty():
            options["leave_running"] = partial(leave_or_stop, fetch=fetch)
        _run(action, given, mode, options, as_json=as_json, debug=debug)


def _is_given(ctx: typer.Context, parameter: str) -> bool:
    """Tell whether an option was given, be it with its default value."""
    source = ctx.get_parameter_source(parameter)
    return source is not None and source.name != "DEFAULT"


def _values(action: str, given: GivenParams, mode: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the action's params, read by its params model where that is needed."""
    return given.for_action(action, _model(action, mode, options) if given.needs_model else None)


def _model(action: str, mode: str, options: dict[str, Any]) -> type[BaseModel] | None:
    from synapse_runtime.action import params_model_of

    try:
        return params_model_of(import_action(options["plugin"], action, options["env"]))
    except (ConfigError, ExecutionError) as error:
        if mode != "local":  # there the run itself tells
            note(f"without the action's params model, what --param gives is JSON if it can be, else text: {error}")
        return None


def _submit(action: str, given: GivenParams, options: dict[str, Any], fetch: str, *, as_json: bool) -> None:
    """Submit a job that outlives this command, and print its id."""
    from synapse_runtime.executors.ray import RayJobsApiExecutor

    with only_results_on_stdout() as results:  # modules may print when they are imported
        values = _values(action, given, "job", options)
        job_id = RayJobsApiExecutor(**options, start_cluster=False).submit(action, values)
        results.write((to_json({"id": job_id}) if as_json else job_id) + "\n")
    note(f"its result: {fetch} {job_id}")


def _run(action: str, given: GivenParams, mode: str, options: dict[str, Any], *, as_json: bool, debug: bool) -> None:
    from synapse_runtime.loggers import ConsoleLogger
    from synapse_runtime.runner import executor_class, live_console

    with contextlib.ExitStack() as stack:
        results = stack.enter_context(only_results_on_stdout()) if as_json else sys.stdout
        values = _values(action, given, mode, options)
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
    """Return the mode that was given; else ask, or where nobody can be asked take local mode."""
    if given is None and sys.stdin.isatty() and sys.stderr.isatty():
        given = typer.prompt("Where to run: local, task or job", default="local", err=True)
    elif given is None:
        note("no --mode given: running in local mode")
        given = "local"
    return checked_mode(given)


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

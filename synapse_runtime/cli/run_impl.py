"""The work of `synapse plugin run`. It needs nothing of typer, which takes longer to import than an action to run."""

from __future__ import annotations

import contextlib
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_runtime.cli import collector
from synapse_runtime.cli.console import exit_on_errors, note, note_unknown, only_results_on_stdout, show_run, to_json
from synapse_runtime.cli.modes import checked_mode
from synapse_runtime.cli.params import GivenParams, read_json, read_pairs, read_params
from synapse_runtime.cli.plugin_lookup import find_plugin, import_action
from synapse_runtime.cli.pydantic_plugins import skip_search
from synapse_runtime.cli.usage_error import usage_error
from synapse_runtime.errors import ConfigError, ExecutionError

if TYPE_CHECKING:
    from pydantic import BaseModel


def run_action(
    action: str,
    *,
    plugin: str | None = None,
    path: Path = Path("."),
    param: list[str] | None = None,
    params: str = "{}",
    mode: str | None = None,
    env: list[str] | None = None,
    env_file: Path | None = None,
    timeout: float | None = None,
    as_json: bool = False,
    ray_address: str | None = None,
    detach: bool = False,
    gpus: int | None = None,
    cpus: int | None = None,
    memory: str | None = None,
    resource: list[str] | None = None,
    debug: bool = True,
    strict: bool = False,
    debug_sdk: bool = False,
    host: str | None = None,
    token: str | None = None,
    input_: str | None = None,
    infer_path: str | None = None,
    language: str | None = None,
) -> None:
    """Run an action and print its result.

    Args: the options of the command, by the names of its function; `infer_path` is None where it was not given.

    Raises:
        typer.BadParameter: An option is at fault.
        SystemExit: There is no result; the status tells why.
    """
    given = GivenParams(
        whole=read_params(params),
        pairs=read_pairs(param or []),
        input=[] if input_ is None else [read_json(input_, "--input")],
        infer_path=infer_path,
    )
    if timeout is not None and not timeout > 0:
        raise usage_error(f"a positive number of seconds is wanted, not {timeout:g}", "--timeout")
    asked = _resources(cpus, gpus, memory, resource or [])
    if detach and (mode or "").strip().lower() != "job":
        raise usage_error("only a job goes on by itself: give --mode job too", "--detach")
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
        if detach:
            _submit(action, given, options, _result_command(ray_address, path), as_json=as_json)
            return
        if mode != "local":
            from synapse_runtime.executors.ray.cluster.resolve import describe

            note(f"cluster: {describe(ray_address)}")
        if mode == "job" and sys.stdin.isatty() and sys.stderr.isatty():
            options["leave_running"] = partial(_leave_or_stop, fetch=_result_command(ray_address, path))
        _run(action, given, mode, options, as_json=as_json, debug=debug)


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

    collector.resume()
    with only_results_on_stdout() as results:  # modules may print when they are imported
        values = _values(action, given, "job", options)
        job_id = RayJobsApiExecutor(**options, start_cluster=False).submit(action, values)
        results.write((to_json({"id": job_id}) if as_json else job_id) + "\n")
    note(f"its result: {fetch} {job_id}")


def _run(action: str, given: GivenParams, mode: str, options: dict[str, Any], *, as_json: bool, debug: bool) -> None:
    from synapse_runtime.loggers import ConsoleLogger
    from synapse_runtime.runner import executor_class, live_console

    if mode == "local":
        skip_search(str(options["plugin"].root))
    collector.resume()
    with contextlib.ExitStack() as stack:
        results = stack.enter_context(only_results_on_stdout()) if as_json else sys.stdout
        values = _values(action, given, mode, options)
        console = ConsoleLogger(sys.stderr if as_json else None, debug=debug)
        executor = stack.enter_context(executor_class(mode)(**options, logger=console))
        outcome = executor.run(action, values, **live_console(mode, console))
        show_run(outcome, results, as_json=as_json, debug=debug)


def _result_command(ray_address: str | None, path: Path) -> str:
    """Return the command, but for the job's id, that fetches the result of a job submitted with these options."""
    import shlex

    options = [] if ray_address is None else ["--ray-address", ray_address]
    options += [] if path == Path(".") else ["--path", str(path)]
    return shlex.join(["synapse", "job", "result", *options])


def _leave_or_stop(job_id: str, *, fetch: str) -> bool:
    """Ask, after Ctrl-C, what becomes of the job, and tell how to get its result where it goes on.

    Args:
        job_id: The job.
        fetch: The command that fetches its result, but for the id.

    Returns:
        Whether it goes on.
    """
    import typer

    typer.echo(err=True)
    try:
        leave = not typer.confirm(f"Stop job {job_id}? If not, it goes on without this command", default=True, err=True)
    except typer.Abort:  # Ctrl-C again
        return False
    if leave:
        note(f"job {job_id} goes on; its result: {fetch} {job_id}")
    return leave


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
        import typer

        given = typer.prompt("Where to run: local, task or job", default="local", err=True)
    elif given is None:
        note("no --mode given: running in local mode")
        given = "local"
    return checked_mode(str(given))


def _environment(pairs: list[str], file: Path | None) -> dict[str, Any]:
    from synapse_runtime.environment import PluginEnvironment

    values = {} if file is None else PluginEnvironment.from_file(file).to_dict()
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise usage_error(f"expected NAME=VALUE, not {name!r}", "--env")
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
        raise usage_error(f"expected NAME=NUMBER, not {pair!r}", "--resource") from None
    _check_resources("--resource", resources={name: number})
    return name, number


def _check_resources(option: str, **asked: Any) -> None:
    from synapse_runtime.executors.ray.resources import checked_resources

    try:
        checked_resources(**asked)
    except ValueError as error:
        raise usage_error(str(error), option) from None

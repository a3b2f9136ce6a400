"""The implementation of `synapse plugin run`, without typer, whose import takes longer than running an action."""

from __future__ import annotations

import contextlib
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_runtime.cli import collector
from synapse_runtime.cli.console import (
    exit_on_errors,
    only_results_on_stdout,
    print_note,
    report_config_problems,
    show_run,
    to_json,
    write_record,
)
from synapse_runtime.cli.modes import checked_mode, describe_modes
from synapse_runtime.cli.params import INFER_PATH, GivenParams, read_json, read_pairs, read_params
from synapse_runtime.cli.plugin_lookup import find_plugin, import_action
from synapse_runtime.cli.tokens import given_token
from synapse_runtime.cli.usage_error import require_json, require_seconds, usage_error
from synapse_runtime.errors import ClusterWarning, ConfigError, ExecutionError
from synapse_runtime.modes import MODES, modes_requiring

if TYPE_CHECKING:
    from pydantic import BaseModel

    from synapse_runtime.executors.remote.config import Settings
    from synapse_runtime.plugins.plugin import Plugin


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
    full: bool = False,
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
    token_file: Path | None = None,
    tenant: str | None = None,
    agent: str | None = None,
    version: str | None = None,
    publish: bool = True,
    insecure: bool = False,
    input_: str | None = None,
    infer_path: str | None = None,
    language: str | None = None,
) -> None:
    """Run an action and print its result.

    Args: the options of `synapse plugin run`; `infer_path` is None if it was not given.

    Raises:
        typer.BadParameter: An option is invalid.
        SystemExit: There is no result; has the exit status for the error.
    """
    whole, file = read_params(params)
    given = GivenParams(
        whole=whole,
        file=file,
        pairs=read_pairs(param or []),
        input=[] if input_ is None else [read_json(input_, "--input")],
        infer_path=infer_path,
    )
    require_seconds(timeout, "--timeout")
    requested = _resources(cpus, gpus, memory, resource or [])
    if detach and (mode is None or not MODES[checked_mode(mode)].detached):
        raise usage_error("only jobs can be detached: add --mode job or --mode remote", "--detach")
    require_json(full=full, as_json=as_json)
    if full and detach:
        raise usage_error("a detached job has no run yet: use `synapse job result --json --full`", "--full")
    with exit_on_errors(debug=debug):
        variables = _environment(env or [], env_file)
        found = _find_plugin(path, plugin, mode)
        if not isinstance(found, str):
            report_config_problems(found.manifest, strict=strict)
            action = _spelled(action, found, mode)
            found.entrypoint(action)  # report a wrong name before prompting for the mode
        mode = _mode(mode)
        options: dict[str, Any] = {"env": variables, "plugin": found, "timeout": timeout, "language": language}
        if "cluster" in MODES[mode].requires:
            options |= {"ray_address": ray_address, "debug_sdk": debug_sdk, **requested}
        if "backend" in MODES[mode].requires:
            settings = _remote_settings(host, given_token(token, token_file), tenant, agent)
            remote = {"version": version, "publish": publish, "debug": debug, "insecure": insecure}
            options |= {**remote, "settings": settings, "on_note": print_note}
        is_remote = bool(host or token or token_file or tenant or agent or version or insecure or not publish)
        _report_unused_options(mode, remote=is_remote, ray=bool(ray_address or requested), sdk=debug_sdk)
        fetch = _result_command("--ray-address", ray_address, path)
        if "backend" in MODES[mode].requires:
            fetch = _result_command("--host", host, path)
        if detach:
            _submit(action, given, mode, options, fetch, as_json=as_json)
            return
        if "cluster" in MODES[mode].requires:
            from synapse_runtime.executors.ray.cluster.resolve import describe

            print_note(f"cluster: {describe(ray_address)}")
            warnings.simplefilter("ignore", ClusterWarning)  # the note says it
        if MODES[mode].detached and sys.stdin.isatty() and sys.stderr.isatty():
            options["leave_running"] = partial(_confirm_leave_running, fetch=fetch)
        _run(action, given, mode, options, as_json=as_json, full=full, debug=debug)


def _values(action: str, given: GivenParams, mode: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the action's params, read by its params model if needed."""
    model = _model(action, mode, options) if given.needs_model else None
    is_inference = bool(given.input) or given.infer_path is not None
    if model is None and is_inference and "backend" in MODES[mode].requires:
        inference = {"path": given.infer_path or INFER_PATH}  # the platform's names
        if given.input:
            inference["input"] = given.input[0]
        return inference | replace(given, input=[], infer_path=None).for_action(action, None)
    return given.for_action(action, model)


def _model(action: str, mode: str, options: dict[str, Any]) -> type[BaseModel] | None:
    from synapse_runtime.action import params_model_of

    if isinstance(options["plugin"], str):  # only the backend has it
        return None
    try:
        return params_model_of(import_action(options["plugin"], action, options["env"]))
    except (ConfigError, ExecutionError) as error:
        if not MODES[mode].in_process:  # in local mode the run itself reports the error
            print_note(
                "cannot import the action's params model, so each --param is read as JSON if possible, else as text: "
                f"{error}"
            )
        return None


def _submit(action: str, given: GivenParams, mode: str, options: dict[str, Any], fetch: str, *, as_json: bool) -> None:
    """Submit a job that outlives this command, and print its id."""
    from synapse_runtime.runner import executor_class

    collector.resume()
    if "cluster" in MODES[mode].requires:
        options = {**options, "start_cluster": False}
    with only_results_on_stdout() as results:  # modules may print when they are imported
        values = _values(action, given, mode, options)
        executor: Any = executor_class(mode)(**options)
        job_id = executor.submit(action, values)
        results.write((to_json({"id": job_id}) if as_json else job_id) + "\n")
    print_note(f"to get its result: {fetch} {job_id}")


def _run(
    action: str, given: GivenParams, mode: str, options: dict[str, Any], *, as_json: bool, full: bool, debug: bool
) -> None:
    from synapse_runtime.loggers import ConsoleLogger
    from synapse_runtime.runner import executor_class, live_console

    collector.resume()
    with contextlib.ExitStack() as stack:
        results = stack.enter_context(only_results_on_stdout()) if as_json else sys.stdout
        values = _values(action, given, mode, options)
        console = ConsoleLogger(sys.stderr if as_json else None, debug=debug)
        executor = stack.enter_context(executor_class(mode)(**options, logger=console))
        outcome = executor.run(action, values, **live_console(mode, console))
        if full:
            from synapse_runtime.executors.worker import hidden_values
            from synapse_runtime.redaction import masked_names

            write_record(outcome, results, hidden_values(executor.call(action, values), masked_names()))
        for place in given.lines(outcome.error):
            print_note(place)
        show_run(outcome, None if full else results, as_json=as_json, debug=debug)


def _find_plugin(path: Path, name: str | None, mode: str | None) -> Plugin | str:
    """Return the plugin; in remote mode the code of one that is not here, and which the backend may have."""
    if mode is None or name is None or "backend" not in MODES[checked_mode(mode)].requires:
        return find_plugin(path, name)
    try:
        return find_plugin(path, name)
    except ConfigError:
        if str(path) != "." or not name.replace("-", "_").isidentifier():
            raise
        return name


def _spelled(action: str, plugin: Plugin, mode: str | None) -> str:
    """Return the action's name; in remote mode, where the platform has other names, as the config file spells it."""
    if mode is None or action in plugin.manifest.actions or "backend" not in MODES[checked_mode(mode)].requires:
        return action
    from synapse_runtime.executors.remote.backend import wire_name

    return next((name for name in plugin.manifest.actions if wire_name(name) == wire_name(action)), action)


def _remote_settings(host: str | None, token: str | None, tenant: str | None, agent: str | None) -> Settings:
    from synapse_runtime.executors.remote.config import resolve_settings

    return resolve_settings(host, token, tenant=tenant, agent=agent, on_problem=print_note)


def _result_command(option: str, address: str | None, path: Path) -> str:
    """Return the command, without the job's id, that prints the result of a job submitted with these options."""
    import shlex

    options = [] if address is None else [option, address]
    options += [] if path == Path(".") else ["--path", str(path)]
    return shlex.join(["synapse", "job", "result", *options])


def _confirm_leave_running(job_id: str, *, fetch: str) -> bool:
    """Ask, after Ctrl-C, whether to stop the job; if not, show how to get its result.

    Args:
        job_id: The job.
        fetch: The command that prints its result, without the job's id.

    Returns:
        Whether the job keeps running.
    """
    import typer

    typer.echo(err=True)
    try:
        leave = not typer.confirm(
            f"Stop job {job_id}? Otherwise it keeps running without this command", default=True, err=True
        )
    except typer.Abort:  # Ctrl-C again
        return False
    if leave:
        print_note(f"job {job_id} keeps running; to get its result: {fetch} {job_id}")
    return leave


def _report_unused_options(mode: str, *, remote: bool, ray: bool, sdk: bool) -> None:
    """Print a note about options that were passed but have no effect in this mode."""
    if remote and "backend" not in MODES[mode].requires:
        print_note(f"--host and --token are for remote mode; {mode} mode ignores them, and what belongs to them")
    if "cluster" in MODES[mode].requires:
        return
    modes = describe_modes(modes_requiring("cluster"))
    if ray:
        print_note(f"--ray-address, --cpus, --gpus, --memory and --resource are for {modes}; {mode} mode ignores them")
    if sdk:
        print_note(f"--debug-sdk is for {modes}; {mode} mode ignores it")


def _mode(given: str | None) -> str:
    """Return the given mode. Without one, prompt on a terminal; otherwise use local mode."""
    if given is None and sys.stdin.isatty() and sys.stderr.isatty():
        import typer

        *names, last = MODES
        given = typer.prompt(f"Where to run: {', '.join(names)} or {last}", default="local", err=True)
    elif given is None:
        print_note("no --mode given: running in local mode")
        given = "local"
    return checked_mode(str(given))


def _environment(pairs: list[str], file: Path | None) -> dict[str, Any]:
    from synapse_runtime.environment import PluginEnvironment

    values = {} if file is None else PluginEnvironment.from_file(file).to_dict()
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise usage_error(f"expected NAME=VALUE, got {name!r}", "--env")
        values[name] = value
    return values


def _resources(cpus: int | None, gpus: int | None, memory: str | None, pairs: list[str]) -> dict[str, Any]:
    """Return the resources to request as keyword arguments of executors, without those that were not given."""
    given = {"num_cpus": cpus, "num_gpus": gpus, "memory": memory, "resources": dict(map(_resource, pairs)) or None}
    if memory is not None:
        _check_resources("--memory", memory=memory)
    return {name: value for name, value in given.items() if value is not None}


def _resource(pair: str) -> tuple[str, float]:
    name, _, text = pair.rpartition("=")
    try:
        number = float(text)
    except ValueError:
        raise usage_error(f"expected NAME=NUMBER, got {pair!r}", "--resource") from None
    _check_resources("--resource", resources={name: number})
    return name, number


def _check_resources(option: str, **requested: Any) -> None:
    from synapse_runtime.executors.ray.resources import checked_resources

    try:
        checked_resources(**requested)
    except ValueError as error:
        raise usage_error(str(error), option) from None

"""`synapse cluster …`: the warm cluster of this machine, which tests and commands use automatically."""

from __future__ import annotations

import re
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from synapse_runtime.cli.console import exit_on_errors, print_line, print_note, to_json
from synapse_runtime.cli.options import AsJson
from synapse_runtime.cli.usage_error import require_seconds

app = typer.Typer(
    help="Start, inspect and stop the warm cluster of this machine, which `pytest --synapse-mode=task` and "
    "`synapse plugin run` use.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_FOLLOW_SECONDS = 0.2


@app.callback()
def _cluster() -> None:
    """Start, inspect and stop the warm cluster of this machine."""


@app.command("start", hidden=True)
@app.command()
def up(
    cpus: Annotated[
        int | None, typer.Option("--cpus", min=1, help="Number of CPUs. Default: those of this machine.")
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", min=0, help="Number of GPUs; they need not be real. Default: those of this machine."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="Amount of memory, such as 8GB. Default: what Ray detects."),
    ] = None,
    idle_timeout: Annotated[
        str,
        typer.Option(
            "--idle-timeout",
            metavar="TIME",
            help="Shut down after this time without use, such as 90s, 30m, 2h; 'never' keeps it until `down`.",
        ),
    ] = "30m",
    as_json: AsJson = False,
) -> None:
    """Start the warm cluster and wait until it is ready."""
    idle_seconds = None if idle_timeout == "never" else _seconds(idle_timeout)
    size = None if memory is None else _bytes(memory)
    with exit_on_errors():
        from synapse_runtime.executors.ray.cluster.resolve import require_ray

        require_ray()
        from synapse_runtime.executors.ray.cluster.control_socket import ClusterOptions
        from synapse_runtime.executors.ray.cluster.persistent import unmet_requirement
        from synapse_runtime.executors.ray.cluster.persistent import up as start

        options = ClusterOptions(num_cpus=cpus, num_gpus=gpus, memory=size, idle_seconds=idle_seconds)
        facts, is_new = start(options)
        if not is_new:
            print_note("a warm cluster is already running")
        if as_json:
            print_line(to_json(facts))
        else:
            _show(facts)
        reason = None if is_new else unmet_requirement(facts, num_cpus=cpus, num_gpus=gpus, memory=size)
        if reason is not None:
            print_note(f"the running cluster does not fit: {reason}; run `synapse cluster down` first")
            raise typer.Exit(3)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show the warm cluster's status. Exit status 3 if there is none."""
    with exit_on_errors():
        from synapse_runtime.executors.ray.cluster.persistent import status as ask

        facts = ask()
        if as_json:
            print_line(to_json(facts))
        elif facts is None:
            print_note("there is no warm cluster; `synapse cluster up` starts one")
        else:
            _show(facts)
        if facts is None:
            raise typer.Exit(3)


@app.command("stop", hidden=True)
@app.command()
def down(as_json: AsJson = False) -> None:
    """Shut down the warm cluster.

    It is shut down even if it is in use. Waits until its processes and files are gone.
    """
    with exit_on_errors():
        from synapse_runtime.executors.ray.cluster.persistent import down as end

        ended = end()
        print_note("the warm cluster was shut down" if ended else "there is no warm cluster")
        if as_json:
            print_line(to_json({"ended": ended}))


@app.command()
def logs(
    name: Annotated[
        str | None, typer.Argument(metavar="FILE", help="Log file, or the start of its name. Default: list all.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing until the cluster has shut down.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the log files of the warm cluster, or print one of them."""
    if follow and as_json:
        raise typer.BadParameter(
            "--json prints the whole log at once and cannot be used with --follow", param_hint="--json"
        )
    with exit_on_errors():
        from synapse_runtime.errors import ClusterError
        from synapse_runtime.executors.ray.cluster.persistent import status as ask

        facts = ask()
        if facts is None:
            raise ClusterError("there is no warm cluster; `synapse cluster up` starts one")
        found = _log_files(facts)
        if name is None and as_json:
            print_line(to_json([{"path": path, "bytes": path.stat().st_size} for path in found]))
            return
        if name is None:
            for path in found:
                print_line(f"{path.stat().st_size:>10,}  {path}")
            return
        chosen = [path for path in found if path.name == name] or [path for path in found if path.name.startswith(name)]
        if len(chosen) != 1:
            if not chosen:
                raise ClusterError(f"no log file matches {name!r}; `synapse cluster logs` lists them")
            raise ClusterError(f"{len(chosen)} log files match {name!r}: {', '.join(path.name for path in chosen)}")
        if as_json:
            text = chosen[0].read_text(encoding="utf-8", errors="replace")
            print_line(to_json({"path": chosen[0], "text": text}))
            return
        _print(chosen[0], follow=follow)


def _show(facts: dict[str, Any]) -> None:
    resources = facts.get("resources", {})
    amounts = [f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU")]
    amounts.append(f"{resources.get('memory', 0) / 10**9:.1f} GB memory")
    began = datetime.fromtimestamp(facts["began"], UTC).astimezone()
    users = ", ".join(map(str, facts["users"]))
    limit = facts["idle_seconds"]
    lines = {
        "address": facts.get("address", "starting"),
        "dashboard": facts.get("dashboard", "starting"),
        "resources": ", ".join(amounts),
        "Ray": f"{facts['ray']}, {facts['python']}",
        "started": f"{began:%Y-%m-%d %H:%M:%S}",
        **({"used by": f"processes {users}"} if users else {"idle": _duration(facts["idle"])}),
        "shutdown": "only by `synapse cluster down`" if limit is None else f"after {_duration(limit)} without use",
        "daemon": f"process {facts['pid']}",
        "logs": facts["logs"],
    }
    for name, value in lines.items():
        print_line(f"{name:<10} {value}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def _log_files(facts: dict[str, Any]) -> list[Path]:
    files = [path for path in Path(facts["logs"]).rglob("*") if path.is_file()]
    own = Path(facts["directory"], "cluster.log")
    return [path for path in [own, *sorted(files)] if path.exists()]


def _print(path: Path, *, follow: bool) -> None:
    with path.open(encoding="utf-8", errors="replace") as file:
        while True:
            text = file.read(65536)
            sys.stdout.write(text)
            sys.stdout.flush()
            if not text and not (follow and path.exists()):
                return
            if not text:
                time.sleep(_FOLLOW_SECONDS)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip().lower())
    if match is None or not float(match[1]):
        raise typer.BadParameter(
            f"expected a time such as 90s, 30m, 2h, or 'never', got {text!r}", param_hint="--idle-timeout"
        )
    seconds = float(match[1]) * _UNITS[match[2]]
    require_seconds(seconds, "--idle-timeout")
    return seconds


def _bytes(text: str) -> int:
    from synapse_runtime.executors.ray.resources import checked_resources

    try:
        return int(checked_resources(memory=text)["memory"])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--memory") from None

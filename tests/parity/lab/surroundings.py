"""Actions that read and change process state: environment, working directory, the run's id."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from synapse_runtime.decorators import action
from synapse_runtime.errors import EnvironmentValueError


@action
def look(params: dict[str, Any], context: Any) -> dict[str, Any]:
    """Return variables, the working directory, whether a relative path resolves, and the id."""
    names = params.get("names", ())
    return {
        "ctx": {name: context.env.get(name) for name in names},
        "os": {name: os.environ.get(name) for name in names},
        "in_ctx": [name for name in names if name in context.env],
        "cwd": os.getcwd(),
        "config": Path("config.yaml").is_file(),
        "job_id": context.job_id,
        "pid": os.getpid(),
    }


@action
def convert(params: dict[str, Any], context: Any) -> dict[str, Any]:
    """Read each variable with each typed getter; an error is returned as text."""

    def got(kind: str, name: str) -> Any:
        try:
            return getattr(context.env, f"get_{kind}")(name)
        except EnvironmentValueError as error:
            return f"refused: {error}"

    return {name: {kind: got(kind, name) for kind in params["kinds"]} for name in params["names"]}


@action
def everything(params: dict[str, Any], context: Any) -> list[str]:
    """Return the variables in which `os.environ` and the context differ."""
    names = os.environ.keys() | set(context.env)
    return sorted(name for name in names if os.environ.get(name) != context.env.get_str(name))


@action
def disturb(params: dict[str, Any], context: Any) -> dict[str, Any]:
    """Change variables and the working directory; fail if requested."""
    before = dict(os.environ)
    os.environ["LEFT_BEHIND"] = "here"
    os.environ["SHARED"] = "spoiled"
    os.environ["PATH"] = "/nowhere"
    os.environ.pop("HOME", None)
    os.chdir("/")
    if params.get("fail"):
        raise ValueError("on purpose")
    return {"before": before, "pid": os.getpid()}


@action
def remain(params: dict[str, Any], context: Any) -> dict[str, Any]:
    """Return all variables and the working directory."""
    return {"variables": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid()}


@action
def write_and_read(params: dict[str, Any], context: Any) -> str:
    """Write a file at a relative path, and read it back through an absolute one."""
    path = Path(params["directory"], "note.txt")
    path.write_text(params["text"], encoding="utf-8")
    return path.resolve().read_text(encoding="utf-8")


@action
def go(params: dict[str, Any], context: Any) -> list[str]:
    """Change the working directory, remove it if requested, and return it before and after."""
    before = os.getcwd()
    os.chdir(params["directory"])
    places = [before, os.getcwd()]
    if params["remove"]:
        Path(params["directory"]).rmdir()
    return places


@action
def where(params, context):
    return importlib.import_module(params["module"]).WHERE


@action
def import_path(params, context):
    return list(sys.path)

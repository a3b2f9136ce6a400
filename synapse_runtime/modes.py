"""The modes: the places where an action can run. This is the only definition; everything else reads it.

Standard library only: pytest reads it in every session.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from synapse_runtime.executors.base import Executor

__all__ = ["MODES", "Mode", "ModeName", "UnknownModeError", "all_modes", "find_mode", "modes_requiring"]

# For type checkers: the names in `MODES`.
ModeName = Literal["local", "task", "job", "remote"]


@dataclass(frozen=True)
class Mode:
    """A place where an action can run.

    Attributes:
        name: Its name on command lines and in markers.
        location: Where actions run, in words, to follow "runs".
        executor: Its executor class, as `module:Name`.
        session: The class of what the executors of a test session share, as `module:Name`; empty if nothing.
        aliases: Other names that are accepted.
        requires: What must be available: `ray` the package, `cluster` a Ray cluster, `backend` a Synapse backend.
        transfer: How params and results reach the action and the caller: by `reference`, by `value` (pickled), or as
            `json`.
        detached: Whether `run_plugin` returns the run's id instead of waiting for its result.
        in_all_with: Modules that must be installed for it to be one of `all`.
    """

    name: str
    location: str
    executor: str
    session: str = ""
    aliases: tuple[str, ...] = ()
    requires: tuple[Literal["ray", "cluster", "backend"], ...] = ()
    transfer: Literal["reference", "value", "json"] = "value"
    detached: bool = False
    in_all_with: tuple[str, ...] = ()

    @property
    def in_process(self) -> bool:
        """Whether actions run in the caller's process."""
        return self.transfer == "reference"

    def executor_class(self) -> type[Executor]:
        """Import the executor class and return it."""
        executor: type[Executor] = _load(self.executor)
        return executor

    def session_class(self) -> Any:
        """Import the class of what the executors of a test session share and return it; None if nothing is shared."""
        return _load(self.session) if self.session else None


_RAY_SESSION = "synapse_runtime.executors.ray.session:RaySession"

MODES: Final[dict[str, Mode]] = {
    mode.name: mode
    for mode in (
        Mode("local", "in this process", "synapse_runtime.executors.local:LocalExecutor", transfer="reference"),
        Mode(
            "task",
            "on a Ray actor",
            "synapse_runtime.executors.ray.task:RayActorExecutor",
            _RAY_SESSION,
            requires=("ray", "cluster"),
        ),
        Mode(
            "job",
            "as a Ray job",
            "synapse_runtime.executors.ray.job:RayJobsApiExecutor",
            _RAY_SESSION,
            aliases=("jobs-api",),
            requires=("ray", "cluster"),
            detached=True,
        ),
        Mode(
            "remote",
            "through a Synapse backend",
            "synapse_runtime.executors.remote.executor:RemoteExecutor",
            "synapse_runtime.executors.remote.session:RemoteSession",
            requires=("backend",),
            transfer="json",
            detached=True,
            in_all_with=("httpx", "stamina", "fastapi", "uvicorn", "sqlalchemy", "alembic"),
        ),
    )
}


def all_modes() -> tuple[str, ...]:
    """Return the names that `all` stands for: those of the modes whose optional packages are installed."""
    return tuple(name for name, mode in MODES.items() if all(map(find_spec, mode.in_all_with)))


def modes_requiring(requirement: str) -> list[str]:
    """Return the names of the modes that require something, such as `ray`.

    Example:
        >>> modes_requiring("ray")
        ['task', 'job']
    """
    return [mode.name for mode in MODES.values() if requirement in mode.requires]


class UnknownModeError(ValueError):
    """A word is not the name of a mode; the text suggests the nearest and lists all."""


def find_mode(word: str) -> Mode:
    """Return the mode of this name or alias.

    Raises:
        UnknownModeError: There is none.

    Example:
        >>> find_mode("jobs-api").name
        'job'
        >>> find_mode("taks")
        Traceback (most recent call last):
        ...
        synapse_runtime.modes.UnknownModeError: unknown mode 'taks', did you mean 'task'? Choose from local, task, job,
        remote
    """
    for mode in MODES.values():
        if word == mode.name or word in mode.aliases:
            return mode
    known = [name for mode in MODES.values() for name in (mode.name, *mode.aliases)]
    near = get_close_matches(str(word).lower(), known, n=1)
    hint = f", did you mean {near[0]!r}?" if near else "."
    raise UnknownModeError(f"unknown mode {word!r}{hint} Choose from {', '.join(MODES)}")


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)

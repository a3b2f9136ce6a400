"""Every error that the runtime raises on purpose, from one root: `PluginError`.

All of them pickle: the message is the only positional argument, everything else is a plain attribute.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


class PluginError(Exception):
    """Root of all errors of this package.

    Attributes:
        details: What there is to know besides.

    Example:
        >>> str(PluginError("nothing to run"))
        'nothing to run'
    """

    details: Any

    def __init__(self, message: str = "", details: Any = None) -> None:
        super().__init__(message)
        self.details = details


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a plugin. As text: where it is, and what it is with the fix.

    Attributes:
        text: What is wrong, and the fix.
        path: The file at fault, where there is one.
        line: Line in that file, counted from 1, where it is known.
        level: `error`, or `warning` where the plugin works nevertheless.

    Example:
        >>> str(Problem("unknown field 'entrypont'; did you mean 'entrypoint'?", Path("config.yaml"), 4, "warning"))
        "config.yaml:4: unknown field 'entrypont'; did you mean 'entrypoint'?"
    """

    text: str
    path: Path | None = None
    line: int | None = None
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return _where(self.path, self.line) + self.text


class ConfigError(PluginError):
    """A plugin cannot be read: its config file, an entrypoint in it, or an option given for it.

    Attributes:
        path: The file at fault, where there is one.
        line: Line in that file, counted from 1.
        problems: All that is wrong, where that is more than the message tells.
    """

    def __init__(self, message: str, *, path: Path | str | None = None, line: int | None = None) -> None:
        super().__init__(_where(path, line) + message)
        self.path = None if path is None else Path(path)
        self.line = line
        self.problems: tuple[Problem, ...] = (Problem(message, self.path, line),)

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> ConfigError:
        """Return the error that tells the first of several problems, and how many more there are."""
        first = problems[0]
        more = f" (and {len(problems) - 1} more: `synapse plugin check` tells all)" if len(problems) > 1 else ""
        error = cls(first.text + more, path=first.path, line=first.line)
        error.problems = tuple(problems)
        return error


def _where(path: Path | str | None, line: int | None) -> str:
    return "" if path is None else f"{path}:{line}: " if line else f"{path}: "


class EnvironmentValueError(PluginError, ValueError):
    """A value of the environment is not of the wanted type; the text names key and type, and the value if a number."""


class ActionNotFoundError(PluginError):
    """The plugin has no such action.

    Attributes:
        available: The names that exist, in the order of the config file.
    """

    def __init__(self, message: str, details: Any = None, *, available: Iterable[str] = ()) -> None:
        super().__init__(message, details)
        self.available = tuple(available)


class ValidationError(PluginError, ValueError):
    """The params do not fit the action's params model. The action has not started.

    The cause (`__cause__`) is pydantic's own error, or what a validator of the model raised instead.
    """

    def __init__(self, message: str, details: Any = None, *, errors: Iterable[dict[str, Any]] = ()) -> None:
        super().__init__(message, details)
        self._errors = list(errors)

    def errors(self) -> list[dict[str, Any]]:
        """Return pydantic's list of problems: `type`, `loc`, `msg`, `input` of each."""
        return list(self._errors)


class ExecutionError(PluginError):
    """The action started and failed. The cause (`__cause__`) is what it raised.

    Attributes:
        details: What a person needs and the cause cannot tell: the stack at which the action was stuck, the last
            output of its worker. Empty where there is nothing. It shows below the message, as the exception's note.
    """

    def __init__(self, message: str, details: Any = "", *, title: str = "") -> None:
        super().__init__(message, "" if isinstance(details, str) else details)
        if isinstance(details, str):
            self.attach(title, details)

    def attach(self, title: str, details: str) -> None:
        """Add details under a title, unless they are empty."""
        if details:
            self.details = f"{self.details}\n{title}\n{details}" if self.details else details
            self.add_note(f"{title}\n{details}")


class ExecutionTimeout(ExecutionError):
    """The action did not end within its time limit; `details` holds the stack at which it was stuck."""


class WorkerCrashed(ExecutionError):
    """The worker process died under the action; `details` holds what it printed last, where known."""


class ResultNotSerializable(ExecutionError):
    """The params or the result cannot leave the process; the text names the part that cannot."""


class ClusterError(PluginError):
    """There is no cluster to run on, or it cannot give what was asked."""


class RemoteError(PluginError):
    """A Synapse backend refused or failed the call."""


class ConfigWarning(UserWarning):
    """A config file has a field or a value in it that nobody knows. The plugin works nevertheless."""


class ResultMismatchWarning(UserWarning):
    """The result does not fit the action's `result_model`. It is returned unchanged, as the SDK does."""


class CoverageLostWarning(UserWarning):
    """What workers execute could not be measured, or not be read here; the coverage of this process lacks it."""


class VersionMismatchWarning(UserWarning):
    """A cluster runs another Ray than this process. Jobs get along with that; actions that use Ray may not."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` was most likely meant to be, if any is near.

    Example:
        >>> nearest("trian", ["train", "infer"])
        'train'
        >>> nearest("export", ["train", "infer"]) is None
        True
    """
    import difflib

    spellings = {spelling.lower(): spelling for spelling in known}
    matches = difflib.get_close_matches(name.lower(), list(spellings), n=1, cutoff=0.6)
    return spellings[matches[0]] if matches else None


def safe_str(value: object) -> str:
    """Return `str(value)`, or a note that says why there is none. Exceptions of users may fail in `__str__`.

    Example:
        >>> safe_str(KeyError("epochs"))
        "'epochs'"
    """
    try:
        return str(value)
    except (Exception, SystemExit, GeneratorExit) as error:  # noqa: BLE001 - any code of a user may run here
        return f"<str() failed: {type(error).__name__}>"

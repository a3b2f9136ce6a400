"""The exceptions of the runtime, all derived from `PluginError`.

All of them can be pickled: the message is the only positional argument, everything else is a plain attribute.
"""

from __future__ import annotations

import opcode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "ActionNotFoundError",
    "ClusterError",
    "ClusterWarning",
    "ConfigError",
    "ConfigWarning",
    "CoverageLostWarning",
    "CredentialsWarning",
    "EnvironmentValueError",
    "ExecutionError",
    "ExecutionTimeout",
    "LateVariableWarning",
    "NotSupportedRemotely",
    "PluginError",
    "Problem",
    "ProcessesLeftWarning",
    "RemoteError",
    "RemoteException",
    "ResultMismatchWarning",
    "ResultNotInJson",
    "ResultNotSerializable",
    "ValidationError",
    "VersionMismatchWarning",
    "WorkerCrashed",
]


class PluginError(Exception):
    """Base class of all errors of this package.

    Attributes:
        details: Further information.

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
    """One problem of a plugin. `str()` gives its position, description and fix.

    Attributes:
        text: The description, and the fix.
        path: The file at fault, if there is one.
        line: Line in that file, counted from 1, if known.
        level: `error`, or `warning` if the plugin works nevertheless.

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
    """A plugin cannot be loaded: its config file, an entrypoint in it, or an option for it is invalid.

    Attributes:
        path: The file at fault, if there is one.
        line: Line in that file, counted from 1.
        problems: All problems; the message contains only the first.
    """

    def __init__(self, message: str, *, path: Path | str | None = None, line: int | None = None) -> None:
        super().__init__(_where(path, line) + message)
        self.path = None if path is None else Path(path)
        self.line = line
        self.problems: tuple[Problem, ...] = (Problem(message, self.path, line),)

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> ConfigError:
        """Return an error whose message has the first of several problems and the number of the others."""
        first = problems[0]
        more = f" (and {len(problems) - 1} more; run `synapse plugin check` to list them)" if len(problems) > 1 else ""
        error = cls(first.text + more, path=first.path, line=first.line)
        error.problems = tuple(problems)
        return error


def _where(path: Path | str | None, line: int | None) -> str:
    return "" if path is None else f"{path}:{line}: " if line else f"{path}: "


class EnvironmentValueError(PluginError, ValueError):
    """A value of the environment cannot be converted. The message has key and type, and the value if it is a number."""


class ActionNotFoundError(PluginError):
    """The plugin has no such action.

    Attributes:
        available: The names that exist, in the order of the config file.
    """

    def __init__(self, message: str, details: Any = None, *, available: Iterable[str] = ()) -> None:
        super().__init__(message, details)
        self.available = tuple(available)


class ValidationError(PluginError, ValueError):
    """The params are invalid according to the action's params model. The action has not started.

    The cause (`__cause__`) is pydantic's error, or the exception that a validator of the model raised instead.
    """

    def __init__(self, message: str, details: Any = None, *, errors: Iterable[dict[str, Any]] = ()) -> None:
        super().__init__(message, details)
        self._errors = list(errors)

    def errors(self) -> list[dict[str, Any]]:
        """Return pydantic's list of errors: `type`, `loc`, `msg`, `input` of each."""
        return list(self._errors)


class ExecutionError(PluginError):
    """The action started and failed. The cause (`__cause__`) is the exception that it raised.

    Attributes:
        details: Information that the cause does not have: the stack at which the action was stuck, the last output of
            its worker. May be empty. It is shown below the message, as the exception's note.
    """

    def __init__(self, message: str, details: Any = "", *, title: str = "") -> None:
        super().__init__(message, "" if isinstance(details, str) else details)
        if isinstance(details, str):
            self.attach(title, details)

    def attach(self, title: str, details: str) -> None:
        """Append details under a title, unless they are empty."""
        if details:
            self.details = f"{self.details}\n{title}\n{details}" if self.details else details
            self.add_note(f"{title}\n{details}")


class ExecutionTimeout(ExecutionError):
    """The action exceeded its timeout; `details` contains the stack at which it was stuck."""


class WorkerCrashed(ExecutionError):
    """The worker process exited or was killed during the action; `details` contains its last output, if known."""


class ResultNotSerializable(ExecutionError):
    """The params or the result cannot be pickled; the message names the part at fault."""


class PatchNotSerializable(ResultNotSerializable):
    """A patch of the test cannot be sent to the worker; the message names it, the reason and the fix."""


class ClusterError(PluginError):
    """There is no cluster to run on, or it does not have the requested resources."""


class ClusterWarning(UserWarning):
    """The warm cluster of this machine is unknown, because its state file cannot be used. Another cluster is used."""


class RemoteError(PluginError):
    """A Synapse backend cannot be reached, rejected a request, or gave an answer that makes no sense.

    Attributes:
        status: The HTTP status of its answer; None if there was none, or no request was sent.
        may_be_accepted: Whether the backend may have accepted a call all the same, so that repeating it may run the
            action twice.
    """

    def __init__(
        self, message: str = "", details: Any = None, *, status: int | None = None, may_be_accepted: bool = False
    ) -> None:
        super().__init__(message, details)
        self.status = status
        self.may_be_accepted = may_be_accepted


class ResultNotInJson(ResultNotSerializable):
    """A result that the other modes return, but that JSON cannot carry back from a backend."""


class NotSupportedRemotely(RemoteError):
    """A call needs what a backend does not have or what JSON cannot carry. Nothing was sent; the message says what."""


class CredentialsWarning(UserWarning):
    """The file with the login, `~/.synapse/config.json`, is ignored, because it may be another user's."""


class RemoteException(Exception):
    """Stands for an exception whose class cannot be imported, or not used, in this process; a subclass has its name."""


class ConfigWarning(UserWarning):
    """A config file contains an unknown field or value. The plugin works nevertheless."""


class ProcessesLeftWarning(UserWarning):
    """An action has left processes running. A job has stopped them; those of a warm worker are killed when it ends."""


class ResultMismatchWarning(UserWarning):
    """The result does not match the action's `result_model`. It is returned unchanged, as the SDK does."""


class CoverageLostWarning(UserWarning):
    """Coverage of workers could not be measured or merged, and is missing from the coverage of this process."""


class LateVariableWarning(UserWarning):
    """Variables of an action have no effect on it, as they are read when a process or library starts."""


class VersionMismatchWarning(UserWarning):
    """A cluster runs another version of Ray than this process. Jobs work nevertheless; actions that use Ray may not."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to `name`, if any is similar enough.

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


class ActionInterrupted(BaseException):
    """Raised in a thread to stop its action. An `except Exception` in the action does not catch it."""


def is_from_code(error: BaseException) -> bool:
    """Return whether an exception was raised by the code that ran, not from outside: by Ctrl-C, or to stop it.

    A `KeyboardInterrupt` was raised by that code if the innermost frame, which is not Python's own, has executed
    `raise`. A signal is noticed at other instructions.
    """
    if isinstance(error, ActionInterrupted):
        return False
    if not isinstance(error, KeyboardInterrupt):
        return True
    if isinstance(error.__context__, KeyboardInterrupt) and not is_from_code(error.__context__):
        return False  # raised while Ctrl-C was handled
    import signal
    import sysconfig

    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    if innermost is None:
        return False
    code = innermost.tb_frame.f_code
    if code is getattr(signal.getsignal(signal.SIGINT), "__code__", None):
        return False
    if code.co_filename.startswith((sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))):
        return False
    return bool(code.co_code[innermost.tb_lasti] == opcode.opmap["RAISE_VARARGS"])


def described(error: BaseException) -> str:
    """Return what was raised, as the end of a sentence.

    Example:
        >>> described(SystemExit("no GPU")), described(KeyError("epochs"))
        ("it called sys.exit('no GPU')", "KeyError: 'epochs'")
    """
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    return f"{type(error).__name__}: {safe_str(error)}"


def safe_str(value: object) -> str:
    """Return `str(value)`, or a placeholder with the type of the error if a user's `__str__` fails.

    Example:
        >>> safe_str(KeyError("epochs"))
        "'epochs'"
    """
    try:
        return str(value)
    except (Exception, SystemExit, GeneratorExit) as error:  # noqa: BLE001 - users' code may raise anything
        return f"<str() failed: {type(error).__name__}>"

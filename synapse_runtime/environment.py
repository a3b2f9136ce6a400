"""The environment of an action: environment variables and settings with typed access."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self, overload

from synapse_runtime.errors import ConfigError, EnvironmentValueError, LateVariableWarning

__all__ = ["PluginEnvironment"]

__tracebackhide__ = True  # in every function here: a report shows function arguments, and values may be secrets
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})
# Names that a line of a file may set; some programs use names with dots and dashes.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


class PluginEnvironment(Mapping[str, Any]):
    """Environment variables and settings of an action, with getters that convert and validate values.

    A value that cannot be converted raises `EnvironmentValueError`; for a key that is missing or set to `None` the
    default is returned. `repr` does not show values, which may be secrets.

    Args:
        data: Names and values; values may be of any type.

    Example:
        >>> env = PluginEnvironment({"BATCH_SIZE": "64", "DEBUG": True})
        >>> env.get_int("BATCH_SIZE", default=32), env.get_bool("DEBUG"), env.get_list("TAGS", default=[])
        (64, True, [])
    """

    __slots__ = ("_own", "_under")

    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        self._under: Variables | None = None
        self._own: dict[str, Any] = {} if data is None else dict(data)
        for key in self._own:
            if not isinstance(key, str):
                raise EnvironmentValueError(f"environment variable names must be strings, got {key!r}")

    @classmethod
    def over(cls, variables: Variables, env: Mapping[str, Any]) -> Self:
        """Merge the variables of a process with an environment that overrides them, on first access.

        Args:
            variables: The variables of the process.
            env: The environment that overrides them; its names are strings.
        """
        environment = cls.__new__(cls)
        environment._own = dict(env)
        environment._under = variables
        return environment

    @property
    def _data(self) -> dict[str, Any]:
        under = self._under
        if under is not None:
            self._own = {**under.to_dict(), **self._own}
            self._under = None
        return self._own

    def __reduce__(self) -> tuple[Any, ...]:
        return PluginEnvironment, (self._data,)

    @classmethod
    def from_environ(cls, prefix: str = "") -> PluginEnvironment:
        """Create an environment from the variables of this process.

        Args:
            prefix: Use only variables whose names start with it, and remove it from the names: with `"MYAPP_"`, the
                variable `MYAPP_TOKEN` becomes `TOKEN`.

        Example:
            >>> os.environ["MYAPP_WORKERS"] = "4"
            >>> PluginEnvironment.from_environ(prefix="MYAPP_").get_int("WORKERS")
            4
            >>> del os.environ["MYAPP_WORKERS"]
        """
        if not prefix:
            return cls(os.environ)
        cut = len(prefix)
        return cls({k[cut:]: v for k, v in os.environ.items() if k.startswith(prefix) and len(k) > cut})

    @classmethod
    def from_file(cls, path: str | Path) -> PluginEnvironment:
        """Read a TOML file, or, if the name does not end in `.toml`, lines of `NAME=value`.

        Args:
            path: The file. The rules for lines are those of python-dotenv: comments, `export`, values in quotes,
                also of several lines, and `${NAME}` for another variable.

        Raises:
            FileNotFoundError: The file does not exist.
            ConfigError: The file cannot be read, or is invalid; the message names file and line.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"environment file {path} does not exist")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}; change its permissions", path=path) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"is not UTF-8 text: {error.reason} at byte {error.start}", path=path) from error
        if path.suffix == ".toml":
            return cls(_read_toml(text, path))
        return cls(_read_lines(text, path))

    @classmethod
    def merge(cls, *envs: PluginEnvironment | Mapping[str, Any]) -> PluginEnvironment:
        """Merge environments into a new one; later ones override earlier ones.

        Example:
            >>> PluginEnvironment.merge(PluginEnvironment({"A": 1, "B": 1}), {"B": 2}).to_dict()
            {'A': 1, 'B': 2}
        """
        merged: dict[str, Any] = {}
        for env in envs:
            merged.update(env)
        return cls(merged)

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        return f"PluginEnvironment({', '.join(sorted(self._data))})"

    def to_dict(self) -> dict[str, Any]:
        """Return a copy as a plain dict, with the values as given."""
        return dict(self._data)

    def as_strings(self) -> dict[str, str]:
        """Return the variables for `os.environ`, as strings.

        Booleans become `true` and `false`, lists comma-separated text, dicts JSON; `None` is left out.

        Raises:
            EnvironmentValueError: A name or value is invalid in a process environment.
        """
        return {key: _as_text(key, value) for key, value in self._data.items() if value is not None}

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value as given, or `default`."""
        return self._data.get(key, default)

    @overload
    def get_str(self, key: str, default: str) -> str: ...
    @overload
    def get_str(self, key: str, default: None = None) -> str | None: ...
    def get_str(self, key: str, default: str | None = None) -> str | None:
        """Return the value as text, in the form that it has in `os.environ`."""
        value = self._data.get(key)
        return default if value is None else _as_text(key, value)

    @overload
    def get_int(self, key: str, default: int) -> int: ...
    @overload
    def get_int(self, key: str, default: None = None) -> int | None: ...
    def get_int(self, key: str, default: int | None = None) -> int | None:
        """Return the value as an integer. Text such as `"64"` is converted; `"6.5"` raises an error."""
        value = self._data.get(key)
        if value is None:
            return default
        number: int | None = _converted(int, value)
        if number is None or (isinstance(value, float) and number != value):
            raise _bad_value(key, value, "a valid integer")
        return number

    @overload
    def get_float(self, key: str, default: float) -> float: ...
    @overload
    def get_float(self, key: str, default: None = None) -> float | None: ...
    def get_float(self, key: str, default: float | None = None) -> float | None:
        """Return the value as a floating-point number."""
        value = self._data.get(key)
        if value is None:
            return default
        number: float | None = _converted(float, value)
        if number is None:
            raise _bad_value(key, value, "a valid float")
        return number

    @overload
    def get_bool(self, key: str, default: bool) -> bool: ...
    @overload
    def get_bool(self, key: str, default: None = None) -> bool | None: ...
    def get_bool(self, key: str, default: bool | None = None) -> bool | None:
        """Return the value as a boolean: `true`, `1`, `yes`, `on` or `false`, `0`, `no`, `off`.

        Case is ignored. Any other value raises `EnvironmentValueError`.
        """
        value = self._data.get(key)
        if value is None:
            return default
        word = str(value).strip().lower()
        if word in _TRUE:
            return True
        if word in _FALSE:
            return False
        raise _bad_value(key, value, "a valid boolean (true, 1, yes, on or false, 0, no, off)")

    @overload
    def get_list(self, key: str, default: list[Any]) -> list[Any]: ...
    @overload
    def get_list(self, key: str, default: None = None) -> list[Any] | None: ...
    def get_list(self, key: str, default: list[Any] | None = None) -> list[Any] | None:
        """Return the value as a list. Text is split at commas; whitespace around parts and empty parts are removed."""
        value = self._data.get(key)
        if value is None:
            return default
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, list | tuple | set | frozenset):
            return list(value)
        raise _bad_value(key, value, "a list or comma-separated text")


# Python, the dynamic linker and numerical libraries read these once.
READ_AT_START: Final = frozenset(
    (
        *("PYTHONHASHSEED", "PYTHONOPTIMIZE", "PYTHONUTF8", "PYTHONMALLOC", "PYTHONDEVMODE"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "MALLOC_ARENA_MAX"),
        *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
    )
)
# Workers import what their caller does, so this one takes effect only in processes that an action starts.
_IMPORT_PATH = frozenset(("PYTHONPATH",))
_warned: set[str] = set()


def variables_at_start(env: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables that take effect only in a process which is started with them.

    Args:
        env: All variables of an action.
    """
    if READ_AT_START.isdisjoint(env):
        return {}
    names = sorted(READ_AT_START.intersection(env))
    return {name: _as_text(name, env[name]) for name in names if env[name] is not None}


def warn_about_late_variables(env: Mapping[str, Any], *, starts_process: bool) -> None:
    """Warn of variables that cannot take effect in a running process; of each once in a process.

    Args:
        env: All variables of an action.
        starts_process: Whether the action runs in a process that is started with `variables_at_start`.
    """
    names = _IMPORT_PATH if starts_process else _IMPORT_PATH | READ_AT_START
    if names.isdisjoint(env):
        return
    late = sorted(
        name
        for name in names.intersection(env) - _warned
        if env[name] is not None and os.environ.get(name) != _as_text(name, env[name])
    )
    if late:
        _warned.update(late)
        warnings.warn(
            f"{', '.join(late)}: read when a process or library starts, so the action may run without it. Set "
            "it where pytest or the cluster is started; processes that the action starts get it",
            LateVariableWarning,
            stacklevel=2,
        )


def as_environment(env: PluginEnvironment | Mapping[str, Any] | None) -> PluginEnvironment:
    """Return `env` as a `PluginEnvironment`; `None` as an empty one."""
    return env if isinstance(env, PluginEnvironment) else PluginEnvironment(env)


def _converted(kind: Callable[[Any], Any], value: Any) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):  # its message contains the value, so it is not chained
        return None


def _bad_value(key: str, value: object, expected: str) -> EnvironmentValueError:
    """Return the error about a value that cannot be converted. It shows only numbers: text may be a secret."""
    shown = f"{key}={value!r}" if isinstance(value, int | float) else f"{key} (of type {type(value).__name__})"
    return EnvironmentValueError(f"environment value {shown} is not {expected}")


def _as_text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str):
        text = value
    elif isinstance(value, list | tuple) and not any(isinstance(part, dict | list | tuple) for part in value):
        text = ",".join(_as_text(key, part) for part in value)
    elif isinstance(value, dict | list | tuple):
        import json

        text = json.dumps(value, default=str)
    else:
        text = str(value)
    if not key or "=" in key or "\0" in key or "\0" in text:
        raise EnvironmentValueError(
            f"invalid environment variable {key!r}: empty name, '=' in its name, or NUL in its name or value"
        )
    return text


class Variables:
    """A snapshot of the environment variables of this process, to be read or restored later.

    It copies the undecoded data of `os.environ`, which takes one microsecond; `os.environ.copy()` takes twenty.
    """

    __slots__ = ("_raw",)

    def __init__(self) -> None:
        self._raw = _raw_environ().copy()

    def to_dict(self) -> dict[str, str]:
        """Return names and values."""
        return {_decoded(name): _decoded(value) for name, value in self._raw.items()}

    def is_current(self) -> bool:
        """Return whether the process still has exactly these variables."""
        return _raw_environ() == self._raw

    def restore(self) -> set[str]:
        """Restore exactly these variables in the process; return the names of those that were different."""
        now, before = _raw_environ(), self._raw
        changed: set[str] = set()
        if now == before:
            return changed
        for name in now.keys() - before.keys():
            changed.add(_decoded(name))
            os.environ.pop(_decoded(name), None)
        for name, value in before.items():
            if now.get(name) != value:
                changed.add(_decoded(name))
                os.environ[_decoded(name)] = _decoded(value)
        return changed


def _raw_environ() -> dict[Any, Any]:
    """Return the internal dict of `os.environ`: bytes, or text on Windows.

    It is private. If it is missing, a copy of `os.environ` is used, which is slower; a test checks that it exists.
    """
    raw = getattr(os.environ, "_data", None)
    return raw if type(raw) is dict else dict(os.environ)


def _decoded(raw: bytes | str) -> str:
    return os.fsdecode(raw)


def _read_toml(text: str, path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        line = message.rpartition("(at line ")[2].partition(",")[0]
        raise ConfigError(f"invalid TOML: {message}", path=path, line=int(line) if line.isdigit() else None) from error


def _read_lines(text: str, path: Path) -> dict[str, str]:
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    for binding in parse_stream(io.StringIO(text)):
        start = binding.original.string
        line = binding.original.line + start.count("\n", 0, len(start) - len(start.lstrip()))
        # The errors do not show the line, which may contain a secret.
        if binding.error or (binding.key is not None and binding.value is None):
            hint = "; a value that starts with a quote must end with it" if re.search("=\\s*['\"]", start) else ""
            raise ConfigError(f"expected NAME=value{hint}", path=path, line=line)
        if binding.key is not None and not _NAME.fullmatch(binding.key):
            raise ConfigError(
                "expected NAME=value, where the name consists of letters, digits and underscores", path=path, line=line
            )
    return {name: value or "" for name, value in dotenv_values(stream=io.StringIO(text)).items()}

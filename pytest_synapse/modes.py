"""Which mode, or modes, a test runs in: marker, command line, ini file, environment, in this order."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import pytest

from synapse_runtime.modes import MODES, UnknownModeError, all_modes, find_mode

# The mode of a test class that is collected once per mode: pytest cannot parametrize unittest's classes.
CLASS_MODE_KEY: pytest.StashKey[str] = pytest.StashKey()
RESOURCES = ("num_cpus", "num_gpus", "memory", "resources")
_MARKER_ARGUMENTS = ("mode", "env", "timeout", *RESOURCES, "isolation", "around", "supports")
ISOLATIONS = ("shared", "fresh")

MARKER_HELP = (
    "synapse(mode=None, supports=None, env=None, timeout=None, num_cpus=None, num_gpus=None, memory=None, "
    "resources=None, isolation=None, around=None): where and how the actions of this test run. mode: "
    + ", ".join(f"{mode.name!r} ({mode.location})" for mode in MODES.values())
    + ", or several as a tuple: the test runs once in each. supports: the modes that it can run in; of those that the "
    "session asks for, the others are deselected. env: a dict of variables for the "
    "actions. timeout: seconds that an action may take. num_cpus, num_gpus, memory (bytes, or a text such as '2GB'), "
    "resources (a dict of the cluster's own kinds): what the worker requests. isolation: 'fresh' gives the "
    "test a worker of its own (task) or freshly imported plugin modules for each call (local), so that no state is "
    "left from other tests; a job is always fresh. around: a context manager that runs around each action, in its "
    "process: a function that returns one, a tuple of it and its arguments, or a list of those. On a class or module "
    "it holds for all tests in it; the nearest wins, env is merged, around nests."
)


def parse_modes(value: str | Iterable[str], source: str) -> tuple[str, ...]:
    """Return the modes that a text such as `local,task` or `all` means, each once.

    Args:
        value: The text, or several of them.
        source: Where it was given, for the error.

    Raises:
        pytest.UsageError: A word is not a mode.
    """
    texts = [value] if isinstance(value, str) else list(value)
    modes: list[str] = []
    for text in texts:
        if not isinstance(text, str):
            raise pytest.UsageError(f"{source}: a mode is a string, not {text!r}")
        for word in filter(None, (part.strip() for part in text.split(","))):
            modes += all_modes() if word == "all" else [known_mode(word, source)]
    if not modes:
        raise pytest.UsageError(f"{source}: no mode given: choose from {', '.join(MODES)}, all")
    return tuple(dict.fromkeys(modes))


def session_modes(config: pytest.Config) -> tuple[str, ...]:
    """Return the modes of tests without a mode of their own."""
    given = config.getoption("synapse_mode")
    if given:
        return parse_modes(given, "--synapse-mode")
    ini = config.getini("synapse_mode")
    if ini:
        return parse_modes(ini, f"synapse_mode in {config.inipath}")
    variable = os.environ.get("SYNAPSE_MODE")
    if variable:
        return parse_modes(variable, "the environment variable SYNAPSE_MODE")
    return ("local",)


def marker_kwargs(node: pytest.Item | Any) -> dict[str, Any]:
    """Return the arguments of a test's `synapse` markers: of each the nearest, `env` and `around` of all.

    Raises:
        pytest.UsageError: An argument is unknown or of the wrong kind; names the test.
    """
    found: dict[str, Any] = {}
    env: dict[str, Any] = {}
    around: list[tuple[Any, ...]] = []
    for mark in node.iter_markers("synapse"):
        source = f"{node.nodeid}: @pytest.mark.synapse"
        _check(mark, source)
        env = {**(mark.kwargs.get("env") or {}), **env}
        around = [*_managers(mark.kwargs.get("around")), *around]
        for name, value in mark.kwargs.items():
            if value is not None:
                found.setdefault(name, value)
    if env:
        found["env"] = env
    if around:
        found["around"] = around
    return found


def _managers(around: Any) -> list[tuple[Any, ...]]:
    """Return the context managers of a marker as tuples of a factory and its arguments."""
    if around is None:
        return []
    return [each if isinstance(each, tuple) else (each,) for each in (around if isinstance(around, list) else [around])]


def modes_of(node: Any, config: pytest.Config) -> tuple[str, ...]:
    """Return the modes that a test runs in.

    Raises:
        pytest.UsageError: As `marker_kwargs`.
    """
    if node.parent is not None and CLASS_MODE_KEY in node.parent.stash:
        return (node.parent.stash[CLASS_MODE_KEY],)
    return selected_modes(node, config)


def selected_modes(node: Any, config: pytest.Config) -> tuple[str, ...]:
    """Return the modes selected by marker or options, even if the test's class was collected once for each."""
    return modes_by_marker(marker_kwargs(node), node.nodeid, config)


def modes_by_marker(kwargs: Mapping[str, Any], node_id: str, config: pytest.Config) -> tuple[str, ...]:
    """Return the modes by the arguments of a marker: those that it forces, else those of the session that it supports.

    Args:
        kwargs: The arguments.
        node_id: The id of the test or class, for errors.
        config: The session's configuration.

    Raises:
        pytest.UsageError: A word is not a mode.
    """
    if kwargs.get("mode") is not None:
        return parse_modes(kwargs["mode"], f"{node_id}: @pytest.mark.synapse(mode=...)")
    modes = session_modes(config)
    if kwargs.get("supports") is None:
        return modes
    supported = parse_modes(kwargs["supports"], f"{node_id}: @pytest.mark.synapse(supports=...)")
    return tuple(mode for mode in modes if mode in supported)


def is_own_fixture(node: Any) -> bool:
    """Return whether `synapse_mode` of a test, or of a test that is being collected, is a fixture of the user's.

    pytest has no public API for this.
    """
    if not hasattr(node, "_fixtureinfo"):
        return False
    fixtures = node._fixtureinfo.name2fixturedefs.get("synapse_mode", ())
    return bool(fixtures) and fixtures[-1].func.__module__ != "pytest_synapse.fixtures"


def is_parametrized_by_user(node: Any) -> bool:
    """Return whether a test parametrizes `synapse_mode` itself."""
    for mark in node.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs.get("argnames", ())
        if "synapse_mode" in ([name.strip() for name in names.split(",")] if isinstance(names, str) else names):
            return True
    return False


def _check(mark: pytest.Mark, source: str) -> None:
    if mark.args:
        raise pytest.UsageError(
            f"{source}: pass arguments by name, such as mode={mark.args[0]!r}: {', '.join(_MARKER_ARGUMENTS)}"
        )
    for name, value in mark.kwargs.items():
        if name not in _MARKER_ARGUMENTS:
            raise pytest.UsageError(
                f"{source}: unknown argument {name!r}{_hint(name, _MARKER_ARGUMENTS)}; "
                f"expected {', '.join(_MARKER_ARGUMENTS)}"
            )
        if value is None:
            continue
        if name in ("mode", "supports"):
            if not isinstance(value, str | tuple | list):
                raise pytest.UsageError(f"{source}: {name} must be a string or a tuple of them, not {value!r}")
            parse_modes(value, f"{source}({name}=...)")
        elif name == "isolation":
            if value not in ISOLATIONS:
                raise pytest.UsageError(f"{source}: isolation must be 'shared' or 'fresh', not {value!r}")
        elif name == "env":
            if not isinstance(value, Mapping):
                raise pytest.UsageError(f"{source}: env must be a dict, not a {type(value).__name__}")
            for key in value:
                if not isinstance(key, str) or not key or "=" in key or "\0" in key:
                    # What is after the equals sign may be a secret.
                    shown = key.partition("=")[0] + "=…" if isinstance(key, str) and "=" in key else key
                    raise pytest.UsageError(f"{source}: {shown!r} in env is not a valid variable name")
        elif name == "around":
            for factory, *args in [each or (None,) for each in _managers(value)]:
                if not (callable(factory) or (hasattr(type(factory), "__enter__") and not args)):
                    raise pytest.UsageError(
                        f"{source}: around must be a context manager, a function that returns one, a tuple of it and "
                        f"its arguments, or a list of those, not {value!r}"
                    )
        elif name in ("memory", "resources"):
            _check_resources({name: value}, source)
        elif name == "timeout":
            from synapse_runtime.core.timeouts import expected_seconds

            expected = expected_seconds(value)
            if expected is not None:
                raise pytest.UsageError(f"{source}: timeout must be {expected}, not {value!r}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise pytest.UsageError(f"{source}: {name} must be a positive number, not {value!r}")


def _check_resources(asked: dict[str, Any], source: str) -> None:
    for session in dict.fromkeys(mode.session_class() for mode in MODES.values() if mode.session):
        try:
            session.check_resources(asked)
        except ValueError as error:
            raise pytest.UsageError(f"{source}: {error}") from None


def known_mode(word: str, source: str) -> str:
    """Return the name of the mode that a word means.

    Args:
        word: The name or an alias of one mode.
        source: Where it was given, for the error.

    Raises:
        pytest.UsageError: There is no such mode; suggests the nearest.
    """
    try:
        return find_mode(word).name
    except UnknownModeError as error:
        raise pytest.UsageError(f"{source}: {error}, all") from None


def _hint(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word.lower(), list(known), n=1)
    return f", did you mean {near[0]!r}" if near else ""

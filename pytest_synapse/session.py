"""What the tests of a session share: plugins that were read, and what the executors of each mode share."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from pytest_synapse.modes import RESOURCES, known_mode, marker_kwargs, session_modes
from pytest_synapse.module_import import ModuleImporter
from synapse_runtime.modes import MODES, Mode

if TYPE_CHECKING:
    from pytest_synapse.backend import SynapseBackend
    from synapse_runtime.executors.base import Executor
    from synapse_runtime.plugins.plugin import Plugin

_SHARED = "synapse_sessions"  # key of `workerinput`
_CHANGED_VARIABLES = "synapse_changed_variables"  # key of `workerinput`
_environ_at_start: pytest.StashKey[dict[str, str]] = pytest.StashKey()
_MODE_OPTIONS = ("ray_address", "num_cpus", "num_gpus", "keep_cluster", "debug_sdk")


def note_environment(config: pytest.Config) -> None:
    """Note the environment before any conftest file is imported; what changes from now on is sent to workers."""
    config.stash[_environ_at_start] = dict(os.environ)


class SynapseSession:
    """Everything that outlives a single test. One per pytest process, in `config.stash`.

    Args:
        config: The session's configuration.

    Raises:
        pytest.UsageError: An option is wrong.
    """

    KEY: pytest.StashKey[SynapseSession] = pytest.StashKey()

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._plugins: dict[Path, Plugin] = {}
        self._config_files: dict[Path, Path | None] = {}  # of plugins, by files of tests
        self._pickled_by_value: set[str] = set()  # modules of tests
        option = config.option
        deselecting = ("keyword", "markexpr", "deselect", "lf", "stepwise", "setuponly")
        not_running = ("collectonly", "showfixtures", "show_fixtures_per_test")
        # Not if tests may still be deselected, so that none is left that needs a cluster, nor if none runs; nor in a
        # worker of pytest-xdist: their cluster must be right from the start, as none of them can restart it for all.
        self.starts_while_collecting = not (
            any(getattr(option, name, None) for name in (*deselecting, *not_running)) or self._is_xdist_worker
        )
        self.timeout()
        self.slowest()
        self._seed()
        self._require_named_plugin()
        self._ends_environment: Callable[[], None] | None = None
        self._mode_sessions: dict[str, Any] = {}
        self._mode_options = {name: config.getoption(f"synapse_{name}") for name in _MODE_OPTIONS}
        self._mode_options |= {"host": self._option_or_ini("host"), "token_file": self._token_file()}
        # Checks the options; and in a worker of pytest-xdist, executors that a test creates itself use the run's
        # cluster too. Otherwise they are created when they are needed, which most sessions never do.
        if self._is_xdist_worker or any(value not in (None, False) for value in self._mode_options.values()):
            self._sessions_of(MODES)

    @classmethod
    def of(cls, config: pytest.Config) -> SynapseSession:
        """Return the session of this configuration, created when it is first requested.

        Raises:
            pytest.UsageError: An option is wrong.
        """
        if cls.KEY not in config.stash:
            config.stash[cls.KEY] = cls(config)
        return config.stash[cls.KEY]

    @property
    def _is_xdist_worker(self) -> bool:
        return hasattr(self._config, "workerinput")

    def _mode_session(self, mode: Mode) -> Any:
        """Return what the executors of a mode share, created when it is first needed. This starts nothing."""
        if mode.session not in self._mode_sessions:
            shared = getattr(self._config, "workerinput", {}).get(_SHARED, {}).get(mode.session)
            try:
                self._mode_sessions[mode.session] = mode.session_class()(self._mode_options, shared)
            except ValueError as error:
                raise pytest.UsageError(str(error)) from None
        return self._mode_sessions[mode.session]

    def configure_xdist_worker(self, workerinput: dict[str, Any]) -> None:
        """Pass on what a worker of pytest-xdist needs to take part in this run."""
        self._sessions_of(MODES)
        workerinput[_SHARED] = {name: session.share() for name, session in self._mode_sessions.items()}
        from synapse_runtime.core.changed_variables import changed_variables

        self._watch_environment()
        workerinput[_CHANGED_VARIABLES] = [name for name, _ in changed_variables()]

    def watch_patches(self) -> None:
        """Note the patches of tests from now on, which workers apply too, and the changes of the environment."""
        from pytest_synapse.patch_recording import watch_mock

        watch_mock()
        self._watch_environment()

    def _watch_environment(self) -> None:
        if self._ends_environment is None:
            from synapse_runtime.core.changed_variables import start_session

            changed_elsewhere = getattr(self._config, "workerinput", {}).get(_CHANGED_VARIABLES, ())
            before = self._config.stash.get(_environ_at_start, None)
            self._ends_environment = start_session(dict(os.environ) if before is None else before, changed_elsewhere)

    def describe(self, modes: Iterable[str]) -> list[str]:
        """Return in a few words what these modes will use, such as the cluster; each once."""
        return [session.describe() for session in self._sessions_of(modes)]

    def max_processes(self, modes: Iterable[str]) -> int | None:
        """Return how many processes of pytest-xdist these modes can serve; None if there is no limit."""
        limits = [session.max_processes() for session in self._sessions_of(modes)]
        return min((limit for limit in limits if limit is not None), default=None)

    def start_while_collecting(self, modes: Iterable[str]) -> None:
        """Start in the background, once, what the modes of a test that was found need."""
        needed = set(modes)
        if self._sessions_of(needed):
            self.starts_while_collecting = False
            self.start_in_background(needed | set(session_modes(self._config)))

    def start_in_background(self, modes: set[str]) -> None:
        """Start what these modes need, such as the run's cluster, without waiting for it."""
        for session in self._sessions_of(modes):
            session.start_in_background(modes)

    def _sessions_of(self, modes: Iterable[str]) -> list[Any]:
        """Return what the executors of these modes share; each once."""
        found = {MODES[mode].session: self._mode_session(MODES[mode]) for mode in modes if MODES[mode].session}
        return [*found.values()]

    def plugin_for(self, path: Path) -> Plugin | None:
        """Return the plugin of a test file: the one that was named, else the nearest above the file.

        Raises:
            PluginError: It cannot be read.
        """
        config_file = self._config_file(path)
        if config_file is None:
            return None
        if config_file not in self._plugins:
            from synapse_runtime.plugins.manifest import warn_about_problems
            from synapse_runtime.plugins.plugin import Plugin

            plugin = self._plugins[config_file] = Plugin.load(config_file)
            warn_about_problems(plugin.manifest)
        return self._plugins[config_file]

    def _config_file(self, path: Path) -> Path | None:
        if path not in self._config_files:
            found = self._named_plugin() or ModuleImporter.of(self._config).find_config(path.parent)
            self._config_files[path] = found
        return self._config_files[path]

    @contextlib.contextmanager
    def executor(self, item: pytest.Item, mode: str, env: Any, plugin: Plugin | None) -> Iterator[Executor]:
        """Give the executor of a test; what the test has for itself ends with the block."""
        from synapse_runtime.loggers import NullLogger

        chosen = MODES[known_mode(mode, f"{item.nodeid}: the fixture synapse_mode")]
        marks = marker_kwargs(item)
        options: dict[str, Any] = {
            "env": env,
            "plugin": plugin,
            "timeout": marks.get("timeout", self.timeout()),
            "logger": NullLogger(),
        }
        fresh = marks.get("isolation") == "fresh"
        strict: bool = self._config.getini("synapse_strict")
        self._pickle_tests_by_value(item)
        if fresh or chosen.session:
            self.watch_patches()
        if not chosen.session:
            executor_class: Any = chosen.executor_class()
            yield self._prepared(executor_class(strict=strict, fresh=fresh, **options), marks)
            return
        resources = {name: marks[name] for name in RESOURCES if name in marks}
        session = self._mode_session(chosen)
        with session.executor(chosen.name, resources, fresh=fresh, strict=strict, **options) as executor:
            yield self._prepared(executor, marks)

    def _prepared(self, executor: Executor, marks: Mapping[str, Any]) -> Executor:
        executor.sends_test_setup = True
        executor.seed = self._seed()
        for factory, *args in marks.get("around", ()):
            executor.around(factory, *args)
        return executor

    def _pickle_tests_by_value(self, item: pytest.Item) -> None:
        """Pickle by value what this test's module and conftest files define, as no worker can import them."""
        module = getattr(item, "module", None)
        name = "" if module is None else module.__name__
        if name in self._pickled_by_value:
            return
        from synapse_runtime import serialization

        if module is not None:
            serialization.register_pickle_by_value(name)
        for plugin_name, plugin in item.config.pluginmanager.list_name_plugin():
            if plugin_name.endswith("conftest.py") and isinstance(plugin, ModuleType):
                serialization.register_pickle_by_value(plugin.__name__)
        self._pickled_by_value.add(name)

    def close(self) -> None:
        """Stop what the tests have used: jobs and workers, then the cluster if this run started it."""
        if self._ends_environment is not None:
            self._ends_environment()
            self._ends_environment = None
        for session in self._mode_sessions.values():
            session.close()

    def _named_plugin(self) -> Path | None:
        option = self._config.getoption("synapse_plugin")
        ini = self._config.getini("synapse_plugin")
        if not option and not ini:
            return None
        base = self._config.invocation_params.dir if option else (self._config.inipath or Path()).parent
        path = base / (option or ini)
        return path if path.exists() else Path(option or ini)

    def _require_named_plugin(self) -> None:
        """Raise `pytest.UsageError` if a directory or file was given as the plugin that does not exist.

        A module may be importable only once tests are collected.
        """
        found = self._named_plugin()
        if found is None or found.exists() or all(part.isidentifier() for part in str(found).split(".")):
            return
        given = self._config.getoption("synapse_plugin")
        source = "--synapse-plugin" if given else f"synapse_plugin in {self._config.inipath}"
        raise pytest.UsageError(f"{source}: {str(found)!r} does not exist: pass a directory, config file or module")

    def _option_or_ini(self, name: str) -> str | None:
        value: str | None = self._config.getoption(f"synapse_{name}") or self._config.getini(f"synapse_{name}") or None
        return value

    def _token_file(self) -> str | None:
        """Return the file of the backend's token, relative to where it was given."""
        path = self._option_or_ini("token_file")
        if path is None:
            return None
        given = self._config.getoption("synapse_token_file")
        base = self._config.invocation_params.dir if given else (self._config.inipath or Path()).parent
        return str(base / Path(path).expanduser())

    def is_remote_strict(self) -> bool:
        """Return whether a test fails that remote mode cannot run, instead of being skipped."""
        strict: bool = self._config.getini("synapse_remote_strict")
        return strict

    def backend(self) -> SynapseBackend:
        """Return the backend that remote mode uses; this starts it if none is named.

        Raises:
            RemoteError: There is no token, or it cannot be started.
        """
        from pytest_synapse.backend import SynapseBackend

        return SynapseBackend(*self._mode_session(MODES["remote"]).backend())

    def timeout(self) -> float | None:
        """Return the time limit of actions whose tests set none, in seconds.

        Raises:
            pytest.UsageError: It is not a positive number.
        """
        option: float | None = self._config.getoption("synapse_timeout")
        ini = self._config.getini("synapse_timeout")
        return option if option is not None else (seconds(ini, "synapse_timeout") if ini else None)

    def _seed(self) -> int | None:
        """Return the seed of each call: the ini option, else that of pytest-randomly.

        Raises:
            pytest.UsageError: It is not an integer of at least 0.
        """
        ini: str = self._config.getini("synapse_seed")
        if not ini:
            options = self._config.option
            found = getattr(options, "randomly_seed", None)
            return found if isinstance(found, int) and options.randomly_reset_seed else None
        try:
            return at_least(0)(ini)
        except argparse.ArgumentTypeError as error:
            raise pytest.UsageError(f"synapse_seed in {self._config.inipath}: {error}") from None

    def mask_values(self) -> None:
        """Have the values that the user has named replaced in reports."""
        option: str | None = self._config.getoption("synapse_mask")
        names = self._config.getini("synapse_mask") if option is None else option.split(",")
        if names:
            from synapse_runtime.redaction import mask

            mask(stripped for name in names if (stripped := name.strip(" ,")))
            self._config.add_cleanup(lambda: mask(()))

    def slowest(self) -> int | None:
        """Return how many of the slowest runs the summary shows: 0 for all, None for none.

        Raises:
            pytest.UsageError: It is not an integer.
        """
        option: int | None = self._config.getoption("synapse_durations")
        ini = self._config.getini("synapse_durations")
        if option is not None or not ini:
            return option
        try:
            return at_least(0)(ini)
        except argparse.ArgumentTypeError as error:
            raise pytest.UsageError(f"synapse_durations in {self._config.inipath}: {error}") from None


def seconds(text: str, source: str = "--synapse-timeout") -> float:
    """Return a positive number of seconds, or raise `pytest.UsageError`."""
    from synapse_runtime.core.timeouts import expected_seconds

    try:
        value = float(text)
    except ValueError:
        value = 0.0
    expected = expected_seconds(value)
    if expected is not None:
        raise pytest.UsageError(f"{source}: expected {expected}, got {text!r}")
    return value


def at_least(least: int) -> Callable[[str], int]:
    """Return an option type: an integer that is not less."""

    def number(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {least}, got {text!r}")
        return int(text)

    return number

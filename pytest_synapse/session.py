"""What the tests of a session share: plugins that were read, warm workers, executors to close at the end."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from pytest_synapse.modes import RESOURCES, known_mode, marked, session_modes
from synapse_runtime.executors.ray.cluster.session_scope import ClusterSpec, current_spec
from synapse_runtime.plugins.discovery import find_config_above

if TYPE_CHECKING:
    from synapse_runtime.executors.base import Executor
    from synapse_runtime.executors.ray.task import WarmWorker
    from synapse_runtime.plugins.plugin import Plugin


class SynapseSession:
    """Everything that outlives a single test. One per pytest process, in `config.stash`.

    Args:
        config: The session's configuration.
    """

    KEY: pytest.StashKey[SynapseSession] = pytest.StashKey()

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._plugins: dict[Path, Plugin] = {}
        self._config_files: dict[Path, Path | None] = {}  # of plugins, by files of tests
        self._pickled_by_value: set[str] = set()  # modules of tests
        self._workers: dict[tuple[Any, ...], WarmWorker] = {}
        self._cleanup = contextlib.ExitStack()
        self._jobs_wanted = False
        self._began_run = False
        option = config.option
        leaves_out = ("keyword", "markexpr", "deselect", "lf", "stepwise", "setuponly")
        runs_none = ("collectonly", "showfixtures", "show_fixtures_per_test")
        # Not where tests may still be deselected, and none be left that needs a cluster, nor where none runs; nor in a
        # worker of pytest-xdist: their cluster must be right from the start, as none of them can have it made anew for
        # all.
        self.starts_while_collecting = not (
            any(getattr(option, name, None) for name in (*leaves_out, *runs_none)) or self._in_a_worker_of_xdist
        )

    @classmethod
    def of(cls, config: pytest.Config) -> SynapseSession:
        """Return the session of this configuration; made, its options checked, when first asked for.

        Raises:
            pytest.UsageError: An option is wrong.
        """
        if cls.KEY not in config.stash:
            session = config.stash[cls.KEY] = cls(config)
            session.timeout()
            session.slowest()
            session._check_cluster_options()
            session._set_cluster_spec()
        return config.stash[cls.KEY]

    @property
    def address(self) -> str | None:
        """The cluster's address that was given, if any."""
        address: str | None = self._config.getoption("synapse_ray_address")
        return address

    @property
    def _in_a_worker_of_xdist(self) -> bool:
        return hasattr(self._config, "workerinput")

    def _set_cluster_spec(self) -> None:
        """Say where the run's one cluster is to be, and what it is to give; nothing is started."""
        if current_spec.is_set:  # this session is part of another, which began the run
            return
        self._began_run = True
        site = getattr(self._config, "workerinput", {}).get("synapse_site")
        if site is not None:
            current_spec.set(ClusterSpec(**site))
            return
        option = self._config.getoption
        num_cpus, num_gpus = option("synapse_num_cpus"), option("synapse_num_gpus")
        current_spec.set(ClusterSpec(num_cpus=num_cpus, num_gpus=num_gpus, keep=option("synapse_keep_cluster")))

    def _check_cluster_options(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            pytest.UsageError: A cluster of ours is sized or kept, but another is named.
        """
        named = "--synapse-ray-address" if self.address is not None else "RAY_ADDRESS"
        if self.address is None and not os.environ.get("RAY_ADDRESS"):
            return
        for option in ("--synapse-num-cpus", "--synapse-num-gpus", "--synapse-keep-cluster"):
            if self._config.getoption(option[2:].replace("-", "_")) not in (None, False):
                raise pytest.UsageError(
                    f"{option} is about a cluster that this run starts, but {named} names another: give only one"
                )

    def max_test_processes(self) -> int | None:
        """Return how many processes of pytest-xdist this run's cluster bears; None where that is not for us to say."""
        if importlib.util.find_spec("ray") is None:
            return None
        from synapse_runtime.executors.ray.cluster.resolve import max_test_processes

        return max_test_processes()

    def start_while_collecting(self, modes: Iterable[str]) -> None:
        """Begin to start the run's cluster, once, if a test that was found needs one: it runs in these modes."""
        needed = set(modes) - {"local"}
        if needed:
            self.starts_while_collecting = False
            self.start_in_background(needed | set(session_modes(self._config)))

    def start_in_background(self, modes: set[str]) -> None:
        """Begin to start the run's cluster, if these modes need one and there is none, without waiting for it."""
        if modes <= {"local"}:
            return
        from synapse_runtime.executors.ray.cluster.resolve import start_in_background

        self._jobs_wanted = "job" in modes
        start_in_background(self.address, jobs=self._jobs_wanted)

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
            self._config_files[path] = self._named_plugin() or find_config_above(path.parent)
        return self._config_files[path]

    @contextlib.contextmanager
    def executor(self, item: pytest.Item, mode: str, env: Any, plugin: Plugin | None) -> Iterator[Executor]:
        """Give the executor of a test; what the test has for itself ends with the block."""
        from synapse_runtime.loggers import NullLogger

        known_mode(mode, f"{item.nodeid}: the fixture synapse_mode")
        marks = marked(item)
        common: dict[str, Any] = {
            "env": env,
            "plugin": plugin,
            "timeout": marks.get("timeout", self.timeout()),
            "logger": NullLogger(),
        }
        resources: dict[str, Any] = {name: marks[name] for name in RESOURCES if name in marks}
        fresh = marks.get("isolation") == "fresh"
        debug_sdk = self._config.getoption("synapse_debug_sdk")
        self._pickle_tests_by_value(item)
        if mode == "local":
            from synapse_runtime.executors.local import LocalExecutor

            yield LocalExecutor(strict=self._config.getini("synapse_strict"), fresh=fresh, **common)
            return
        if mode == "task":
            from synapse_runtime.executors.ray.task import RayActorExecutor

            # What a warm worker holds, the other processes of the run would wait for.
            alone = fresh or (self._in_a_worker_of_xdist and any(resources.values()))
            worker = self._new_worker(resources) if alone else self._worker(resources)
            try:
                yield RayActorExecutor(worker=worker, debug_sdk=debug_sdk, **common)
            finally:
                if alone:
                    worker.close()
            return
        from synapse_runtime.executors.ray.job import RayJobsApiExecutor

        executor = RayJobsApiExecutor(ray_address=self.address, debug_sdk=debug_sdk, **resources, **common)
        yield self._cleanup.enter_context(executor)

    def _pickle_tests_by_value(self, item: pytest.Item) -> None:
        """Let classes and functions of this test's module, and of conftests, travel by value: no worker has those."""
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
        """End what the tests have used: jobs first, then workers, then the cluster if it is ours."""
        self._cleanup.close()
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        if not self._began_run:
            return
        site = current_spec.get()
        if site.path.exists() or "synapse_runtime.executors.ray.cluster.persistent" in sys.modules:
            self._release_cluster(site)
        current_spec.clear()

    def _release_cluster(self, site: ClusterSpec) -> None:
        from synapse_runtime.executors.ray.cluster.ephemeral import ephemeral
        from synapse_runtime.executors.ray.cluster.persistent import persist, persistent

        if site.keep and not self._in_a_worker_of_xdist:
            persist()
        persistent.release()
        ephemeral.release()

    def _worker(self, resources: dict[str, Any]) -> WarmWorker:
        key = (*sorted((name, repr(asked)) for name, asked in resources.items()),)
        if key not in self._workers:
            self._workers[key] = self._new_worker(resources)
        return self._workers[key]

    def _new_worker(self, resources: dict[str, Any]) -> WarmWorker:
        from synapse_runtime.executors.ray.task import WarmWorker

        return WarmWorker(self.address, jobs=self._jobs_wanted, **resources)

    def _named_plugin(self) -> Path | None:
        option = self._config.getoption("synapse_plugin")
        ini = self._config.getini("synapse_plugin")
        if not option and not ini:
            return None
        base = self._config.invocation_params.dir if option else (self._config.inipath or Path()).parent
        path = base / (option or ini)
        return path if path.exists() else Path(option or ini)

    def timeout(self) -> float | None:
        """Return the time limit of actions whose tests set none, in seconds.

        Raises:
            pytest.UsageError: It is no positive number.
        """
        option: float | None = self._config.getoption("synapse_timeout")
        ini = self._config.getini("synapse_timeout")
        return option if option is not None else (seconds(ini, "synapse_timeout") if ini else None)

    def slowest(self) -> int | None:
        """Return how many of the slowest runs the summary shows: 0 for all, None for none.

        Raises:
            pytest.UsageError: It is no whole number.
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
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise pytest.UsageError(f"{source}: a positive number of seconds is wanted, not {text!r}")
    return value


def at_least(least: int) -> Callable[[str], int]:
    """Return a type of option: a whole number that is not less."""

    def number(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"a whole number of at least {least} is wanted, not {text!r}")
        return int(text)

    return number

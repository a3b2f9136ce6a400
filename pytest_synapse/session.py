"""What the tests of a session share: plugins that were read, warm workers, executors to close at the end."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from pytest_synapse.modes import known_mode, marked
from synapse_runtime.locate import plugin_above

if TYPE_CHECKING:
    from synapse_runtime.executors.base import Executor
    from synapse_runtime.executors.ray.task import WarmWorker
    from synapse_runtime.plugin import Plugin


class SynapseSession:
    """Everything that outlives a single test. One per pytest process, in `config.stash`.

    Args:
        config: The session's configuration.
    """

    KEY: pytest.StashKey[SynapseSession] = pytest.StashKey()

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._plugins: dict[Path, Plugin] = {}
        self._workers: dict[tuple[Any, ...], WarmWorker] = {}
        self._cleanup = contextlib.ExitStack()
        self.jobs_wanted = False

    @property
    def address(self) -> str | None:
        """The cluster's address that was given, if any."""
        address: str | None = self._config.getoption("synapse_ray_address")
        return address

    def plugin_for(self, path: Path) -> Plugin | None:
        """Return the plugin of a test file: the one that was named, else the nearest above the file.

        Raises:
            PluginError: It cannot be read.
        """
        config_file = self._named_plugin() or plugin_above(path.parent)
        if config_file is None:
            return None
        if config_file not in self._plugins:
            from synapse_runtime.plugin import Plugin

            self._plugins[config_file] = Plugin.load(config_file)
        return self._plugins[config_file]

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
        resources: dict[str, Any] = {name: marks[name] for name in ("num_cpus", "num_gpus") if name in marks}
        fresh = marks.get("isolation") == "fresh"
        _let_tests_travel(item)
        if mode == "local":
            from synapse_runtime.executors.local import LocalExecutor

            yield LocalExecutor(strict=self._config.getini("synapse_strict"), fresh=fresh, **common)
            return
        if mode == "task":
            from synapse_runtime.executors.ray.task import RayActorExecutor

            worker = self._new_worker(resources) if fresh else self._worker(resources)
            try:
                yield RayActorExecutor(worker=worker, **common)
            finally:
                if fresh:
                    worker.close()
            return
        from synapse_runtime.executors.ray.job import RayJobsApiExecutor

        executor = RayJobsApiExecutor(ray_address=self.address, **resources, **common)
        yield self._cleanup.enter_context(executor)

    def close(self) -> None:
        """End what the tests have used: jobs first, then workers, then the cluster if it is ours."""
        self._cleanup.close()
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        module = sys.modules.get("synapse_runtime.executors.ray.ephemeral")
        if module is not None:
            module.ephemeral.stop()

    def _worker(self, resources: dict[str, float]) -> WarmWorker:
        key = tuple(sorted(resources.items()))
        if key not in self._workers:
            self._workers[key] = self._new_worker(resources)
        return self._workers[key]

    def _new_worker(self, resources: dict[str, float]) -> WarmWorker:
        from synapse_runtime.executors.ray.task import WarmWorker

        return WarmWorker(self.address, jobs=self.jobs_wanted, **resources)

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


def seconds(text: str, source: str = "--synapse-timeout") -> float:
    """Return a positive number of seconds, or raise `pytest.UsageError`."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise pytest.UsageError(f"{source}: a positive number of seconds is wanted, not {text!r}")
    return value


def _let_tests_travel(item: pytest.Item) -> None:
    """Let classes and functions of this test's module, and of conftests, travel by value: no worker has those."""
    from synapse_runtime import transport

    module = getattr(item, "module", None)
    if module is not None:
        transport.ship_by_value(module.__name__)
    for name, plugin in item.config.pluginmanager.list_name_plugin():
        if name.endswith("conftest.py") and isinstance(plugin, ModuleType):
            transport.ship_by_value(plugin.__name__)

"""Gives each plugin its own modules in one session: while its tests are imported and run, names resolve to them.

Sessions without a plugin are not affected.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from synapse_runtime.plugins.discovery import find_config_above

if TYPE_CHECKING:
    from types import ModuleType

    from synapse_runtime.plugins.module_scopes import ModuleScope

__tracebackhide__ = True  # of all functions here: a test's report shows the test's own lines only


class ModuleImporter:
    """Finds the plugin whose directory contains a file, and makes it the current one. One per pytest process.

    Args:
        config: The session's configuration.

    Attributes:
        now: The directory of the current plugin.
    """

    KEY: pytest.StashKey[ModuleImporter] = pytest.StashKey()

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._roots: dict[Path, str | None] = {}
        self._warned: set[str] = set()
        self.now: str | None = None
        self._scope: ModuleScope | None = None

    @classmethod
    def of(cls, config: pytest.Config) -> ModuleImporter:
        """Return the importer of this session; it is created on first use."""
        if cls.KEY not in config.stash:
            config.stash[cls.KEY] = cls(config)
        return config.stash[cls.KEY]

    @classmethod
    def start(cls, config: pytest.Config) -> None:
        """Import conftest files with the modules of their plugins, too.

        pytest imports the conftest files of all its arguments in one go and calls no hook in between, so this wraps a
        private method. If pytest removes it, such conftest files are imported without a plugin, and a test fails.
        """
        importer = cls.of(config)
        manager: Any = config.pluginmanager
        import_conftest = getattr(manager, "_importconftest", None)
        if import_conftest is None:
            return

        def import_with_its_plugin(path: Path, *args: Any, **kwargs: Any) -> ModuleType:
            importer.activate(path)
            module: ModuleType = import_conftest(path, *args, **kwargs)
            importer._keep(module)
            return module

        manager._importconftest = import_with_its_plugin

    def activate(self, path: Path) -> None:
        """Make the plugin that contains this file or directory the current one, until the next call."""
        try:
            root = self._roots[path]
        except KeyError:
            root = self._roots[path] = self._root_of(path)
        self.switch_to(root)

    def keep_test_modules(self, collector: pytest.Collector, report: pytest.CollectReport) -> None:
        """Keep a test module loaded when its plugin's modules are reloaded because their files have changed."""
        if self.now is None or not isinstance(collector, pytest.Module) or not report.passed:
            return
        if any(isinstance(node, pytest.Function | pytest.Class) for node in report.result):  # a doctest is neither
            self._keep(collector.obj)

    def stop(self) -> None:
        """Restore `sys.path` and `sys.modules` as if there had been no plugin."""
        if self._scope is not None:
            self._scope.close()
            self._scope = self.now = None

    def _root_of(self, path: Path) -> str | None:
        directory = path if path.is_dir() else path.parent
        if directory != path:
            if directory not in self._roots:
                self._roots[directory] = self._root_of(directory)
            return self._roots[directory]
        config_file = self.find_config(directory)
        return None if config_file is None else str(config_file.parent)

    def find_config(self, directory: Path) -> Path | None:
        """Return the config file of the nearest plugin at or above the directory of a test, if any.

        Those that are not trusted are ignored with a warning. The owner of the tests is trusted, as their code runs.

        Raises:
            pytest.UsageError: There is one that is not trusted, and warnings are errors.
        """
        untrusted: list[str] = []
        owners = (directory.stat().st_uid,) if directory.exists() else ()
        found = find_config_above(directory, top=self._config.rootpath, owners=owners, on_untrusted=untrusted.append)
        for text in set(untrusted) - self._warned:
            from synapse_runtime.errors import ConfigWarning

            self._warned.add(text)
            try:
                warnings.warn_explicit(text, ConfigWarning, "synapse", 0, module=__name__)
            except ConfigWarning as warning:
                raise pytest.UsageError(str(warning)) from None
        return found

    def switch_to(self, root: str | None) -> None:
        """Make the plugin in this directory the current one; None for no plugin."""
        if root == self.now:
            return
        if self._scope is None:
            from synapse_runtime.plugins.module_scopes import ModuleScope

            self._scope = ModuleScope()
            self._config.pluginmanager.register(_Switch(self), "synapse-importing")
        self._scope.activate(root)
        self.now = root

    def _keep(self, module: ModuleType) -> None:
        if self.now is not None:
            from synapse_runtime.plugins.module_scopes import keep_module

            keep_module(module.__name__)


class _Switch:
    """Hooks that make a test's plugin the current one while the test runs; registered when a plugin is found."""

    def __init__(self, importer: ModuleImporter) -> None:
        self._importer = importer

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Run a test with the modules of its plugin."""
        self._importer.activate(item.path)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Tear session fixtures down with the modules that they were set up with, whichever test runs last."""
        if fixturedef.scope != "session":
            return (yield)
        importer = self._importer
        root = importer.now
        before: list[str | None] = []

        def restore() -> None:
            if before:
                importer.switch_to(before.pop())

        def activate() -> None:
            before.append(importer.now)
            importer.switch_to(root)

        request.addfinalizer(restore)  # finalizers run in reverse order
        value = yield
        request.addfinalizer(activate)
        return value

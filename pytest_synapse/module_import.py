"""Each plugin its own modules, in one session: while a plugin's tests are imported and run, names mean its modules.

Nothing of it happens in a session without a plugin.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from synapse_runtime.plugins.discovery import find_config_above

if TYPE_CHECKING:
    from types import ModuleType

    from synapse_runtime.plugins.module_scopes import ModuleScope

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help


class ModuleImporter:
    """Knows which plugin's directory a file is in, and makes that plugin the current one. One per pytest process.

    Args:
        config: The session's configuration.

    Attributes:
        now: The directory of the current plugin.
    """

    KEY: pytest.StashKey[ModuleImporter] = pytest.StashKey()

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._roots: dict[Path, str | None] = {}
        self.now: str | None = None
        self._stay: ModuleScope | None = None

    @classmethod
    def of(cls, config: pytest.Config) -> ModuleImporter:
        """Return the one of this session."""
        if cls.KEY not in config.stash:
            config.stash[cls.KEY] = cls(config)
        return config.stash[cls.KEY]

    @classmethod
    def start(cls, config: pytest.Config) -> None:
        """Let conftest files be imported with the modules of their plugins too.

        pytest imports those of all paths that it is given in one go, with no hook between: there is no public way.
        A test watches the private name; where it is missing, such conftest files see no plugin.
        """
        importing = cls.of(config)
        manager: Any = config.pluginmanager
        import_conftest = getattr(manager, "_importconftest", None)
        if import_conftest is None:
            return

        def import_with_its_plugin(path: Path, *args: Any, **kwargs: Any) -> ModuleType:
            importing.activate(path)
            module: ModuleType = import_conftest(path, *args, **kwargs)
            importing._keep(module)
            return module

        manager._importconftest = import_with_its_plugin

    def activate(self, path: Path) -> None:
        """Make the plugin that this file or directory is in the current one, until the next call."""
        try:
            root = self._roots[path]
        except KeyError:
            root = self._roots[path] = self._root_of(path)
        self.switch_to(root)

    def keep_test_modules(self, collector: pytest.Collector, report: pytest.CollectReport) -> None:
        """Keep a module with tests when a plugin's modules are imported anew, as its files have changed."""
        if self.now is None or not isinstance(collector, pytest.Module) or not report.passed:
            return
        if any(isinstance(node, pytest.Function | pytest.Class) for node in report.result):  # a doctest is neither
            self._keep(collector.obj)

    def stop(self) -> None:
        """Leave `sys.path` and `sys.modules` as if there had been no plugin."""
        if self._stay is not None:
            self._stay.close()
            self._stay = self.now = None

    def _root_of(self, path: Path) -> str | None:
        directory = path if path.is_dir() else path.parent
        if directory != path:
            if directory not in self._roots:
                self._roots[directory] = self._root_of(directory)
            return self._roots[directory]
        config_file = find_config_above(directory)
        return None if config_file is None else str(config_file.parent)

    def switch_to(self, root: str | None) -> None:
        """Make the plugin with this directory the current one; None for no plugin."""
        if root == self.now:
            return
        if self._stay is None:
            from synapse_runtime.plugins.module_scopes import ModuleScope

            self._stay = ModuleScope()
            self._config.pluginmanager.register(_Switch(self), "synapse-importing")
        self._stay.activate(root)
        self.now = root

    def _keep(self, module: ModuleType) -> None:
        if self.now is not None:
            from synapse_runtime.plugins.module_scopes import keep_module

            keep_module(module.__name__)


class _Switch:
    """Hooks that make the plugin of a test the current one while it runs; registered when a plugin is found."""

    def __init__(self, importing: ModuleImporter) -> None:
        self._importing = importing

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Run a test with the modules of its plugin."""
        self._importing.activate(item.path)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Tear fixtures of a whole session down with the modules that they were set up with, whichever test is last."""
        if fixturedef.scope != "session":
            return (yield)
        importing = self._importing
        root = importing.now
        before: list[str | None] = []

        def go_back() -> None:
            if before:
                importing.switch_to(before.pop())

        def go_there() -> None:
            before.append(importing.now)
            importing.switch_to(root)

        request.addfinalizer(go_back)  # finalizers run in reverse order
        made = yield
        request.addfinalizer(go_there)
        return made

"""Resolve imports of `synapse_sdk` to `synapse_runtime` if synapse-sdk is not installed.

`synapse_sdk.plugins.X` is `synapse_runtime.X`. Importing a name that has no counterpart fails with an error that says
which package provides it. Importing `synapse_runtime` installs the hook as the last finder of `sys.meta_path`, so the
real package takes precedence if it can be imported.

Imports only a few modules of the standard library, because every pytest session imports this.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

ROOT: Final = "synapse_sdk"

# For each module of the SDK, the modules of `synapse_runtime` that provide its names.
_MODULES: Final[dict[str, tuple[str, ...]]] = {
    "": (),
    "i18n": ("messages",),
    "loggers": ("loggers",),
    "plugins": ("action", "context", "decorators", "enums", "errors", "runner"),
    "plugins.action": ("action",),
    "plugins.context": ("context",),
    "plugins.context.env": ("environment",),
    "plugins.decorators": ("decorators",),
    "plugins.enums": ("enums",),
    "plugins.errors": ("errors",),
    "plugins.executors": (),
    "plugins.executors.local": ("executors.local",),
    "plugins.executors.ray": ("executors.ray",),
    "plugins.executors.ray.jobs_api": ("executors.ray",),
    "plugins.executors.ray.task": ("executors.ray",),
    "plugins.log_messages": ("messages",),
    "plugins.models": (),
    "plugins.models.logger": ("messages",),
    "plugins.runner": ("runner", "enums"),
    "plugins.types": ("types",),
}
# Names that differ.
_RENAMED: Final = {"NoOpLogger": "NullLogger"}


def install() -> None:
    """Install the import hook, unless it is installed already."""
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)


def uninstall() -> None:
    """Remove the import hook; modules that have already imported names keep them."""
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    for name, module in list(sys.modules.items()):
        if isinstance(module, _Facade):
            del sys.modules[name]


def is_installed() -> bool:
    """Return whether the import hook is installed."""
    return _finder in sys.meta_path


class _Facade(ModuleType):
    """Stands in for a module of the SDK; looks its names up on access."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name == "__all__":
            return self.__dir__()
        for source in _sources(self.__name__):
            if name in _offered(source) or _RENAMED.get(name) in _offered(source):
                value = getattr(source, _RENAMED.get(name, name))
                setattr(self, name, value)
                return value
        if f"{self.__name__}.{name}".partition(".")[2] in _MODULES:
            return importlib.import_module(f"{self.__name__}.{name}")
        raise AttributeError(_not_offered(f"{self.__name__}.{name}"), name=name, obj=self)

    def __dir__(self) -> list[str]:
        names = {name for source in _sources(self.__name__) for name in _offered(source)}
        return sorted(names | {old for old, new in _RENAMED.items() if new in names})

    def __repr__(self) -> str:
        return f"<module {self.__name__!r}, provided by synapse_runtime in place of synapse-sdk>"


class _CallableFacade(_Facade):
    """`synapse_sdk.plugins.action`: a module, and at the same time the decorator that its package exports."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        (decorators,) = _sources(f"{ROOT}.plugins.decorators")
        return decorators.action(*args, **kwargs)


class _Finder:  # no base class, because `importlib.abc` is slow to import
    """Finds the SDK's modules if no other finder does."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        root, _, rest = name.partition(".")
        if root != ROOT or (rest and not isinstance(sys.modules.get(name.rpartition(".")[0]), _Facade)):
            return None
        if rest not in _MODULES:
            # `from module import name` looks for a module too. Only an error about another module is raised from there;
            # otherwise Python would replace the message.
            raise ModuleNotFoundError(_not_offered(name), name=ROOT)
        return ModuleSpec(name, _finder, origin=__file__, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _CallableFacade(spec.name) if spec.name == f"{ROOT}.plugins.action" else _Facade(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__doc__ = (
            "Stands in for a module of synapse-sdk, which is not installed; see synapse_runtime.sdk_compat.import_hook."
        )


def _sources(name: str) -> list[ModuleType]:
    sources = _MODULES[name.partition(".")[2]]
    return [importlib.import_module(f"synapse_runtime.{source}") for source in sources]


def _offered(source: ModuleType) -> Sequence[str]:
    """Return a module's public names: its `__all__` if defined, else its own classes, functions and constants."""
    listed: Sequence[str] | None = getattr(source, "__all__", None)
    if listed is not None:
        return listed
    return [
        name
        for name, value in vars(source).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and getattr(value, "__module__", source.__name__) == source.__name__
    ]


def _not_offered(name: str) -> str:
    return (
        f"{name} is not available: synapse-sdk is not installed, and pytest-synapse-harness, which stands in for it, "
        "does not provide this name. To get it, run `pip install synapse-sdk` (needs Python 3.12 or newer)"
    )


_finder: Any = _Finder()

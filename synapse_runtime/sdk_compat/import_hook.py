"""Names of `synapse-sdk` for plugins that were written for it, where it is not installed: they mean ours.

`synapse_sdk.plugins.X` is `synapse_runtime.X`. What we do not offer fails on import, and says what does. Installed by
importing `synapse_runtime`, as the last that Python asks: where the real package can be imported, it is.

Standard library only, and little of it: this is imported in every pytest session.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

ROOT: Final = "synapse_sdk"

# Of each module that there is, the modules of ours that its names are taken from.
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
# Names that are others here.
_RENAMED: Final = {"NoOpLogger": "NullLogger"}


def install() -> None:
    """Let the names mean ours from now on, unless they do already."""
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)


def uninstall() -> None:
    """Let the names mean nothing any more; modules that have imported them keep what they have."""
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    for name, module in list(sys.modules.items()):
        if isinstance(module, _Facade):
            del sys.modules[name]


def is_installed() -> bool:
    """Tell whether the names mean ours where the SDK cannot be imported."""
    return _finder in sys.meta_path


class _Facade(ModuleType):
    """A module of the SDK's whose names are looked up here when they are asked for."""

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
        # `from module import name` would replace an AttributeError by words of its own.
        raise ImportError(_not_offered(f"{self.__name__}.{name}"), name=self.__name__)

    def __dir__(self) -> list[str]:
        names = {name for source in _sources(self.__name__) for name in _offered(source)}
        return sorted(names | {old for old, new in _RENAMED.items() if new in names})

    def __repr__(self) -> str:
        return f"<module {self.__name__!r}, in place of synapse-sdk's>"


class _CallableFacade(_Facade):
    """`synapse_sdk.plugins.action`: a module, and in the package above the name of the decorator."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        (decorators,) = _sources(f"{ROOT}.plugins.decorators")
        return decorators.action(*args, **kwargs)


class _Finder:  # as Python's protocols of finders and loaders are: `importlib.abc` takes long to import
    """Finds the SDK's modules when nobody else has."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        root, _, rest = name.partition(".")
        if root != ROOT or (rest and not isinstance(sys.modules.get(name.rpartition(".")[0]), _Facade)):
            return None
        if rest not in _MODULES:
            raise ModuleNotFoundError(_not_offered(name), name=name)
        return ModuleSpec(name, _finder, origin=__file__, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _CallableFacade(spec.name) if spec.name == f"{ROOT}.plugins.action" else _Facade(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__doc__ = (
            "In place of a module of synapse-sdk, which is not installed: see synapse_runtime.sdk_compat.import_hook."
        )


def _sources(name: str) -> list[ModuleType]:
    homes = _MODULES[name.partition(".")[2]]
    return [importlib.import_module(f"synapse_runtime.{home}") for home in homes]


def _offered(source: ModuleType) -> Sequence[str]:
    """Return the public names of a module of ours: those it lists, else its own classes, functions and constants."""
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
        f"{name} is not here: synapse-sdk is not installed, and pytest-synapse-harness, which stands in for it, does "
        "not offer this. `pip install synapse-sdk` (Python 3.12 or newer) gives it"
    )


_finder: Any = _Finder()

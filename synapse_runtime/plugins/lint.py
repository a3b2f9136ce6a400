"""Check a plugin for problems, all at once: config file, actions, params models, requirements."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from synapse_runtime.environment import PluginEnvironment
from synapse_runtime.errors import ConfigError, EnvironmentValueError, Problem, nearest
from synapse_runtime.plugins import requirements, yaml_reader
from synapse_runtime.plugins.introspection import IMPORT_SECONDS, introspect, module_names
from synapse_runtime.plugins.introspection_worker import ActionInfo, ModuleInfo, ModuleRequest
from synapse_runtime.plugins.manifest import SERVED, Manifest, config_file, parse_manifest_leniently
from synapse_runtime.plugins.module_scopes import names_of_python
from synapse_runtime.plugins.plugin import standard_entrypoint
from synapse_runtime.plugins.yaml_reader import Document

# How many modules that do not exist get the most similar one suggested.
_MAX_SUGGESTIONS = 20


@dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    Attributes:
        problems: All problems: those of the config file first, then file by file, sorted by line.
        checked: A summary of what was checked, such as `config.yaml, 2 actions`.
    """

    problems: tuple[Problem, ...]
    checked: str


def check_plugin(path: Path, *, seconds: float = IMPORT_SECONDS) -> CheckResult:
    """Check a plugin.

    Args:
        path: The plugin's directory or config file.
        seconds: Time limit for importing one of its modules.

    Raises:
        ConfigError: `path` is a directory without a config file.
    """
    config = config_file(path).absolute()
    check = _Check(config, seconds)
    try:
        text = yaml_reader.read_text(config)
        manifest, document = parse_manifest_leniently(text, config), yaml_reader.parse(text, config)
    except ConfigError as error:
        check.problems.extend(error.problems)
    else:
        check.problems.extend(manifest.problems)
        check.manifest(manifest, document)
    check.requirements()
    found = sorted(set(check.problems), key=lambda one: (one.path != config, str(one.path), one.line or 0, one.text))
    return CheckResult(tuple(found), ", ".join([config.name, *check.checked]))


class _Check:
    """A running check: the problems found and the things checked so far."""

    def __init__(self, config: Path, seconds: float) -> None:
        self.problems: list[Problem] = []
        self.checked: list[str] = []
        self._config = config
        self._root = config.parent
        self._seconds = seconds
        self._suggestions = _MAX_SUGGESTIONS
        self._module_names: list[str] | None = None
        self._names_of_python = names_of_python(self._root)

    def manifest(self, manifest: Manifest, document: Document) -> None:
        """Check everything that the config file refers to."""
        self.problems.extend(_incomplete(manifest, self._config, document))
        self.problems.extend(_versions(manifest, self._config, document))
        self.problems.extend(_files(manifest, self._config, document))
        self.problems.extend(_runtime_env(manifest, self._config, document))
        self._actions(manifest, document)
        self.problems.extend(_same_names(self._root, self._names_of_python))
        wheels, problems = requirements.check_wheels(self._root / manifest.wheels_dir)
        self._count(wheels, "wheel")
        self.problems.extend(problems)

    def requirements(self) -> None:
        """Check `requirements.txt` if it exists."""
        path = self._root / requirements.FILE
        if path.is_file():
            count, problems = requirements.check_file(path)
            self._count(count, "requirement")
            self.problems.extend(problems)

    def _count(self, count: int, thing: str) -> None:
        if count:
            self.checked.append(f"{count} {thing}" + ("s" if count > 1 else ""))

    def _actions(self, manifest: Manifest, document: Document) -> None:
        try:
            env = PluginEnvironment(manifest.env).as_strings()
        except EnvironmentValueError as error:
            self.problems.append(Problem(str(error), self._config, document.line(("env",))))
            env = {}
        requests: dict[str, ModuleRequest] = {}
        for action in manifest.actions.values():
            if action.entrypoint:
                module, _, name = standard_entrypoint(action.entrypoint).partition(":")
                requests.setdefault(module, ModuleRequest(module=module)).names.append(name)
        seen = {one.module: one for one in introspect(self._root, list(requests.values()), env, seconds=self._seconds)}
        self.problems.extend(self._entrypoints(manifest, document, seen))
        self.problems.extend(self._imports(manifest, document, seen.values()))
        found = {one.entrypoint: one for module in seen.values() for one in module.names.values() if one is not None}
        for one in found.values():
            self.problems.extend(self._params_problems(one))
        self._count(len(manifest.actions), "action")
        self._count(sum(one.params_model is not None for one in found.values()), "params model")

    def _entrypoints(self, manifest: Manifest, document: Document, seen: dict[str, ModuleInfo]) -> Iterator[Problem]:
        reported = {one.line for one in manifest.problems if one.level == "error"}
        for key, action in manifest.actions.items():
            line = document.line(("actions", key, "entrypoint"))
            if not action.entrypoint:
                if line not in reported:
                    text = f"action {key!r} has no entrypoint; add `entrypoint: module:Name`"
                    yield Problem(text, self._config, line)
                continue
            module, _, name = standard_entrypoint(action.entrypoint).partition(":")
            text = self._entrypoint_problem(seen[module], name, served=action.method in SERVED)
            if text:
                yield Problem(f"action {key!r}: {text}", self._config, line)

    def _imports(self, manifest: Manifest, document: Document, seen: Iterable[ModuleInfo]) -> Iterator[Problem]:
        """Yield why modules cannot be imported; a reason that several modules share is reported once."""
        actions: dict[str, list[str]] = {}  # by module
        for key, action in manifest.actions.items():
            actions.setdefault(standard_entrypoint(action.entrypoint).partition(":")[0], []).append(key)
        by_fault: dict[tuple[str, str | None, int | None], list[str]] = {}
        for module in seen:
            if module.fault is not None and not module.missing:
                fault = module.fault
                by_fault.setdefault((fault.text, fault.file, fault.line), []).append(module.module)
        for (text, file, line), modules in by_fault.items():
            users = [key for module in modules for key in actions[module]]
            text += (
                "; install it and add it to requirements.txt"
                if text.startswith("ModuleNotFoundError: No module named")
                else ""
            )
            used_by = f"action{'s' if len(users) > 1 else ''} {', '.join(map(repr, users))}"
            message = f"cannot import {', '.join(modules)} (used by {used_by}): {text}"
            if file is None:
                yield Problem(message, self._config, document.line(("actions", users[0], "entrypoint")))
            else:
                yield Problem(message, Path(file), line)

    def _entrypoint_problem(self, module: ModuleInfo, name: str, *, served: bool) -> str:
        """Return what is wrong with an entrypoint; empty if its module cannot be imported, which is reported apart."""
        if module.module.partition(".")[0] in self._names_of_python:
            return f"module {module.module!r} is imported from Python's standard library; rename the plugin's"
        if module.missing:
            guess = self._similar_module(module.module)
            hint = f"; did you mean {guess!r}?" if guess else f"; add {module.module.replace('.', os.sep)}.py"
            return f"module {module.module!r} does not exist{hint}"
        if module.fault is not None:
            return ""
        found: ActionInfo | None = module.names[name]
        if found is None:
            guess = module.similar[name]
            hint = f"; did you mean {guess!r}?" if guess else f"; define it in {module.file}"
            return f"module {module.module!r} has no {name!r}{hint}"
        if found.is_action or (served and found.what == "a class"):
            return ""
        return (
            f"{module.module}:{name} is {found.what}, not an action; derive the class from BaseAction or decorate the "
            "function with @action"
        )

    def _similar_module(self, name: str) -> str | None:
        """Return the most similar module of the plugin, for the first ones only: each search takes long."""
        self._suggestions -= 1
        if self._suggestions < 0:
            return None
        if self._module_names is None:
            self._module_names = module_names(self._root)
        return nearest(name, self._module_names)

    def _params_problems(self, action: ActionInfo) -> Iterator[Problem]:
        """Yield the problems of an action's params model; if it belongs to another package, only the errors."""
        for fault in action.faults:
            if fault.file is not None and self._root in Path(fault.file).parents:
                yield Problem(fault.text, Path(fault.file), fault.line, fault.level)
            elif fault.level == "error":
                file = self._config if action.file is None else Path(action.file)
                yield Problem(fault.text, file, action.line)


def _same_names(root: Path, names: Iterable[str]) -> Iterator[Problem]:
    """Yield which modules cannot be imported, as Python has others of the same names."""
    for name in names:
        path = root / f"{name}.py"
        text = f"module {name!r} of Python's standard library is imported in its place; rename it"
        yield Problem(text, path if path.is_file() else root / name, None, "warning")


def _incomplete(manifest: Manifest, config: Path, document: Document) -> Iterator[Problem]:
    """Yield what is missing for a backend; the plugin runs locally without it."""
    if not manifest.code:
        yield Problem("'code' is missing; add `code: …`, the plugin's unique id", config, None, "warning")
    elif "name" not in document.data:
        yield Problem("'name' is missing; add `name: …`, the plugin's display name", config, None, "warning")
    if not manifest.actions:
        text = "the plugin has no actions; add them, or run `synapse plugin update-config`"
        yield Problem(text, config, document.line(("actions",)), "warning")
    if manifest.category == "neural_net" and manifest.data_type is None:
        text = "a neural_net plugin needs a data_type; add `data_type: image` (or text, video, pcd, audio)"
        yield Problem(text, config, document.line(("category",)), "warning")


def _versions(manifest: Manifest, config: Path, document: Document) -> Iterator[Problem]:
    """Yield invalid version specifiers in `requires`, and those that the installed versions do not match."""
    here = {"python": ("Python", platform.python_version()), "sdk": ("synapse-sdk", _version_of("synapse-sdk"))}
    for field, text in manifest.requires.model_dump(include={"sdk", "python", "cuda"}, exclude_none=True).items():
        line = document.line(("requires", field))
        versions = requirements.specifier(text)
        thing, version = here.get(field, (field, None))
        if versions is None:
            yield Problem(
                f"requires.{field}: {text!r} is not a version specifier; expected one such as '>=3.11'", config, line
            )
        elif version is not None and not versions.contains(version, prereleases=True):
            yield Problem(f"the plugin requires {thing} {text}, but this is {version}", config, line, "warning")


def _version_of(project: str) -> str | None:
    try:
        return metadata.version(project)
    except metadata.PackageNotFoundError:
        return None


def _files(manifest: Manifest, config: Path, document: Document) -> Iterator[Problem]:
    """Yield files and directories that the config file names and that do not exist."""
    root = config.parent
    if "wheels_dir" in manifest.model_fields_set:
        line = document.line(("wheels_dir",))
        directory = Path(os.path.normpath(root / manifest.wheels_dir))
        if root not in directory.parents:
            yield Problem(f"wheels_dir: {manifest.wheels_dir!r} is outside the plugin's directory", config, line)
        elif not os.path.isdir(directory):
            text = f"wheels_dir: directory {manifest.wheels_dir!r} does not exist; create it"
            yield Problem(text, config, line, "warning")
    if "readme" in manifest.model_fields_set and not os.path.isfile(root / manifest.readme):
        text = f"readme: file {manifest.readme!r} does not exist; create it"
        yield Problem(text, config, document.line(("readme",)), "warning")


def _runtime_env(manifest: Manifest, config: Path, document: Document) -> Iterator[Problem]:
    """Yield the problems of the requirements in `runtime_env`."""
    for installer in ("pip", "uv"):
        keys: tuple[str, ...] = ("runtime_env", installer)
        required: Any = manifest.runtime_env.get(installer)
        if isinstance(required, dict):
            keys, required = (*keys, "packages"), required.get("packages")
        for place, text in enumerate(required if isinstance(required, list) else ()):
            if isinstance(text, str) and not text.startswith("-"):
                yield from requirements.check_line(text, config, document.line((*keys, place)))

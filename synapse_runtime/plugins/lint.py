"""All that is wrong with a plugin, in one go: config file, actions, params models, requirements."""

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
from synapse_runtime.plugins.manifest import SERVED, Manifest, config_file, examine_text
from synapse_runtime.plugins.plugin import standard_entrypoint
from synapse_runtime.plugins.yaml_reader import Document


@dataclass(frozen=True)
class CheckResult:
    """What came of a check.

    Attributes:
        problems: All that is wrong: of the config file first, each file's in the order of its lines.
        looked_at: What was looked at, in words.
    """

    problems: tuple[Problem, ...]
    checked: str


def check_plugin(path: Path, *, seconds: float = IMPORT_SECONDS) -> CheckResult:
    """Check a plugin.

    Args:
        path: Its directory or config file.
        seconds: How long the import of one of its modules may take.

    Raises:
        ConfigError: It is a directory without a config file.
    """
    config = config_file(path).absolute()
    check = _Check(config, seconds)
    try:
        text = yaml_reader.read_text(config)
        manifest, document = examine_text(text, config), yaml_reader.parse(text, config)
    except ConfigError as error:
        check.problems.extend(error.problems)
    else:
        check.problems.extend(manifest.problems)
        check.manifest(manifest, document)
    check.requirements()
    found = sorted(set(check.problems), key=lambda one: (one.path != config, str(one.path), one.line or 0, one.text))
    return CheckResult(tuple(found), ", ".join([config.name, *check.looked_at]))


class _Check:
    """One check: what was found, and what was looked at, so far."""

    def __init__(self, config: Path, seconds: float) -> None:
        self.problems: list[Problem] = []
        self.looked_at: list[str] = []
        self._config = config
        self._root = config.parent
        self._seconds = seconds

    def manifest(self, manifest: Manifest, document: Document) -> None:
        """Check all that the config file speaks of."""
        self.problems.extend(_incomplete(manifest, self._config, document))
        self.problems.extend(_versions(manifest, self._config, document))
        self.problems.extend(_files(manifest, self._config, document))
        self.problems.extend(_runtime_env(manifest, self._config, document))
        self._actions(manifest, document)
        wheels, problems = requirements.check_wheels(self._root / manifest.wheels_dir)
        self._count(wheels, "wheel")
        self.problems.extend(problems)

    def requirements(self) -> None:
        """Check `requirements.txt`, if there is one."""
        path = self._root / requirements.FILE
        if path.is_file():
            count, problems = requirements.check_file(path)
            self._count(count, "requirement")
            self.problems.extend(problems)

    def _count(self, count: int, thing: str) -> None:
        if count:
            self.looked_at.append(f"{count} {thing}" + ("s" if count > 1 else ""))

    def _actions(self, manifest: Manifest, document: Document) -> None:
        try:
            env = PluginEnvironment(manifest.env).as_strings()
        except EnvironmentValueError as error:
            self.problems.append(Problem(str(error), self._config, document.line(("env",))))
            env = {}
        wanted: dict[str, ModuleRequest] = {}
        for action in manifest.actions.values():
            if action.entrypoint:
                module, _, name = standard_entrypoint(action.entrypoint).partition(":")
                wanted.setdefault(module, ModuleRequest(module=module)).names.append(name)
        seen = {one.module: one for one in introspect(self._root, list(wanted.values()), env, seconds=self._seconds)}
        self.problems.extend(self._entrypoints(manifest, document, seen))
        self.problems.extend(self._imports(manifest, document, seen.values()))
        found = {one.entrypoint: one for module in seen.values() for one in module.names.values() if one is not None}
        for one in found.values():
            self.problems.extend(self._of_params(one))
        self._count(len(manifest.actions), "action")
        self._count(sum(one.params_model is not None for one in found.values()), "params model")

    def _entrypoints(self, manifest: Manifest, document: Document, seen: dict[str, ModuleInfo]) -> Iterator[Problem]:
        for key, action in manifest.actions.items():
            line = document.line(("actions", key, "entrypoint"))
            if not action.entrypoint:
                if not any(one.line == line and one.level == "error" for one in manifest.problems):  # of this one
                    text = f"action {key!r} has no entrypoint; add `entrypoint: module:Name`"
                    yield Problem(text, self._config, line)
                continue
            module, _, name = standard_entrypoint(action.entrypoint).partition(":")
            text = _wrong_with(seen[module], name, self._root, served=action.method in SERVED)
            if text:
                yield Problem(f"action {key!r}: {text}", self._config, line)

    def _imports(self, manifest: Manifest, document: Document, seen: Iterable[ModuleInfo]) -> Iterator[Problem]:
        """Yield why modules cannot be imported: where that is the same for several, once."""
        of_fault: dict[tuple[str, str | None, int | None], list[str]] = {}
        for module in seen:
            if module.fault is not None and not module.missing:
                fault = module.fault
                of_fault.setdefault((fault.text, fault.file, fault.line), []).append(module.module)
        for (text, file, line), modules in of_fault.items():
            needing = [
                key
                for key, action in manifest.actions.items()
                if standard_entrypoint(action.entrypoint).partition(":")[0] in modules
            ]
            text += (
                "; install it, and name it in requirements.txt"
                if text.startswith("ModuleNotFoundError: No module named")
                else ""
            )
            for_whom = f"action{'s' if len(needing) > 1 else ''} {', '.join(map(repr, needing))}"
            told = f"{', '.join(modules)} cannot be imported, for {for_whom}: {text}"
            if file is None:
                yield Problem(told, self._config, document.line(("actions", needing[0], "entrypoint")))
            else:
                yield Problem(told, Path(file), line)

    def _of_params(self, action: ActionInfo) -> Iterator[Problem]:
        """Yield what is wrong with an action's params model; where that is another package's, only what does harm."""
        for fault in action.faults:
            if fault.file is not None and self._root in Path(fault.file).parents:
                yield Problem(fault.text, Path(fault.file), fault.line, fault.level)
            elif fault.level == "error":
                file = self._config if action.file is None else Path(action.file)
                yield Problem(fault.text, file, action.line)


def _wrong_with(module: ModuleInfo, name: str, root: Path, *, served: bool) -> str:
    """Return what is wrong with an entrypoint; nothing where its module could not be imported: that is told apart."""
    if module.missing:
        guess = nearest(module.module, module_names(root))
        hint = f"; did you mean {guess!r}?" if guess else f"; add {module.module.replace('.', os.sep)}.py"
        return f"there is no module {module.module!r}{hint}"
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
        f"{module.module}:{name} is {found.what}, and no action: derive the class from BaseAction, or decorate the "
        "function with @action"
    )


def _incomplete(manifest: Manifest, config: Path, document: Document) -> Iterator[Problem]:
    """Yield what the plugin can run without here, and a backend refuses."""
    if not manifest.code:
        yield Problem("there is no code; add `code: …`, the plugin's unique id", config, None, "warning")
    elif "name" not in document.data:
        yield Problem("there is no name; add `name: …`, which people see", config, None, "warning")
    if not manifest.actions:
        text = "there are no actions; add some, or let `synapse plugin update-config` do so"
        yield Problem(text, config, document.line(("actions",)), "warning")
    if manifest.category == "neural_net" and manifest.data_type is None:
        text = "a neural_net plugin needs a data_type; add `data_type: image`, or text, video, pcd, audio"
        yield Problem(text, config, document.line(("category",)), "warning")


def _versions(manifest: Manifest, config: Path, document: Document) -> Iterator[Problem]:
    """Yield what is wrong with `requires`, here."""
    here = {"python": ("Python", platform.python_version()), "sdk": ("synapse-sdk", _version_of("synapse-sdk"))}
    for field, text in manifest.requires.model_dump(include={"sdk", "python", "cuda"}, exclude_none=True).items():
        line = document.line(("requires", field))
        versions = requirements.specifier(text)
        thing, version = here.get(field, (field, None))
        if versions is None:
            yield Problem(f"requires.{field}: {text!r} says no versions; write it like '>=3.11'", config, line)
        elif version is not None and not versions.contains(version, prereleases=True):
            yield Problem(f"this is {thing} {version}; the plugin requires {text}", config, line, "warning")


def _version_of(project: str) -> str | None:
    try:
        return metadata.version(project)
    except metadata.PackageNotFoundError:
        return None


def _files(manifest: Manifest, config: Path, document: Document) -> Iterator[Problem]:
    """Yield files that the config file names and that are not there."""
    root = config.parent
    if "wheels_dir" in manifest.model_fields_set:
        line = document.line(("wheels_dir",))
        directory = Path(os.path.normpath(root / manifest.wheels_dir))
        if root not in directory.parents:
            yield Problem(f"wheels_dir: {manifest.wheels_dir!r} is not below the plugin's directory", config, line)
        elif not directory.is_dir():
            yield Problem(
                f"wheels_dir: there is no directory {manifest.wheels_dir!r}; make it", config, line, "warning"
            )
    if "readme" in manifest.model_fields_set and not (root / manifest.readme).is_file():
        text = f"readme: there is no file {manifest.readme!r}; write it"
        yield Problem(text, config, document.line(("readme",)), "warning")


def _runtime_env(manifest: Manifest, config: Path, document: Document) -> Iterator[Problem]:
    """Yield what is wrong with the requirements in `runtime_env`."""
    for installer in ("pip", "uv"):
        keys: tuple[str, ...] = ("runtime_env", installer)
        wanted: Any = manifest.runtime_env.get(installer)
        if isinstance(wanted, dict):
            keys, wanted = (*keys, "packages"), wanted.get("packages")
        for place, text in enumerate(wanted if isinstance(wanted, list) else ()):
            if isinstance(text, str) and not text.startswith("-"):
                yield from requirements.check_line(text, config, document.line((*keys, place)))

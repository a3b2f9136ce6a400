"""The actions of a plugin's code, brought into its config file."""

from __future__ import annotations

import contextlib
import difflib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from synapse_runtime.enums import RunMethod
from synapse_runtime.environment import PluginEnvironment
from synapse_runtime.errors import ConfigError, Problem
from synapse_runtime.plugins import yaml_editor, yaml_reader
from synapse_runtime.plugins.introspection import IMPORT_SECONDS, introspect, modules_of_a_plugin
from synapse_runtime.plugins.introspection_worker import ActionInfo, ModuleInfo, ModuleRequest
from synapse_runtime.plugins.manifest import SERVED, ActionSpec, Manifest, config_file, examine_text, read_manifest
from synapse_runtime.plugins.plugin import standard_entrypoint

_TYPES = ("input_type", "output_type")


@dataclass(frozen=True)
class Change:
    """One change of the file, or an action that the code no longer has.

    Attributes:
        kind: `added`, `moved`, `typed`, `removed`, or `gone`: the code no longer has it, and it stays in the file.
        action: The action's name in the file.
        fields: What is set.
    """

    kind: Literal["added", "moved", "typed", "removed", "gone"]
    action: str
    fields: dict[str, str]


@dataclass(frozen=True)
class Update:
    """What the config file would become.

    Attributes:
        config: The file.
        before: Its text.
        after: Its text with the changes.
        changes: The changes.
        problems: Modules that could not be looked at, names that two actions have, changes that a person must make.
    """

    config: Path
    before: str
    after: str
    changes: tuple[Change, ...]
    problems: tuple[Problem, ...]

    @property
    def diff(self) -> str:
        """The changes as a unified diff; empty where there are none."""
        name = self.config.name
        lines = difflib.unified_diff(self.before.splitlines(), self.after.splitlines(), name, name, lineterm="")
        return "".join(f"{line}\n" for line in lines)

    def write(self) -> None:
        """Write the file, whole or not at all; where nothing changes it is not touched.

        Raises:
            ConfigError: It cannot be written.
        """
        if self.after == self.before:
            return
        target = self.config.resolve()
        try:
            descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(self.after.encode())
                    os.fchmod(file.fileno(), target.stat().st_mode & 0o7777)
                os.replace(name, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror}", path=self.config) from error


def plan_update(path: Path, *, prune: bool = False, seconds: float = IMPORT_SECONDS) -> Update:
    """Find the actions of a plugin's code, and say what its config file would become; nothing is written.

    Args:
        path: The plugin's directory or config file.
        prune: Whether actions that the code no longer has are removed.
        seconds: How long the import of one module may take.

    Raises:
        ConfigError: The file cannot be read.
    """
    config = config_file(path).absolute()
    manifest, before = read_manifest(config), yaml_reader.read_text(config)
    code = _ActionsInCode(config.parent, manifest, seconds)
    changes, problems = _compare(manifest, code, prune=prune)
    made = []
    after = before
    for change in changes:
        try:
            after = _changed(after, change, config)
            made.append(change)
        except yaml_editor.CannotEdit:
            problems.append(_manual_steps(before, change, config))
    return Update(config, before, after, tuple(made), (*code.problems, *problems))


class _ActionsInCode:
    """What the plugin's modules have in them."""

    def __init__(self, root: Path, manifest: Manifest, seconds: float) -> None:
        wanted = {name: ModuleRequest(module=name, actions=True) for name in modules_of_a_plugin(root)}
        for action in manifest.actions.values():
            if action.entrypoint:
                module, name = _parts(action.entrypoint)
                wanted.setdefault(module, ModuleRequest(module=module)).names.append(name)
        env = PluginEnvironment(manifest.env).as_strings()
        self._seen = {one.module: one for one in introspect(root, list(wanted.values()), env, seconds=seconds)}
        self.actions = [action for module in self._seen.values() for action in module.actions]
        self.problems = [_unchecked(one) for one in self._seen.values() if one.fault is not None and not one.missing]

    def is_unknown(self, action: ActionSpec) -> bool:
        """Tell whether an action's module could not be looked at."""
        module = self._seen[_parts(action.entrypoint)[0]]
        return module.fault is not None and not module.missing

    def at(self, entrypoint: str) -> ActionInfo | None:
        """Return what is at an entrypoint."""
        module, name = _parts(entrypoint)
        return self._seen[module].names.get(name)


def _parts(entrypoint: str) -> tuple[str, str]:
    module, _, name = standard_entrypoint(entrypoint).partition(":")
    return module, name


def _unchecked(module: ModuleInfo) -> Problem:
    assert module.fault is not None
    file = None if module.fault.file is None else Path(module.fault.file)
    return Problem(f"{module.module} was not looked at: {module.fault.text}", file, module.fault.line)


def _compare(manifest: Manifest, code: _ActionsInCode, *, prune: bool) -> tuple[list[Change], list[Problem]]:
    """Return what the file lacks of the code, and why some of that cannot be added."""
    homes: dict[str, ActionInfo] = {}  # of the file's actions, by name
    lost: list[str] = []
    for key, action in manifest.actions.items():
        found = code.at(action.entrypoint) if action.entrypoint else None
        if found is not None and (found.is_action or action.method in SERVED):
            homes[key] = found
        elif not action.entrypoint or not code.is_unknown(action):
            lost.append(key)
    changes = []
    for key in lost:
        entrypoint = manifest.actions[key].entrypoint
        found = _renamed_to(key, entrypoint, _unmatched(code.actions, homes.values()))
        if found is not None:
            homes[key] = found
            changes.append(Change("moved", key, {"entrypoint": _in_style(found.entrypoint, manifest, entrypoint)}))
        elif entrypoint and code.at(entrypoint) is None:  # what is there, and no action yet, is not gone
            changes.append(Change("removed" if prune else "gone", key, {}))
    changes.extend(_typed(manifest, homes))
    added, problems = _added(manifest, _unmatched(code.actions, homes.values()))
    return [*changes, *added], problems


def _renamed_to(key: str, entrypoint: str, free: list[ActionInfo]) -> ActionInfo | None:
    """Return the action of the code that has this name; else the one that is called as the entrypoint's end."""
    end = _parts(entrypoint)[1] if entrypoint else None
    named = [one for one in free if one.name == key]
    return next(iter(named + [one for one in free if _parts(one.entrypoint)[1] == end]), None)


def _typed(manifest: Manifest, homes: dict[str, ActionInfo]) -> Iterator[Change]:
    for key, found in homes.items():
        types = {name: value for name in _TYPES if (value := getattr(found, name))}
        new = {name: value for name, value in types.items() if getattr(manifest.actions[key], name) != value}
        if new:
            yield Change("typed", key, new)


def _added(manifest: Manifest, actions: list[ActionInfo]) -> tuple[list[Change], list[Problem]]:
    added: dict[str, Change] = {}
    problems = []
    for found in actions:
        if found.name in added or found.name in manifest.actions:
            text = f"{found.entrypoint} was not added: there is an action {found.name!r}; give it another action_name"
            problems.append(Problem(text, None if found.file is None else Path(found.file), found.line))
        else:
            added[found.name] = Change("added", found.name, _fields(found, manifest))
    return list(added.values()), problems


def _unmatched(actions: Iterable[ActionInfo], homes: Iterable[ActionInfo]) -> list[ActionInfo]:
    taken = {one.entrypoint for one in homes}
    return [one for one in actions if one.entrypoint not in taken]


def _fields(found: ActionInfo, manifest: Manifest) -> dict[str, str]:
    fields = {
        "entrypoint": _in_style(found.entrypoint, manifest),
        "method": found.method if found.method in set(RunMethod) else "task",
        "description": found.description,
        "input_type": found.input_type,
        "output_type": found.output_type,
    }
    return {name: value for name, value in fields.items() if value}


def _in_style(entrypoint: str, manifest: Manifest, old: str = "") -> str:
    """Return an entrypoint in the form of the old one, else in that of the file's others."""
    others = [old] if old else [action.entrypoint for action in manifest.actions.values() if action.entrypoint]
    return entrypoint if any(":" in one for one in others) or not others else entrypoint.replace(":", ".")


def _changed(text: str, change: Change, config: Path) -> str:
    """Make a change, and see that the text says it then, and else what it said before.

    Raises:
        CannotEdit: It must be made by hand.
    """
    if change.kind == "gone":
        return text
    if change.kind == "added":
        changed = yaml_editor.with_action(text, change.action, change.fields)
    elif change.kind == "removed":
        changed = yaml_editor.without_action(text, change.action)
    else:
        changed = text
        for name, value in change.fields.items():
            changed = yaml_editor.with_field(changed, change.action, name, value)
    try:
        (wanted, others), said = _content(text, config), _content(changed, config)
    except ConfigError:  # an anchor that is used elsewhere is gone
        raise yaml_editor.CannotEdit from None
    if change.kind == "removed":
        del wanted[change.action]
    else:
        fresh = ActionSpec(name=change.action).model_dump()
        wanted[change.action] = wanted.get(change.action, fresh) | change.fields
    if said != (wanted, others):  # such as other actions, which merge this one
        raise yaml_editor.CannotEdit
    return changed


def _content(text: str, config: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a text says: its actions, and all else."""
    others = yaml_reader.parse(text, config).data
    others.pop("actions", None)
    return {name: action.model_dump() for name, action in examine_text(text, config).actions.items()}, others


def _manual_steps(text: str, change: Change, config: Path) -> Problem:
    wanted = ", ".join(f"{name}: {value}" for name, value in change.fields.items()) or "remove it"
    line = yaml_reader.parse(text, config).line(("actions", change.action))
    return Problem(f"action {change.action!r} must be changed by hand: {wanted}", config, line)

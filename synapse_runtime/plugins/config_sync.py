"""Write the actions of a plugin's code into its config file."""

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
from synapse_runtime.plugins.forms import FORMS, RESULT, forms_of
from synapse_runtime.plugins.introspection import IMPORT_SECONDS, introspect, modules_of_a_plugin
from synapse_runtime.plugins.introspection_worker import ActionInfo, ModuleInfo, ModuleRequest
from synapse_runtime.plugins.manifest import (
    SERVED,
    ActionSpec,
    Manifest,
    config_file,
    parse_manifest_leniently,
    read_manifest,
)
from synapse_runtime.plugins.plugin import standard_entrypoint

_TYPES = ("input_type", "output_type")


@dataclass(frozen=True)
class Change:
    """One change to the file, or an action that is no longer in the code.

    Attributes:
        kind: `added`, `moved`, `typed`, `updated` (its forms), `removed`, or `missing`: no longer in the code, but kept
            in the file.
        action: The action's name in the file.
        fields: The fields that are set. Forms are lists, such as at `hyperparameters.train_ui_schemas`; None for one
            that is removed.
    """

    kind: Literal["added", "moved", "typed", "updated", "removed", "missing"]
    action: str
    fields: dict[str, Any]

    def __str__(self) -> str:
        """Describe the change on one line, with the number of fields of each form."""
        fields = ", ".join(_in_words(name, value) for name, value in self.fields.items())
        return f"{self.kind}: {self.action}" + (f" ({fields})" if fields else "")


def _in_words(field: str, value: Any) -> str:
    if field not in FORMS:
        return f"{field}: {value}"
    return f"{'result' if field == RESULT else 'form'}: {'removed' if value is None else _size(value)}"


def _size(form: list[Any]) -> str:
    return "1 field" if len(form) == 1 else f"{len(form)} fields"


@dataclass(frozen=True)
class Update:
    """A planned update of a config file.

    Attributes:
        config: The file.
        before: Its text.
        after: Its text with the changes.
        changes: The changes.
        problems: Modules that could not be inspected, names used by two actions, changes that must be made by hand.
    """

    config: Path
    before: str
    after: str
    changes: tuple[Change, ...]
    problems: tuple[Problem, ...]

    @property
    def diff(self) -> str:
        """The changes as a unified diff; empty if there are none."""
        name = self.config.name
        lines = difflib.unified_diff(self.before.splitlines(), self.after.splitlines(), name, name, lineterm="")
        return "".join(f"{line}\n" for line in lines)

    def write(self) -> None:
        """Write the file atomically; do nothing if its text does not change.

        Raises:
            ConfigError: The file cannot be written.
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
            raise ConfigError(f"cannot write the file: {error.strerror}", path=self.config) from error


def plan_update(path: Path, *, prune: bool = False, seconds: float = IMPORT_SECONDS) -> Update:
    """Find the actions of a plugin's code and plan the update of its config file, without writing it.

    Args:
        path: The plugin's directory or config file.
        prune: Whether to remove actions that are no longer in the code.
        seconds: Time limit for importing one module.

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
    """The actions found in the plugin's modules."""

    def __init__(self, root: Path, manifest: Manifest, seconds: float) -> None:
        requests = {name: ModuleRequest(module=name, actions=True) for name in modules_of_a_plugin(root)}
        for action in manifest.actions.values():
            if action.entrypoint:
                module, name = _parts(action.entrypoint)
                requests.setdefault(module, ModuleRequest(module=module)).names.append(name)
        env = PluginEnvironment(manifest.env).as_strings()
        self._seen = {one.module: one for one in introspect(root, list(requests.values()), env, seconds=seconds)}
        self.actions = [action for module in self._seen.values() for action in module.actions]
        self.problems = [_unchecked(one) for one in self._seen.values() if one.fault is not None and not one.missing]

    def is_unknown(self, action: ActionSpec) -> bool:
        """Return whether an action's module could not be inspected."""
        module = self._seen[_parts(action.entrypoint)[0]]
        return module.fault is not None and not module.missing

    def at(self, entrypoint: str) -> ActionInfo | None:
        """Return the object that an entrypoint refers to; None if it does not exist."""
        module, name = _parts(entrypoint)
        return self._seen[module].names.get(name)


def _parts(entrypoint: str) -> tuple[str, str]:
    module, _, name = standard_entrypoint(entrypoint).partition(":")
    return module, name


def _unchecked(module: ModuleInfo) -> Problem:
    assert module.fault is not None
    file = None if module.fault.file is None else Path(module.fault.file)
    return Problem(f"cannot inspect {module.module}: {module.fault.text}", file, module.fault.line)


def _compare(manifest: Manifest, code: _ActionsInCode, *, prune: bool) -> tuple[list[Change], list[Problem]]:
    """Return how the file differs from the code, and why some actions cannot be added."""
    matches: dict[str, ActionInfo] = {}  # by the name in the file
    unmatched: list[str] = []
    for key, action in manifest.actions.items():
        found = code.at(action.entrypoint) if action.entrypoint else None
        if found is not None and (found.is_action or action.method in SERVED):
            matches[key] = found
        elif not action.entrypoint or not code.is_unknown(action):
            unmatched.append(key)
    changes = []
    for key in unmatched:
        entrypoint = manifest.actions[key].entrypoint
        found = _renamed_to(key, entrypoint, _unmatched(code.actions, matches.values()))
        if found is not None:
            matches[key] = found
            changes.append(Change("moved", key, {"entrypoint": _in_style(found.entrypoint, manifest, entrypoint)}))
        elif entrypoint and code.at(entrypoint) is None:  # anything that exists there may still become an action
            changes.append(Change("removed" if prune else "missing", key, {}))
    changes.extend(_typed(manifest, matches))
    changes.extend(_with_new_forms(manifest, matches))
    added, problems = _added(manifest, _unmatched(code.actions, matches.values()))
    return [*changes, *added], problems


def _renamed_to(key: str, entrypoint: str, free: list[ActionInfo]) -> ActionInfo | None:
    """Return the action in the code that has this name, else the one whose class or function has the same name."""
    end = _parts(entrypoint)[1] if entrypoint else None
    named = [one for one in free if one.name == key]
    return next(iter(named + [one for one in free if _parts(one.entrypoint)[1] == end]), None)


def _typed(manifest: Manifest, matches: dict[str, ActionInfo]) -> Iterator[Change]:
    for key, found in matches.items():
        types = {name: value for name in _TYPES if (value := getattr(found, name))}
        new = {name: value for name, value in types.items() if getattr(manifest.actions[key], name) != value}
        if new:
            yield Change("typed", key, new)


def _with_new_forms(manifest: Manifest, matches: dict[str, ActionInfo]) -> Iterator[Change]:
    for key, found in matches.items():
        new = _forms(key, found, manifest.actions[key])
        if new:
            yield Change("updated", key, new)


def _forms(key: str, found: ActionInfo, spec: ActionSpec | None) -> dict[str, Any]:
    """Return the forms of an action that have to change, by their places."""
    if not found.is_action:  # a class that Ray Serve runs
        return {}
    params = None if found.params_form is None else [(one.field, one.item) for one in found.params_form]
    return forms_of(key, params, [one.item for one in found.result_form], spec)


def _added(manifest: Manifest, actions: list[ActionInfo]) -> tuple[list[Change], list[Problem]]:
    added: dict[str, Change] = {}
    problems = []
    for found in actions:
        if found.name in added or found.name in manifest.actions:
            text = f"cannot add {found.entrypoint}: an action {found.name!r} already exists; set another action_name"
            problems.append(Problem(text, None if found.file is None else Path(found.file), found.line))
        else:
            added[found.name] = Change("added", found.name, _fields(found, manifest))
    return list(added.values()), problems


def _unmatched(actions: Iterable[ActionInfo], matched: Iterable[ActionInfo]) -> list[ActionInfo]:
    taken = {one.entrypoint for one in matched}
    return [one for one in actions if one.entrypoint not in taken]


def _fields(found: ActionInfo, manifest: Manifest) -> dict[str, Any]:
    fields = {
        "entrypoint": _in_style(found.entrypoint, manifest),
        "method": found.method if found.method in set(RunMethod) else "task",
        "description": found.description,
        "input_type": found.input_type,
        "output_type": found.output_type,
    }
    return {name: value for name, value in fields.items() if value} | _forms(found.name, found, None)


def _in_style(entrypoint: str, manifest: Manifest, old: str = "") -> str:
    """Return an entrypoint in the form of the old one, else in the form of the others in the file."""
    others = [old] if old else [action.entrypoint for action in manifest.actions.values() if action.entrypoint]
    return entrypoint if any(":" in one for one in others) or not others else entrypoint.replace(":", ".")


def _changed(text: str, change: Change, config: Path) -> str:
    """Apply a change, and verify that the text then has this change and is otherwise equivalent.

    Raises:
        CannotEdit: The change must be made by hand.
    """
    if change.kind == "missing":
        return text
    forms = {name: value for name, value in change.fields.items() if name in FORMS}
    fields = {name: value for name, value in change.fields.items() if name not in FORMS}
    changed = text
    if change.kind == "added":
        changed = yaml_editor.with_action(text, change.action, fields)
    elif change.kind == "removed":
        changed = yaml_editor.without_action(text, change.action)
    else:
        for name, value in fields.items():
            changed = yaml_editor.with_field(changed, change.action, name, value)
    for place, form in forms.items():
        path = place.split(".")
        if form is None:
            changed = yaml_editor.without_value(changed, change.action, path)
        else:
            changed = yaml_editor.with_value(changed, change.action, path, form)
    try:
        (expected, others), actual = _content(text, config), _content(changed, config)
    except ConfigError:  # the change removed an anchor that is used elsewhere
        raise yaml_editor.CannotEdit from None
    if change.kind == "removed":
        del expected[change.action]
    else:
        fresh = ActionSpec(name=change.action).model_dump()
        spec = expected[change.action] = expected.get(change.action, fresh) | fields
        for place, form in forms.items():
            _set(spec, place, form)
    if actual != (expected, others):  # such as other actions that merge this one
        raise yaml_editor.CannotEdit
    return changed


def _set(spec: dict[str, Any], place: str, form: Any) -> None:
    field, _, key = place.partition(".")
    if key:
        rest = {name: value for name, value in (spec[field] or {}).items() if name != key}
        form = rest | ({} if form is None else {key: form}) or None
    spec[field] = form


def _content(text: str, config: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values of a text: its actions, and everything else."""
    others = yaml_reader.parse(text, config).data
    others.pop("actions", None)
    actions = parse_manifest_leniently(text, config).actions
    return {name: action.model_dump() for name, action in actions.items()}, others


def _manual_steps(text: str, change: Change, config: Path) -> Problem:
    fields = ", ".join(f"{name}: {value}" for name, value in change.fields.items() if name not in FORMS)
    forms = " and ".join(_by_hand(name, value) for name, value in change.fields.items() if name in FORMS)
    line = yaml_reader.parse(text, config).line(("actions", change.action))
    steps = "; ".join(([f"set {fields}"] if fields else []) + ([forms] if forms else [])) or "remove it"
    return Problem(f"cannot edit action {change.action!r} automatically; {steps}", config, line)


def _by_hand(place: str, form: list[Any] | None) -> str:
    """Return what to do by hand so that the next update can write a form."""
    if form is None:
        return f"remove {place}"
    return f"remove what it has at {place}, or its alias, so that the form ({_size(form)}) can be written"

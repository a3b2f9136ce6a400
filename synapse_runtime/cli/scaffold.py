"""The files of a new plugin: rendered from templates, and written all or not at all."""

from __future__ import annotations

import contextlib
import keyword
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from synapse_runtime.enums import ACTION_DEFAULT_METHODS, DataType, PluginCategory, RunMethod
from synapse_runtime.errors import ConfigError
from synapse_runtime.plugins.discovery import CONFIG_NAMES

CODE_RULE = (
    "use at most 64 lowercase letters, digits, '-' and '_', starting with a letter and ending with a letter or digit, "
    "and no Python keyword; such as my-plugin"
)
ACTION_RULE = "use at most 64 lowercase letters, digits and '_', starting with a letter, and no Python keyword"
_MAX_NAME_LENGTH = 64

# The actions that a new plugin of each category has by default.
DEFAULT_ACTIONS: Mapping[PluginCategory, tuple[str, ...]] = {
    PluginCategory.NEURAL_NET: ("train", "infer"),
    PluginCategory.EXPORT: ("export",),
    PluginCategory.UPLOAD: ("upload",),
    PluginCategory.SMART_TOOL: ("auto_label",),
    PluginCategory.POST_ANNOTATION: ("post_annotate",),
    PluginCategory.PRE_ANNOTATION: ("pre_annotate",),
    PluginCategory.DATA_VALIDATION: ("validate",),
    PluginCategory.CUSTOM: ("run",),
}


@dataclass(frozen=True)
class _Kind:
    """What a new action is created from: template, description, options of an example command, and files it writes."""

    template: str
    about: str
    options: str
    written: str = ""


_WORK = _Kind("work", "Process items one by one.", """--param items='["one", "two"]'""")
_KINDS = {
    "train": _Kind("train", "Fit a line to points.", "--param epochs=20", "/weights.json"),
    "infer": _Kind("infer", "Predict with the trained weights.", "--input '[1, 2]'"),
    "export": _Kind("export", "Write items to a CSV file.", """--param items='["one", "two"]'""", "/exported/"),
}


@dataclass(frozen=True)
class NewPlugin:
    """Description of a plugin to create.

    Attributes:
        code: Its unique id.
        name: Its display name.
        category: Its category.
        actions: The names of its actions.
        sdk: Whether its actions import from `synapse_sdk`, whose names this package provides if it is not installed.
    """

    code: str
    name: str
    category: PluginCategory
    actions: tuple[str, ...]
    sdk: bool = False

    @property
    def example(self) -> str:
        """The arguments of `synapse plugin run` that run its first action."""
        return f"{self.actions[0]} {_kind(self.actions[0]).options}"

    def files(self) -> dict[str, str]:
        """Return the content of each file, by its path in the plugin's directory."""
        written = sorted({_kind(action).written for action in self.actions} - {""})
        rows = "\n".join(f"| `{action}` | {_kind(action).about} |" for action in self.actions)
        # On older Pythons, which synapse-sdk does not support, this package provides its names.
        requirement = 'synapse-sdk; python_version >= "3.12"' if self.sdk else "pydantic>=2.7"
        whole = {
            "name": self.name,
            "description": self._description,
            "rows": rows,
            "example": self.example,
            "written": "\n".join(written),
            "requirement": requirement,
        }
        files = {
            "config.yaml": self._config(),
            "README.md": _render("README.md", whole),
            "requirements.txt": _render("requirements.txt", whole),
            ".gitignore": _render("gitignore", whole).rstrip() + "\n",
            "plugin/__init__.py": f'"""The actions of the plugin {self.code}."""\n',
        }
        for action in self.actions:
            stem = "".join(part.capitalize() for part in action.split("_"))
            names = {"action": action, "stem": stem, "base": "synapse_sdk.plugins" if self.sdk else "synapse_runtime"}
            template = _kind(action).template
            files[f"plugin/{action}.py"] = _render(f"{template}.py", names)
            files[f"tests/test_{action}.py"] = _render(f"test_{template}.py", names)
        return files

    @property
    def _description(self) -> str:
        return " ".join(dict.fromkeys(_kind(action).about for action in self.actions))

    def _config(self) -> str:
        import yaml

        head: dict[str, Any] = {
            "code": self.code,
            "name": self.name,
            "version": "0.1.0",
            "category": self.category.value,
            "description": self._description,
        }
        if self.category is PluginCategory.NEURAL_NET:
            head["data_type"] = DataType.DATA.value  # required by the platform for this category
        actions = {
            action: {
                "entrypoint": f"plugin.{action}:{''.join(part.capitalize() for part in action.split('_'))}Action",
                "method": ACTION_DEFAULT_METHODS.get(action, RunMethod.TASK).value,
                "description": _kind(action).about,
            }
            for action in self.actions
        }
        parts = (head, {"actions": actions})
        text = "\n".join(yaml.safe_dump(part, allow_unicode=True, sort_keys=False, width=10_000) for part in parts)
        for action in self.actions:
            text = _with_forms(text, action)
        return text


def _with_forms(config: str, action: str) -> str:
    """Add the forms of an action's models, as `update-config` would."""
    import yaml

    from synapse_runtime.plugins.forms import forms_of
    from synapse_runtime.plugins.yaml_editor import with_value

    # No placeholders are replaced in it: `$formkit` is not one.
    forms = yaml.safe_load(_template(f"{_kind(action).template}.forms"))
    params = [(item["name"], item) for item in forms["params"]]
    for place, form in forms_of(action, params, forms["result"], None).items():
        config = with_value(config, action, place.split("."), form)
    return config


def checked_code(text: str) -> str:
    """Return a plugin's code without surrounding whitespace, or raise `ValueError` with the rule.

    Example:
        >>> checked_code("my-plugin")
        'my-plugin'
    """
    text = text.strip()
    if not re.fullmatch(r"[a-z]([a-z0-9_-]*[a-z0-9])?", text) or _is_keyword(text) or len(text) > _MAX_NAME_LENGTH:
        raise ValueError(f"invalid code {text!r}: {CODE_RULE}")
    return text


def checked_action(text: str) -> str:
    """Return an action's name, or raise `ValueError` with the rule."""
    text = text.strip()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", text) or _is_keyword(text) or len(text) > _MAX_NAME_LENGTH:
        raise ValueError(f"invalid action name {text!r}: {ACTION_RULE}; such as train")
    return text


def checked_name(text: str) -> str:
    """Return a plugin's name, which may be in any script, or raise `ValueError`."""
    text = text.strip()
    if not text or not text.isprintable():
        raise ValueError(f"invalid name {text!r}: expected one line of printable text, such as My plugin")
    return text


def code_from(text: str) -> str | None:
    """Return a code derived from a name, or None if there is none.

    Example:
        >>> code_from("Zähler für Äpfel")
        'zahler-fur-apfel'
        >>> code_from("플러그인") is None
        True
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9_]+", "-", plain).strip("-_").lstrip("0123456789-_")[:_MAX_NAME_LENGTH].rstrip("-_")
    return slug if slug and not _is_keyword(slug) else None


def write(files: Mapping[str, str], target: Path) -> None:
    """Write a plugin's files: all of them or, on any error or interruption, none. Never overwrites a file.

    A new directory appears at once, with all its files.

    Args:
        files: The content of each file, by its path.
        target: The plugin's directory. Other files in it stay unchanged.

    Raises:
        ConfigError: Some of the files exist already, which it lists, or the directory is not writable.
    """
    conflicts = _conflicts(files, target)
    if conflicts:
        listed = "\n".join(f"  {path}" for path in conflicts)
        raise ConfigError(f"nothing was written, because these already exist:\n{listed}\nchoose another DIRECTORY")
    try:
        with contextlib.ExitStack() as undo:
            directory = target
            if not target.exists():
                _make_directory(target.parent, undo)
                directory = target.with_name(f".{target.name}-{os.getpid()}")
            _make_directory(directory, undo)
            for name, text in files.items():
                path = directory / name
                _make_directory(path.parent, undo)
                with path.open("x", encoding="utf-8") as file:
                    undo.callback(path.unlink)
                    file.write(text)
            if directory != target:
                directory.rename(target)
            undo.pop_all()
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", path=error.filename or target) from error


def _make_directory(path: Path, undo: contextlib.ExitStack) -> None:
    for directory in (*reversed(path.parents), path):
        if not directory.is_dir():
            directory.mkdir()
            undo.callback(directory.rmdir)


def _conflicts(files: Iterable[str], target: Path) -> list[Path]:
    if os.path.lexists(target) and not target.is_dir():
        return [target]
    # A config file of another name makes the directory a plugin, too.
    needed = [target / name for name in dict.fromkeys([*files, *CONFIG_NAMES])]
    # A symbolic link to a directory points outside the plugin.
    directories = {path.parent for path in needed} - {target}
    blocked = [path for path in directories if os.path.lexists(path) and (path.is_symlink() or not path.is_dir())]
    return sorted({*blocked, *(path for path in needed if path.parent not in blocked and os.path.lexists(path))})


def _kind(action: str) -> _Kind:
    return _KINDS.get(action, _WORK)


def _render(name: str, values: Mapping[str, str]) -> str:
    return Template(_template(name)).substitute(values)


def _template(name: str) -> str:
    template = resources.files("synapse_runtime.cli").joinpath("templates", f"{name}.template")
    return template.read_text(encoding="utf-8")


def _is_keyword(text: str) -> bool:
    return keyword.iskeyword(text.replace("-", "_"))

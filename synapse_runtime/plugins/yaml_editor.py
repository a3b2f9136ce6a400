"""Edit the actions in the text of a config file; every other character stays unchanged.

Each function takes a text and returns the changed text. A change that affects more than the lines or brackets of one
action, such as one of an alias, raises `CannotEdit`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import yaml

Fields: TypeAlias = Mapping[str, str]
_Pair: TypeAlias = tuple[yaml.Node, yaml.Node]
_ACTIONS = "actions"


class CannotEdit(Exception):
    """The change must be made by hand."""


def with_field(text: str, action: str, field: str, value: str) -> str:
    """Set a field of an action.

    Raises:
        CannotEdit: The action, or the field, is written as an alias.
    """
    spec = _action(text, action)[1]
    if isinstance(spec, yaml.ScalarNode):  # only an entrypoint, or empty
        fields = {"entrypoint": spec.value} if spec.value else {}
        if field == "entrypoint" and spec.value:
            return _replaced(text, spec, _scalar(value, spec.style))
        return _replaced(text, spec, _flow(fields | {field: value}))
    assert isinstance(spec, yaml.MappingNode)
    pair = _pair(spec, field)
    if pair is not None:
        if not isinstance(pair[1], yaml.ScalarNode) or _is_alias(*pair):
            raise CannotEdit
        style = pair[1].style or ('"' if spec.flow_style else None)
        return _replaced(text, pair[1], _scalar(value, style))
    if spec.flow_style:
        return _into_brackets(text, spec, f"{field}: {_quoted(value)}")
    return _after(text, spec, [f"{' ' * _column(spec)}{field}: {_scalar(value)}"])


def with_action(text: str, action: str, fields: Fields) -> str:
    """Add an action after the existing ones.

    Raises:
        CannotEdit: The actions are written as an alias, or the whole file is written in brackets.
    """
    root = _compose(text)
    pair = _pair(root, _ACTIONS)
    if pair is None:
        if root.flow_style:
            raise CannotEdit
        return _after(text, root, [f"{_ACTIONS}:", *_block(action, fields, 2, 4)])
    key, actions = pair
    if _is_alias(key, actions):
        raise CannotEdit
    if not isinstance(actions, yaml.CollectionNode) or not actions.value:
        if root.flow_style:
            return _replaced(text, actions, "{" + f"{_scalar(action)}: {_flow(fields)}" + "}")
        bare = text[: actions.start_mark.index].rstrip(" ") + text[actions.end_mark.index :]
        return _after_line(bare, key.end_mark.index, _block(action, fields, 2, 4))
    if isinstance(actions, yaml.SequenceNode):
        fields = {"name": action, **fields}
        if actions.flow_style:
            return _into_brackets(text, actions, _flow(fields))
        start = actions.value[0].start_mark
        column = start.column - (start.index - text.rindex("-", 0, start.index))
        lines = [f"{' ' * (column + 2)}{name}: {_scalar(value)}" for name, value in fields.items()]
        lines[0] = f"{' ' * column}- {lines[0].lstrip()}"
        return _after(text, actions, lines, blank_line=_have_blank_lines(text, actions))
    if actions.flow_style:
        return _into_brackets(text, actions, f"{_scalar(action)}: {_flow(fields)}")
    column = _column(actions)
    inner = next(
        (_column(spec) for key, spec in actions.value if _is_block(spec) and not _is_alias(key, spec)), column + 2
    )
    lines = _block(action, fields, column, inner)
    return _after(text, actions, lines, blank_line=_have_blank_lines(text, actions))


def without_action(text: str, action: str) -> str:
    """Remove an action. Comments above it are kept.

    Raises:
        CannotEdit: The actions are written as an alias.
    """
    start_of, spec = _action(text, action)
    actions = _actions(text)
    end = _end(text, start_of, spec)
    if not actions.flow_style:
        start = text.rfind("\n", 0, start_of.start_mark.index) + 1
        after = text.find("\n", end)
        return text[:start] + ("" if after < 0 else text[after + 1 :])
    start = start_of.start_mark.index
    rest = text[end:].lstrip()
    if rest.startswith(","):
        return text[:start] + rest[1:].lstrip()
    before = text[:start].rstrip()
    return before.removesuffix(",") + text[end:]


def _compose(text: str) -> yaml.MappingNode:
    # Not the C loader: it counts a byte order mark at the start of a file differently.
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:  # invalid after an earlier change
        raise CannotEdit from None
    assert isinstance(root, yaml.MappingNode)
    return root


def _pair(mapping: yaml.Node, name: str) -> _Pair | None:
    return next(((key, value) for key, value in mapping.value if key.value == name), None)


def _actions(text: str) -> yaml.CollectionNode:
    pair = _pair(_compose(text), _ACTIONS)
    if pair is None or _is_alias(*pair) or not isinstance(pair[1], yaml.CollectionNode):
        raise CannotEdit
    return pair[1]


def _action(text: str, name: str) -> _Pair:
    """Return the key and value nodes of an action; in a list, the entry twice."""
    for key, spec in _entries(_actions(text)):
        own = key.value if key is not spec else getattr((_pair(spec, "name") or (None, None))[1], "value", None)
        if own == name:
            if _is_alias(key, spec):
                raise CannotEdit
            return key, spec
    raise CannotEdit  # defined by a merge key


def _entries(actions: yaml.CollectionNode) -> Iterator[_Pair]:
    if isinstance(actions, yaml.SequenceNode):
        yield from ((item, item) for item in actions.value if isinstance(item, yaml.MappingNode))
    else:
        yield from actions.value


def _is_alias(key: yaml.Node, value: yaml.Node) -> bool:
    """Return whether a value is an alias: its node is elsewhere in the file, before its key."""
    return key is not value and value.start_mark.index < key.end_mark.index


def _end(text: str, key: yaml.Node, node: yaml.Node) -> int:
    """Return the end of a value, without the comments and blank lines after it."""
    if _is_alias(key, node):
        line = text.find("\n", key.end_mark.index)
        return len(text) if line < 0 else line
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(text, *last) if isinstance(last, tuple) else _end(text, last, last)
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        return node.start_mark.index + len(text[node.start_mark.index : node.end_mark.index].rstrip())
    return node.end_mark.index


def _replaced(text: str, node: yaml.Node, new: str) -> str:
    start, end = node.start_mark.index, node.end_mark.index
    space = "" if text[:start].endswith((" ", "\n")) else " "
    return text[:start] + space + new + text[end:]


def _into_brackets(text: str, node: yaml.CollectionNode, new: str) -> str:
    closing = node.end_mark.index - 1
    inside = text[:closing].rstrip()
    comma = "" if inside.endswith((",", "{", "[")) else ","
    space = "" if inside.endswith(("{", "[")) else " "
    return inside + comma + space + new + text[len(inside) :]


def _after(text: str, node: yaml.Node, lines: list[str], *, blank_line: bool = False) -> str:
    return _after_line(text, _end(text, node, node), [""] * blank_line + lines)


def _after_line(text: str, position: int, lines: list[str]) -> str:
    """Insert lines after the line that contains this position."""
    newline = "\r\n" if "\r\n" in text else "\n"
    end = text.find("\n", position)
    before = text + newline if end < 0 else text[: end + 1]
    new = "".join(line + newline for line in lines)
    return before + (new.removesuffix(newline) if end < 0 else new) + ("" if end < 0 else text[end + 1 :])


def _have_blank_lines(text: str, actions: yaml.CollectionNode) -> bool:
    """Return whether the actions are separated by blank lines."""
    entries = list(_entries(actions))
    if len(entries) < 2:
        return False
    between = text[_end(text, *entries[0]) : entries[1][0].start_mark.index]
    return any(not line.strip() for line in between.splitlines()[1:-1])


def _is_block(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode) and not node.flow_style


def _column(mapping: yaml.Node) -> int:
    """Return the column of a mapping's keys. The mapping may start before them, with an anchor."""
    column: int = mapping.value[0][0].start_mark.column
    return column


def _block(action: str, fields: Fields, column: int, inner: int) -> list[str]:
    lines = [f"{' ' * inner}{name}: {_scalar(value)}" for name, value in fields.items()]
    return [f"{' ' * column}{_scalar(action)}:", *lines]


def _flow(fields: Fields) -> str:
    return "{" + ", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items()) + "}"


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _scalar(value: str, style: str | None = None) -> str:
    """Return a string as YAML, in this quoting style; by default without quotes if possible."""
    if style == '"':
        return _quoted(value)
    if style == "'":
        return "'" + value.replace("'", "''") + "'"
    written: str = yaml.safe_dump([value], allow_unicode=True, width=float("inf"))
    return written.removeprefix("- ").removesuffix("\n")

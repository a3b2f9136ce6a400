"""Edit the actions in the text of a config file; every other character stays unchanged.

Each function takes a text and returns the changed text. A change that affects more than the lines or brackets of one
action, such as one of an alias, raises `CannotEdit`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

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
    lines = _block(action, fields, column, _inner_column(actions, column))
    return _after(text, actions, lines, blank_line=_have_blank_lines(text, actions))


def with_value(text: str, action: str, path: Sequence[str], value: Any) -> str:
    """Set a value of any kind, at a path of keys of an action. In a list, entries that do not change keep their text.

    Raises:
        CannotEdit: The action, or a value on the path, is written as an alias, or is not a mapping.
    """
    key, spec = _action(text, action)
    if isinstance(spec, yaml.ScalarNode):
        text = _as_mapping(text, key, spec)
        spec = _action(text, action)[1]
    for depth, name in enumerate(path):
        if not isinstance(spec, yaml.MappingNode):
            raise CannotEdit
        pair = _pair(spec, name)
        new = _nested(path[depth + 1 :], value)
        if pair is None:
            if spec.flow_style:
                return _into_brackets(text, spec, f"{name}: {_flow_lines(text, spec, new)}")
            return _after(text, spec, _block_lines(name, new, _column(spec)))
        if _is_alias(*pair):
            raise CannotEdit
        if depth == len(path) - 1 or _is_empty(pair[1]):
            return _with_new_value(text, spec, pair, new)
        spec = pair[1]
    raise AssertionError("the path is empty")  # pragma: no cover


def without_value(text: str, action: str, path: Sequence[str]) -> str:
    """Remove the value at a path of keys of an action, and mappings on the path that contain nothing else.

    Raises:
        CannotEdit: A value on the path is written as an alias, or defined by a merge key.
    """
    node = _action(text, action)[1]
    found: list[tuple[yaml.MappingNode, _Pair]] = []
    for name in path:
        pair = _pair(node, name) if isinstance(node, yaml.MappingNode) else None
        if pair is None or _is_alias(*pair):
            raise CannotEdit
        assert isinstance(node, yaml.MappingNode)
        found.append((node, pair))
        node = pair[1]
    while len(found) > 1 and len(found[-1][0].value) == 1:
        found.pop()
    container, pair = found[-1]
    return _without(text, container, *pair)


def without_action(text: str, action: str) -> str:
    """Remove an action. Comments above it are kept.

    Raises:
        CannotEdit: The actions are written as an alias.
    """
    return _without(text, _actions(text), *_action(text, action))


def _without(text: str, container: yaml.CollectionNode, key: yaml.Node, value: yaml.Node) -> str:
    """Remove a pair of a mapping, or an entry of a list."""
    end = _end(text, key, value)
    if not container.flow_style:
        start = text.rfind("\n", 0, key.start_mark.index) + 1
        after = text.find("\n", end)
        return text[:start] + ("" if after < 0 else text[after + 1 :])
    start = key.start_mark.index
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


def _as_mapping(text: str, key: yaml.Node, spec: yaml.ScalarNode) -> str:
    """Write an action that is only an entrypoint as a mapping with that entrypoint."""
    actions = _actions(text)
    start, end = spec.start_mark.index, spec.end_mark.index
    if not spec.value or actions.flow_style:
        return _replaced(text, spec, _flow({"entrypoint": spec.value} if spec.value else {}))
    indent = " " * _inner_column(actions, _column(actions))
    return text[:start].rstrip() + f"{_newline(text)}{indent}entrypoint: " + text[start:end] + text[end:]


def _nested(path: Sequence[str], value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


def _is_empty(node: yaml.Node) -> bool:
    """Return whether a value is null or an empty mapping."""
    return node.tag.endswith(":null") or (isinstance(node, yaml.MappingNode) and not node.value)


def _with_new_value(text: str, mapping: yaml.MappingNode, pair: _Pair, value: Any) -> str:
    """Replace the value of a pair."""
    key, old = pair
    if mapping.flow_style:
        return _replaced(text, old, _flow_lines(text, mapping, value))
    is_flow = isinstance(old, yaml.CollectionNode) and old.flow_style
    if isinstance(old, yaml.SequenceNode) and not is_flow and isinstance(value, list):
        return _with_entries(text, old, value)
    if not is_flow and (not isinstance(old, yaml.ScalarNode) or old.style in ("|", ">")):
        raise CannotEdit
    bare = text[: old.start_mark.index].rstrip(" ") + text[old.end_mark.index :]
    return _after_line(bare, key.end_mark.index, _block_lines(key.value, value, _column(mapping))[1:])


def _with_entries(text: str, old: yaml.SequenceNode, entries: Sequence[Any]) -> str:
    """Replace the entries of a list in block style.

    Entries that do not change keep their text, and entries of the same `name` the comments above and after them.
    """
    spans = [_EntrySpan(text, node) for node in old.value]
    for before, after in itertools.pairwise(spans):
        if after.start <= before.end:  # an alias
            raise CannotEdit
        after.start = text.index("\n", before.end) + 1
    indent = " " * spans[0].column
    pieces = []
    for entry in entries:
        line = f"{indent}- {_flow_value(entry)}"
        same = next((span for span in spans if _is_same(span.data, entry)), None)
        named = next((span for span in spans if _name_in(span.data) == _name_in(entry)), None)
        if same is not None:
            pieces.append(text[same.start : same.end])
        else:
            pieces.append(line if named is None else text[named.start : named.line] + line + named.comment)
    return text[: spans[0].start] + _newline(text).join(pieces) + text[spans[-1].end :]


class _EntrySpan:
    """Where an entry of a list in block style is in a text.

    Attributes:
        start: Where the comments above it start; for the first one, the same as `line`.
        line: Where its first line starts.
        end: Where its last line ends, without the line break.
        comment: The comment after it.
        column: The column of its dash.
        data: Its value.
    """

    def __init__(self, text: str, node: yaml.Node) -> None:
        self.line = self.start = text.rfind("\n", 0, node.start_mark.index) + 1
        before = text[self.line : node.start_mark.index]
        if before.strip() != "-":
            raise CannotEdit
        self.column = before.index("-")
        end = _end(text, node, node)
        after = text.find("\n", end)
        self.end = len(text) if after < 0 else after - text[:after].endswith("\r")
        self.comment = text[end : self.end]
        try:
            self.data = yaml.SafeLoader("").construct_document(node)
        except (yaml.YAMLError, ValueError):
            self.data = None


def _is_same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True, default=str) == json.dumps(other, sort_keys=True)


def _name_in(entry: Any) -> Any:
    return entry.get("name", entry) if isinstance(entry, dict) else entry


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
    newline = _newline(text)
    end = text.find("\n", position)
    before = text + newline if end < 0 else text[: end + 1]
    new = "".join(line + newline for line in lines)
    return before + (new.removesuffix(newline) if end < 0 else new) + ("" if end < 0 else text[end + 1 :])


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


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


def _inner_column(actions: yaml.CollectionNode, column: int) -> int:
    """Return the column of the fields of actions whose names are at a column."""
    columns = (_column(spec) for key, spec in actions.value if _is_block(spec) and not _is_alias(key, spec))
    return next(columns, column + 2)


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


def _block_lines(name: str, value: Any, column: int) -> list[str]:
    """Return the lines of a pair; entries of a list have a line each."""
    indent = " " * column
    if isinstance(value, dict) and value:
        return [f"{indent}{name}:", *(line for key in value for line in _block_lines(key, value[key], column + 2))]
    if isinstance(value, list) and value:
        return [f"{indent}{name}:", *(f"{indent}  - {_flow_value(entry)}" for entry in value)]
    return [f"{indent}{name}: {_flow_value(value)}"]


def _flow_lines(text: str, mapping: yaml.MappingNode, value: Any) -> str:
    """Return a value in brackets, for a mapping in brackets; entries of a list have a line each."""
    if isinstance(value, dict) and value:
        return "{" + ", ".join(f"{key}: {_flow_lines(text, mapping, each)}" for key, each in value.items()) + "}"
    if not isinstance(value, list):
        return _flow_value(value)
    line = text[text.rfind("\n", 0, mapping.start_mark.index) + 1 :]
    indent = _newline(text) + " " * (len(line) - len(line.lstrip(" ")) + 4)
    return "[" + ",".join(indent + _flow_value(entry) for entry in value) + "]"


def _flow_value(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow_value(key)}: {_flow_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow_value, value)) + "]"
    options: dict[str, Any] = {"allow_unicode": True, "width": float("inf"), "default_flow_style": True}
    line: str = yaml.safe_dump([value], **options)
    if len(line.splitlines()) > 1:
        line = yaml.safe_dump([value], default_style='"', **options)
    return line[1:-2]

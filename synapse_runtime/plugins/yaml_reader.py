"""Read one YAML document within size limits; report each problem with its line, and look up the lines of keys."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from synapse_runtime.errors import ConfigError, Problem
from synapse_runtime.plugins.discovery import MAX_CONFIG_BYTES

MAX_DEPTH = 100
# Aliases are expanded when values are used, so a few lines of them can stand for billions of values.
MAX_ALIASED = 100_000

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same loader, implemented in C

_TAG = "tag:yaml.org,2002:"
_STR, _MERGE = _TAG + "str", _TAG + "merge"
_NUMBERS = frozenset({_TAG + "int", _TAG + "float"})
_PLAIN = frozenset({_STR, *_NUMBERS, *(_TAG + kind for kind in ("null", "bool", "seq", "map"))})
# A config is sent to a backend as JSON, which has no dates; PyYAML has no constructor for a lone `=`.
_READ_AS_TEXT = frozenset({_TAG + "timestamp", _TAG + "value", _MERGE})
# libyaml rejects deep nesting, but uses unbounded memory first if lists within lists are on one line.
_LISTS_ON_ONE_LINE = re.compile(r"(?:\A|[\r\n\x85\u2028\u2029])[ ]*(?:[-?][ \t]+){50}")


_Entry: TypeAlias = tuple[int, yaml.Node]  # a line, from 1, and the node of a value


class Document:
    """The values of a YAML text, and their lines.

    Created by `parse`.

    Attributes:
        data: The values as plain Python objects; keys are strings, as written.
    """

    def __init__(self, root: yaml.Node | None, data: Any) -> None:
        self._root = root
        self._entries: dict[int, dict[str | int, _Entry]] = {}  # of nodes whose keys were looked up, by their ids
        self.data = data

    def line(self, keys: Sequence[str | int]) -> int | None:
        """Return the line number, from 1, of the deepest of these keys that exists.

        Args:
            keys: The path from the top level: keys of mappings; for lists an index, or the `name` of an entry.
        """
        node, line = self._root, None
        for key in keys:
            found = None if node is None else self._child(node, key)
            if found is None:
                break
            line, node = found
        return line

    def texts(self) -> dict[tuple[str | int, ...], str]:
        r"""Return numbers, booleans and nulls as they are written, by their paths; without those of merge keys (`<<`).

        Example:
            >>> parse("country: NO\nversions: [1.10, x]\n").texts()
            {('country',): 'NO', ('versions', 0): '1.10'}
        """
        return {} if self._root is None else dict(_texts(self._root, ()))

    def _child(self, node: yaml.Node, key: str | int) -> _Entry | None:
        """Return the line and the value of a key; in a list, of an index or name."""
        entries = self._entries.get(id(node))
        if entries is None:
            entries = self._entries[id(node)] = _entries(node)
        return entries.get(key if isinstance(node, yaml.SequenceNode) else str(key))


def _texts(node: yaml.Node, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(node, yaml.ScalarNode):
        if node.tag != _STR:
            yield path, node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag != _MERGE:
                yield from _texts(value, (*path, key.value))
    else:
        for index, value in enumerate(node.value):
            yield from _texts(value, (*path, index))


def read_text(path: Path) -> str:
    """Return a file's text with its line endings unchanged.

    Raises:
        ConfigError: The file cannot be read, is larger than 1 MB, or is not UTF-8.
    """
    try:
        if not path.is_dir() and not path.is_file() and path.exists():  # reading a pipe might never end
            raise ConfigError("not a regular file", path=path)
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the file: {error.strerror}", path=path) from error
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError(
            f"the file is larger than {MAX_CONFIG_BYTES:,} bytes; move data into separate files", path=path
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        text = f"not UTF-8: {error.reason} at byte {error.start}; save the file as UTF-8"
        raise ConfigError(text, path=path, line=line) from None  # the cause contains the file's content


def parse(text: str, path: Path | None = None, *, text_at: Collection[tuple[str, ...]] = ()) -> Document:
    r"""Parse a YAML text.

    Args:
        text: The text.
        path: The file it was read from, for errors.
        text_at: Paths of values whose numbers are kept as text, so that `3.10` is not 3.1; `*` stands for any key.

    Raises:
        ConfigError: Invalid YAML, duplicate keys, tags, aliases that expand to too many values, or more than one
            document. Each problem has its line, and shows no values, which may be secrets.

    Example:
        >>> document = parse("code: x\nactions:\n  train:\n    entrypoint: 3\n")
        >>> document.data
        {'code': 'x', 'actions': {'train': {'entrypoint': 3}}}
        >>> document.line(("actions", "train", "entrypoint"))
        4
    """
    nested = _LISTS_ON_ONE_LINE.search(text)
    if nested:
        line = text.count("\n", 0, nested.end()) + 1
        raise ConfigError("nested too deeply", path=path, line=line)
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.YAMLError as error:
        raise _syntax_error(text, path, error) from None  # its message shows lines of the file
    except RecursionError:  # raised by the pure Python loader
        raise ConfigError("nested too deeply", path=path) from None
    if root is None:
        return Document(None, None)
    visitor = _NodeVisitor()
    visitor.visit(root)
    if visitor.problems:
        raise ConfigError.of([Problem(problem, path, line) for line, problem in sorted(visitor.problems)])
    for keys in text_at:
        _keep_text(root, keys)
    try:
        return Document(root, loader.construct_document(root))
    except yaml.YAMLError as error:
        raise _syntax_error(text, path, error) from None
    except (ValueError, LookupError):
        line, kind = _first_invalid_value(root)
        raise ConfigError(f"not a valid {kind}; quote it if it is text", path=path, line=line) from None


class _NodeVisitor:
    """Visits all nodes: counts their values, collects problems, and turns tags such as timestamps into text."""

    def __init__(self) -> None:
        self.problems: list[tuple[int, str]] = []
        self._node_count = 0
        self._sizes: dict[int, int | None] = {}
        self._too_many = False

    def visit(self, node: yaml.Node, depth: int = 0) -> int:
        """Visit a node and those below it; return the number of its values, with all aliases expanded."""
        known = self._sizes.get(id(node), 0)
        if known is None:
            self._add_problem(node, "an alias makes this value contain itself")
            return 1
        if known:
            return known
        self._node_count += 1
        if node.tag in _READ_AS_TEXT and isinstance(node, yaml.ScalarNode):
            node.tag = _STR
        if node.tag not in _PLAIN:
            self._add_problem(node, _tag_error(node.tag))
        size = 1
        if isinstance(node, yaml.CollectionNode):
            if depth == MAX_DEPTH:
                self._add_problem(node, "nested too deeply")
                return 1
            self._sizes[id(node)] = None
            parts = node.value if isinstance(node, yaml.SequenceNode) else list(self._values(node))
            size += sum(self.visit(part, depth + 1) for part in parts)
        self._sizes[id(node)] = size
        if size > MAX_ALIASED + self._node_count and not self._too_many:
            self._too_many = True
            self._add_problem(node, f"the aliases expand to more than {MAX_ALIASED:,} values")
        return size

    def _add_problem(self, node: yaml.Node, text: str) -> None:
        self.problems.append((node.start_mark.line + 1, text))

    def _values(self, node: yaml.CollectionNode) -> Iterator[yaml.Node]:
        """Yield the values of a mapping, and check its keys."""
        lines: dict[str, int] = {}
        for index, (key, value) in enumerate(node.value):
            yield value
            if key.tag == _MERGE:
                continue
            if not isinstance(key, yaml.ScalarNode):
                self._add_problem(key, "a key must be text; quote it if it starts with a bracket")
                continue
            if key.tag not in _PLAIN and key.tag not in _READ_AS_TEXT:
                self._add_problem(key, _tag_error(key.tag))
            name = key.value
            if name in lines:
                self._add_problem(key, f"duplicate key {name!r}, first defined in line {lines[name]}; remove one")
            lines.setdefault(name, key.start_mark.line + 1)
            if key.tag != _STR:
                node.value[index] = (_text_of(key), value)


def _text_of(node: yaml.ScalarNode) -> yaml.ScalarNode:
    return yaml.ScalarNode(_STR, node.value, node.start_mark, node.end_mark, node.style)


def _tag_error(tag: str) -> str:
    # Do not show it: what looks like a tag may be a password that starts with `!`.
    kind = tag.removeprefix(_TAG)
    if kind.startswith("python/") or kind in ("binary", "omap", "pairs", "set"):
        return f"tag '!!{kind}' is not allowed; a config file has plain values only"
    return "tags ('!…') are not allowed; quote text that starts with '!'"


def _keep_text(node: yaml.Node, keys: tuple[str, ...]) -> None:
    if not isinstance(node, yaml.CollectionNode):
        return
    for index, item in enumerate(node.value):
        key, value = item if isinstance(item, tuple) else (None, item)
        if keys[0] != "*" and (key is None or key.value != keys[0]):
            continue
        if len(keys) > 1:
            _keep_text(value, keys[1:])
        elif value.tag in _NUMBERS:
            node.value[index] = _text_of(value) if key is None else (key, _text_of(value))


def _entries(node: yaml.Node) -> dict[str | int, _Entry]:
    """Return the entries of a node by key; those of a list by index and by name."""
    found: dict[str | int, _Entry] = {}
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            entry = item.start_mark.line + 1, item
            found[index] = entry
            name = _name_of(item) if isinstance(item, yaml.MappingNode) else None
            if name is not None:
                found.setdefault(name, entry)
    elif isinstance(node, yaml.MappingNode):
        merged: list[yaml.Node] = []
        for key, value in reversed(node.value):  # merge keys come before the mapping's own keys
            if key.tag == _MERGE:
                merged.extend(value.value if isinstance(value, yaml.SequenceNode) else [value])
            found.setdefault(key.value, (key.start_mark.line + 1, value))
        for part in merged:
            found = _entries(part) | found
    return found


def _name_of(node: yaml.MappingNode) -> str | None:
    return next((value.value for key, value in node.value if key.value == "name"), None)


def _first_invalid_value(root: yaml.Node) -> tuple[int, str]:
    """Return the line of the first value that cannot be converted to its type, and the name of that type."""
    stack, seen = [root], set()
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            try:
                _Loader("").construct_object(node)
            except (ValueError, LookupError):
                return node.start_mark.line + 1, node.tag.removeprefix(_TAG)
        elif isinstance(node, yaml.MappingNode):
            stack.extend(value for _, value in reversed(node.value))
        else:
            stack.extend(reversed(node.value))
    raise AssertionError("all values can be constructed")  # pragma: no cover - then the document can be, too


def _syntax_error(text: str, path: Path | None, error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = None if mark is None else min(mark.line, text.count("\n")) + 1
    if isinstance(error, yaml.reader.ReaderError):
        character = chr(error.character) if isinstance(error.character, int) else str(error.character)
        line = text.count("\n", 0, max(text.find(character), 0)) + 1
        problem = f"the character U+{ord(character[0]):04X} is not allowed; remove it"
    else:
        problem = _description(text.splitlines(), mark, error)
    return ConfigError(f"invalid YAML: {problem}", path=path, line=line)


def _description(lines: list[str], mark: Any, error: yaml.YAMLError) -> str:
    """Return what is wrong, without quoting the file: its text may be part of a secret."""
    problem = str(getattr(error, "problem", None) or "cannot be parsed")
    context = getattr(error, "context", None)
    at = lines[mark.line] if mark is not None and mark.line < len(lines) else ""
    if "\t" in at[: len(at) - len(at.lstrip())]:
        return "the line is indented with a tab; indent with spaces"
    if "another document" in problem:
        return "a second document starts here; a config file has one document, remove this line and what follows"
    if "undefined alias" in problem:
        return "alias ('*…') without an anchor; quote text that starts with '*'"
    if context and "duplicate anchor" in context:
        first = error.context_mark.line + 1  # type: ignore[attr-defined]
        return f"duplicate anchor ('&…'), first defined in line {first}"
    return f"{problem} ({context})" if context else problem

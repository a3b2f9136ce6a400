"""The documentation's pages: their code blocks, commands, inline code, links and anchors."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
# Pages whose code blocks are checked.
PAGES = (
    *("README.md", "CONTRIBUTING.md", "example_plugin/README.md"),
    *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")),
)
_NOT_RUN = re.compile(r"<!-- not run: (\S.*\S) -->\s*")
_ASSIGNMENT = re.compile(r"\w+=")
_COMMENT = re.compile(r"\s#\s+(.*)$")
_CODE_IN_COMMENT = re.compile(r"(?<=`)[^`]+(?=`)|(?<![\w`-])--[\w-]+")


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        page: The page's path, relative to the repository.
        line: The line that the block starts in.
        language: The language that its fence names; `text` if none. `commands` if it is indented.
        text: Its content.
        not_run: The reason in a comment `<!-- not run: reason -->` just before it, if there is one.
    """

    page: str
    line: int
    language: str
    text: str = field(repr=False)
    not_run: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a console block.

    Attributes:
        block: The block.
        words: The command's words, without assignments before it, redirections and comments.
        env: Environment variables that are assigned before it.
        comment: The comment after it.
        output: The lines shown below it.
    """

    block: Block
    words: tuple[str, ...]
    env: dict[str, str]
    comment: str
    output: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


@cache
def tokens(page: str) -> tuple[Token, ...]:
    """Parse a page."""
    return tuple(MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text(encoding="utf-8")))


def blocks(*languages: str) -> list[Block]:
    """Return the code blocks of all pages, or those in these languages."""
    found = [block for page in PAGES for block in _blocks(page)]
    return [block for block in found if not languages or block.language in languages]


def each(*languages: str) -> pytest.MarkDecorator:
    """Parametrize a test with the blocks in these languages, except those that are marked as not run."""
    return pytest.mark.parametrize("block", [block for block in blocks(*languages) if block.not_run is None], ids=str)


def _blocks(page: str) -> Iterator[Block]:
    before: Token | None = None
    for token in tokens(page):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            comment = _NOT_RUN.fullmatch(before.content) if before is not None else None
            language = token.info.strip() or "text"
            text = token.content
            if token.type == "code_block":
                language, text = "commands", re.sub(r"^(?=\S)", "$ ", text, flags=re.MULTILINE)
            yield Block(page, token.map[0] + 1, language, text, comment and comment[1])
        before = token


def commands(block: Block) -> list[Command]:
    """Return the commands of a console block: what follows `$ ` at the start of a line."""
    found = []
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        line, *output = part.splitlines()
        comment = _COMMENT.search(line)
        words = shlex.split(line.removesuffix(comment[0]) if comment else line)
        if ">" in words:
            words = words[: words.index(">")]
        env = {}
        while _ASSIGNMENT.match(words[0]):
            name, _, env_value = words.pop(0).partition("=")
            env[name] = env_value
        found.append(Command(block, tuple(words), env, comment[1] if comment else "", tuple(output)))
    return found


@cache
def inline_code(page: str) -> list[tuple[int, str]]:
    """Return the inline code of a page, and the options in comments of its console blocks, with line numbers."""
    found = [(line, child.content) for line, child in _inline(page) if child.type == "code_inline"]
    for block in blocks("console", "commands"):
        for command in commands(block) if block.page == page else ():
            found += [(block.line, code) for code in _CODE_IN_COMMENT.findall(command.comment)]
    return found


@cache
def links(page: str) -> list[tuple[int, str]]:
    """Return the targets of a page's links and images, with line numbers."""
    found = []
    for line, child in _inline(page):
        target = child.attrs.get("href" if child.type == "link_open" else "src")
        if child.type in ("link_open", "image"):
            found.append((line, str(target)))
    return found


@cache
def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found: Counter[str] = Counter()
    names = set()
    for heading, inline in zip(tokens(page), tokens(page)[1:], strict=False):
        if heading.type == "heading_open":
            text = "".join(child.content for child in inline.children or [] if child.type in ("text", "code_inline"))
            name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            names.add(f"{name}-{found[name]}" if found[name] else name)
            found[name] += 1
    return names


def _inline(page: str) -> Iterator[tuple[int, Token]]:
    line = 0
    for token in tokens(page):
        line = token.map[0] + 1 if token.map else line
        for child in token.children or []:
            yield line, child

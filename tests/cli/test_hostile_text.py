"""Texts of plugins, clusters and errors cannot give commands to a terminal, nor look like lines of the command."""

from __future__ import annotations

import json
from pathlib import Path

import pexpect
import pytest

from synapse_runtime.cli.console import printable
from tests.cli.processes import COMMAND, Synapse
from tests.patience import patience

# Sets the clipboard, clears the screen, sets the title by a control of C1, reverses the order of what follows.
HOSTILE = "\x1b]52;c;cm0gLXJm\x07\x1b[2J\x9d0;title\x9c\u202eexe"
ESCAPED = r"\x1b]52;c;cm0gLXJm\x07\x1b[2J\x9d0;title\x9c\u202eexe"

CONFIG = """\
code: "hostile\\x1b]52;c;cm0gLXJm\\x07"
name: "line\\nerror: none"
version: "1\\x9b2J"
actions:
  raise:
    entrypoint: acts:Raise
    description: "{}"
  "bad\\x1b[2J":
    entrypoint: missing:Action
  broken:
    entrypoint: broken:Action
unknown\\x1b: 1
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    description = json.dumps("about" + HOSTILE + "\nsecond line")[1:-1]
    (tmp_path / "config.yaml").write_text(CONFIG.replace("{}", description))
    (tmp_path / "acts.py").write_text(
        "from pydantic import BaseModel, Field\n"
        "from synapse_runtime.action import BaseAction\n"
        "class Params(BaseModel):\n"
        f"    name: str = Field('x', description={HOSTILE!r})\n"
        "class Raise(BaseAction[Params]):\n"
        "    def execute(self):\n"
        f"        raise ValueError('failed' + {HOSTILE!r} + '\\nerror: all is well')\n"
    )
    (tmp_path / "broken.py").write_text(f"raise RuntimeError({HOSTILE!r} + '\\nOK')\n")
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ("plugin", "list"),
        ("plugin", "actions"),
        ("plugin", "check"),
        ("plugin", "run", "raise", "--mode", "local"),
        ("plugin", "run", "broken", "--mode", "local"),
        ("plugin", "run", "bad\x1b[2J", "--mode", "local"),
        ("plugin", "run", "nothing\x1b[2J", "--mode", "local"),
        ("plugin", "update-config", "--check"),
        ("doctor",),
    ],
    ids=lambda arguments: " ".join(arguments).encode("unicode_escape").decode(),
)
@pytest.mark.parametrize("as_json", [False, True], ids=["", "json"])
def test_no_control_characters_are_printed(synapse: Synapse, hostile: Path, arguments, as_json):
    done = synapse(*arguments, *(["--json"] if as_json else []), cwd=hostile)
    for text in (done.stdout, done.stderr):
        assert [character for character in text if not character.isprintable() and character not in "\n\t"] == []
        assert not any(line.startswith(("error: none", "error: all is well", "OK\n")) for line in text.splitlines())
    if arguments[1:] == ("list",) and not as_json:
        assert r"line\nerror: none" in done.stdout


def test_no_control_characters_are_drawn_on_a_terminal(synapse: Synapse, hostile: Path):
    for arguments in (["plugin", "list"], ["plugin", "actions"], ["plugin", "run", "raise", "--mode", "local"]):
        child = pexpect.spawn(
            COMMAND[0],
            [*COMMAND[1:], *arguments],
            cwd=str(hostile),
            env=synapse.environment(NO_COLOR="1", TERM="dumb"),
            encoding="utf-8",
            timeout=patience(30),
        )
        child.expect(pexpect.EOF)
        shown = child.before or ""
        assert "]52;c;cm0gLXJm" not in shown.replace(r"\x1b]52;c;cm0gLXJm", "")
        assert "\x9d" not in shown
        assert "\u202e" not in shown


def test_output_of_the_action_itself_is_not_changed(synapse: Synapse, tmp_path: Path):
    (tmp_path / "config.yaml").write_text("code: x\nactions: {say: {entrypoint: 'acts:say'}}\n")
    (tmp_path / "acts.py").write_text(
        "from synapse_runtime.decorators import action\n"
        "@action\n"
        "def say(params, context):\n"
        "    print('\\x1b[31mred\\x1b[0m')\n"
    )
    assert "\x1b[31mred\x1b[0m\n" in synapse("plugin", "run", "say", "--mode", "local", cwd=tmp_path).stdout


def test_printable_text_is_not_changed():
    for text in ("naïve 日本語 🙂", "", "a\tb"):
        assert printable(text) == text
    assert printable(HOSTILE) == ESCAPED
    assert printable("a\nb", lines=True) == "a\nb"
    assert printable("a\r\nb", lines=True) == "a\\r\nb"

"""Run the commands of docs/tutorial.md in order, and write their output below them.

The commands run in a terminal, starting in a new directory; the page shows the screen when each has ended. Paths,
times, versions and ports are replaced by fixed values, so that the page can be compared.

Run it from the repository root: python docs/make_tutorial.py [--check]
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pexpect
import pyte

PAGE = Path(__file__).with_name("tutorial.md")
HOME = "/home/you"
COLUMNS, LINES = 100, 400
SECONDS = 120
# The answers to a command's prompts, in order.
ANSWERS = {"synapse plugin create": ["my-plugin", "", "neural_net", "", ""]}
# Commands that are expected to fail, with their exit status.
STATUS = {
    "synapse plugin check .": 1,
    "synapse plugin run train --mode local --param epoch=5": 2,
    "synapse plugin run train --mode local --param epochs=many": 2,
}
QUESTION = re.compile(r"(?:: |\]: )$")
BLOCK = re.compile(r"```console\n(\$ .*?)```\n", re.DOTALL)
_ONLY_OUR_PLUGIN = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "-p synapse -p no:cacheprovider"}
_NOT_INHERITED = ("COV_CORE", "COLUMNS", "PYTEST_", "RAY_", "SYNAPSE_")


class Tutorial:
    """A new user's terminal, starting in the given directory."""

    def __init__(self, directory: Path) -> None:
        self.home = directory
        self.cwd = directory

    def run(self, command: str) -> str:
        """Run a command as a shell would, and return the screen, normalized to be the same on every machine.

        Raises:
            SystemExit: The command exits with an unexpected status.
        """
        words = shlex.split(command, comments=True)
        if words[0] == "cd":
            self.cwd = self.cwd / words[1]
            return ""
        if words[0] == "synapse":  # the one of this environment, even if another is first on the PATH
            words[0] = str(Path(sys.executable).with_name("synapse"))
        screen, status = self._screen(words, ANSWERS.get(command, []))
        if status != STATUS.get(command, 0):
            raise SystemExit(f"`{command}` exited with status {status}:\n{screen}")
        return "\n".join(normalized(screen.replace(str(self.home), HOME)))

    def _screen(self, words: Sequence[str], answers: Sequence[str]) -> tuple[str, int | None]:
        screen = pyte.Screen(COLUMNS, LINES)
        stream = pyte.Stream(screen)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about a fork in a process with threads
            child = pexpect.spawn(
                words[0],
                list(words[1:]),
                cwd=str(self.cwd),
                env=self._environment(),
                dimensions=(LINES, COLUMNS),
                encoding="utf-8",
                timeout=SECONDS,
            )
        answered = -1
        for answer in answers:
            while screen.cursor.y == answered or not QUESTION.search(_line_so_far(screen)):
                stream.feed(child.read_nonblocking(4096, SECONDS))
            answered = screen.cursor.y
            child.sendline(answer)
        with contextlib.suppress(pexpect.EOF):
            while True:
                stream.feed(child.read_nonblocking(4096, SECONDS))
        child.close()
        return "\n".join(line.rstrip() for line in screen.display).rstrip(), child.exitstatus

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        own = {"HOME": str(self.home), "XDG_STATE_HOME": str(self.home / ".state"), "TERM": "xterm-256color"}
        return kept | own | _ONLY_OUR_PLUGIN | {"PYTHONDONTWRITEBYTECODE": "1"}


def _line_so_far(screen: pyte.Screen) -> str:
    return screen.display[screen.cursor.y][: screen.cursor.x]


def normalized(screen: str) -> Iterator[str]:
    """Yield a screen's lines, with what differs between runs or machines replaced by fixed values."""
    for line in screen.splitlines():
        line = re.sub(r"\[\d\d:\d\d:\d\d\]", "[10:00:00]", line)
        line = re.sub(r"(?<!/)127\.0\.0\.1:\d+", "127.0.0.1:6379", line)
        line = re.sub(r"//127\.0\.0\.1:\d+", "//127.0.0.1:8000", line)
        line = re.sub(r"run-[0-9a-f]{16}", "run-3f9c2a71d04be865", line)
        line = re.sub(r"( +)\d[\d.]* (ms|s|µs)\b", _same_time, line)
        line = re.sub(r"\b\d+\.\d\ds( \(\d:\d\d:\d\d\))?", "5.00s", line)
        line = re.sub(r"^platform \w+ -- Python [\d.]+\w*, pytest-[\d.]+, pluggy-[\d.]+", _PLATFORM, line)
        heading = re.fullmatch(r"=+ (.*?) =+", line)
        yield f" {heading[1]} ".center(COLUMNS, "=") if heading else line


_PLATFORM = "platform linux -- Python 3.11.9, pytest-9.0.0, pluggy-1.6.0"


def _same_time(match: re.Match[str]) -> str:
    """Return a fixed time: of the same width if it is in a column."""
    return "1.50 ms".rjust(len(match[0])) if match[1] > " " else " 0.50 s"


def page() -> str:
    """Return the page with the current output of its commands."""
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        tutorial = Tutorial(Path(directory).resolve())

        def rerun(block: re.Match[str]) -> str:
            commands = [line[2:] for line in block[1].splitlines() if line.startswith("$ ")]
            shown = [part for command in commands for part in (f"$ {command}", tutorial.run(command)) if part]
            return "```console\n" + "\n".join(shown) + "\n```\n"

        return BLOCK.sub(rerun, PAGE.read_text(encoding="utf-8"))


def main() -> int:
    """Write the page; with `--check` print how it differs from the current output and return 1."""
    before, now = PAGE.read_text(encoding="utf-8"), page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(now, encoding="utf-8")
        return 0
    different = difflib.unified_diff(before.splitlines(), now.splitlines(), str(PAGE), "now", lineterm="")
    diff = "\n".join(different)
    if diff:
        print(f"{diff}\nthe page is out of date; run python docs/make_tutorial.py", file=sys.stderr)
    return 1 if diff else 0


if __name__ == "__main__":
    sys.exit(main())

"""A new user's path, from nothing to a plugin that is tested on Ray: its screens are those of docs/tutorial.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.patience import patience

ROOT = Path(__file__).parents[2]


def test_the_page_shows_what_its_commands_print() -> None:
    done = subprocess.run(
        [sys.executable, "docs/make_tutorial.py", "--check"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience(180),
    )
    assert done.returncode == 0, done.stderr


def test_the_page_goes_the_whole_way() -> None:
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    commands = ["create", "check", "test --mode local --mode task", "run train --mode local"]
    found = [page.find(f"\n$ synapse plugin {command}") for command in commands]
    assert -1 not in found
    assert found == sorted(found)
    assert "20 passed" in page

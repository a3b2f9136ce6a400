"""docs/tutorial.md: its screens show the output of its commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.patience import patience

ROOT = Path(__file__).parents[2]


def test_page_shows_the_output_of_its_commands() -> None:
    done = subprocess.run(
        [sys.executable, "docs/make_tutorial.py", "--check"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience(180),
    )
    assert done.returncode == 0, done.stderr


def test_page_covers_all_steps() -> None:
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    commands = ["create", "check", "test --mode local --mode task", "run train --mode local"]
    found = [page.find(f"\n$ synapse plugin {command}") for command in commands]
    assert -1 not in found
    assert found == sorted(found)
    assert "20 passed" in page

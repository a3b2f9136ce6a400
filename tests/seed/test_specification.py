"""Tests that docs/specification.md has a test for each statement, and names existing tests only, and all of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import patience

ROOT = Path(__file__).parents[2]
HERE = "tests/seed/"
PAGE = (ROOT / "docs" / "specification.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| statement")]


def named_in(row: str) -> set[str]:
    """Return the ids of the tests that a row names."""
    named = re.findall(r"`((?:[\w/]+/)?test_\w+\.py::[\w:]+)`", row)
    return {name if "/" in name else HERE + name for name in named}


@pytest.fixture(scope="module")
def collected() -> set[str]:
    """The ids, without parameters, of the tests in all files that the page names and in `tests/seed`."""
    files = {HERE} | {test.partition("::")[0] for row in ROWS for test in named_in(row)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *sorted(files)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=patience(60),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}


def test_each_statement_has_a_test() -> None:
    assert len(ROWS) > 80
    assert [row for row in ROWS if not named_in(row)] == []


def test_each_test_that_is_named_exists(collected: set[str]) -> None:
    assert {test for row in ROWS for test in named_in(row)} - collected == set()


def test_each_test_of_the_specification_is_named(collected: set[str]) -> None:
    of_the_page = {test for row in ROWS for test in named_in(row)}
    own = Path(__file__).name
    assert {test for test in collected if test.startswith(HERE) and own not in test} - of_the_page == set()

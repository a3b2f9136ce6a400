"""Tests that coverage measures the same lines of an SDK action in every mode."""

from __future__ import annotations

import os
import re
import shutil
from collections import defaultdict
from pathlib import Path

from coverage import CoverageData

from tests.parity.sessions import run_pytest
from tests.sdk.conftest import HERE

TESTS = "own_run or with_its_cause"


def test_coverage_has_the_same_lines_in_every_mode(tmp_path: Path):
    project = shutil.copytree(HERE / "handwritten", tmp_path / "handwritten")
    session = run_pytest(
        project,
        *("tests/test_actions.py", "-k", TESTS, "--synapse-mode=all"),
        *("--cov=plugin", "--cov-context=test", "--cov-report="),
        env={name: value for name, value in os.environ.items() if name.startswith("RAY_")},
        timeout=200,
    )
    assert session.status == 0, session.output
    data = CoverageData(str(project / ".coverage"))
    data.read()
    found: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for file in data.measured_files():
        for line, contexts in data.contexts_by_lineno(file).items():
            for mode in re.findall(r"\b(local|task|job)\]\|run", " ".join(contexts)):
                found[mode][Path(file).name].add(line)
    assert found["local"] == found["task"] == found["job"]
    lines = (project / "plugin" / "forms.py").read_text().splitlines()
    (number,) = (number for number, line in enumerate(lines, 1) if '"from run"' in line)
    assert number in found["local"]["forms.py"]
    assert {"forms.py", "helpers.py"} <= set(found["local"])

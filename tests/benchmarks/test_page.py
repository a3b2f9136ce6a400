"""docs/performance.md matches the results files."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "make_performance_page.py"
PAGE = ROOT / "docs" / "performance.md"


@pytest.fixture
def make_page(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("make_performance_page", SCRIPT)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def measured(tmp_path, make_page):
    """A copy of the results files."""
    return Path(shutil.copytree(make_page.RESULTS, tmp_path / "performance"))


def test_page_matches_the_results():
    subprocess.run([sys.executable, SCRIPT, "--check"], check=True)


@pytest.mark.parametrize("name", ["results.json", "sdk.json"])
def test_changed_figure_changes_the_page(make_page, measured, name):
    data = json.loads((measured / name).read_text())
    data["lines"][3]["median"] += 1
    (measured / name).write_text(json.dumps(data))
    text = PAGE.read_text()
    assert make_page.page(text, measured) != text


def test_results_of_a_quick_run_are_rejected(make_page, measured):
    data = json.loads((measured / "results.json").read_text())
    (measured / "results.json").write_text(json.dumps(data | {"quick": True}))
    with pytest.raises(SystemExit, match="quick run"):
        make_page.page(PAGE.read_text(), measured)


def test_page_without_markers_of_a_table_is_rejected(make_page):
    with pytest.raises(SystemExit, match="no markers for the table 'goals'"):
        make_page.page(PAGE.read_text().replace("<!-- goals:", "<!--"))


def test_page_shows_each_chart_and_goal(make_page):
    from benchmarks.goals import GOALS

    text = PAGE.read_text()
    for picture in ("goals.svg", "growth.svg"):
        assert f"(performance/{picture})" in text
        assert (make_page.RESULTS / picture).exists()
    assert [goal.what for goal in GOALS if f"| {goal.what} |" not in text] == []

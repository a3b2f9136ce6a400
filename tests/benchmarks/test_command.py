import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS, main, status
from benchmarks.goals import BY_NAME, GOALS
from benchmarks.growth import GROWTH
from benchmarks.measure import Line, Pairs
from tests.patience import patience

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "benchmarks")


@pytest.fixture
def env(tmp_path):
    """An environment whose temporary directory must be empty after the test."""
    (tmp_path / "tmp").mkdir()
    yield os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    assert list((tmp_path / "tmp").iterdir()) == []


def test_each_goal_is_measured_exactly_once():
    names = Counter(name for benchmark in BENCHMARKS for name in benchmark.names)
    assert names == Counter(goal.name for goal in GOALS)
    assert not BY_NAME.keys() & {one.name for one in GROWTH}


def test_only_selects_benchmarks_and_out_writes_results(tmp_path, env):
    out = tmp_path / "out"
    arguments = ("--quick", "--only", "event", "--only", "pytest-memory", "--out", str(out))
    done = subprocess.run([*COMMAND, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads((out / "results.json").read_text())
    assert [line["name"] for line in results["lines"]] == ["event", "pytest-memory"]
    assert all(line["ours"] > 0 and line["raw"] > 0 and line["rounds"] > 1 for line in results["lines"])
    assert set(results["machine"]) == {"cores", "memory_gib"}
    assert (out / "table.txt").read_text() in done.stdout
    assert "<svg" in (out / "goals.svg").read_text()


def test_only_a_goal_missed_by_far_exits_with_status_1(capsys):
    goal = BY_NAME["task-call"]
    missed = Line(goal, Pairs([2.9 * goal.limit], [1]))
    gross = Line(goal, Pairs([4 * goal.limit], [1]))
    assert status([missed]) == 0
    assert status([missed, gross]) == 1
    assert capsys.readouterr().err == "task-call: 4.0 times its goal; the limit is 3 times\n"


def test_unknown_name_error_lists_the_benchmarks(capsys):
    assert main(["--only", "warp"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("no benchmark is named warp; choose from import, local-call,")
    assert "growth-actors" in error


def test_ctrl_c_stops_it_without_output_and_leaves_no_files(env):
    with subprocess.Popen(
        [*COMMAND, "--quick", "--only", "event", "--only", "pytest-1000"],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("event ")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=patience(60))
    assert (process.returncode, rest, errors) == (130, "", "")

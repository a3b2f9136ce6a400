"""Tests that only tests in the quarantine file are retried, once, and listed, so that no failure is hidden."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import quarantine

SECOND_TIME = """
    from pathlib import Path

    def test_second_time():
        seen = Path(__file__).with_name("seen")
        count = len(seen.read_text()) if seen.exists() else 0
        seen.write_text("x" * (count + 1))
        assert count == 1

    def test_never():
        assert False
    """
ENTRY = "test_it.py::{} | 2026-11-30 | fails the first time | it counts\n"


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs tests that fail the first time, or always, with a given quarantine file."""
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(quarantine.__file__, pytester.path / "quarantine_plugin.py")
    pytester.makepyfile(test_it=SECOND_TIME)

    def run(text: str) -> pytest.RunResult:
        (pytester.path / "quarantine.txt").write_text(text)
        turned_off = [f"-pno:{name}" for name in ("synapse", "randomly", "html", "metadata", "asyncio", "xdist")]
        return pytester.runpytest_subprocess(
            "-p", "quarantine_plugin", f"--quarantine={pytester.path / 'quarantine.txt'}", *turned_off
        )

    return run


def test_unlisted_test_is_not_retried(session):
    result = session("# nothing\n")
    result.assert_outcomes(failed=2)
    assert "quarantine ==" not in result.stdout.str()


def test_quarantined_test_is_retried_once_and_listed(session):
    result = session(ENTRY.format("test_second_time"))
    assert result.parseoutcomes() == {"failed": 1, "passed": 1, "rerun": 1}
    result.stdout.fnmatch_lines(
        ["rerun, then passed: test_it.py::test_second_time (since 2026-11-30: fails the first time; it counts)"]
    )


def test_quarantined_test_that_fails_twice_is_a_failure(session):
    result = session(ENTRY.format("test_never"))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.parseoutcomes() == {"failed": 2, "rerun": 1}
    result.stdout.fnmatch_lines(["rerun, then failed: test_it.py::test_never (since *"])


@pytest.mark.parametrize("line", ["test_it.py::test_never", "a | b | c | d", "a | 2026-11-30 | | d"])
def test_incomplete_entry_is_rejected(session, line):
    result = session(f"{line}\n")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *quarantine.txt: line 1: expected `test id | YYYY-MM-DD | symptom | *"])


def test_entries_of_our_own_file_name_existing_tests():
    for entry in quarantine.entries(quarantine.FILE.read_text(encoding="utf-8")):
        path, _, test = entry.test.partition("::")
        name = test.rpartition("::")[2].partition("[")[0]
        assert f"def {name}(" in (Path(__file__).parents[2] / path).read_text(encoding="utf-8")

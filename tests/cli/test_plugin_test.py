"""`synapse plugin test`: runs pytest in the plugin's directory, in the modes that are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import write_plugin
from tests.cli.processes import Finished, Synapse, interrupt, synapse_in
from tests.patience import patience
from tests.pytest_synapse.conftest import ALONE

TESTS = """\
import pytest
import time
from pathlib import Path


def test_runs(synapse_executor, synapse_mode):
    assert synapse_executor.execute("train", {"epochs": 1})["epochs"] == 1


def test_fails():
    assert Path.cwd().name == "nowhere"


def test_naps():
    print("asleep", flush=True)
    time.sleep(60)
"""

MORE = """\
import pytest


@pytest.fixture
def broken():
    raise OSError("no such thing")


def test_setup(broken): ...


def test_skips():
    print("to stdout")
    pytest.skip("not here")


@pytest.mark.xfail
def test_xfails():
    assert 0


@pytest.mark.xfail
def test_xpasses(): ...
"""


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Synapse]:
    """The command in a plugin with tests."""
    write_plugin(tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_all.py").write_text(TESTS)
    with synapse_in(tmp_path, PYTEST_ADDOPTS=f"{ALONE} -pno:cacheprovider") as command:
        yield command


def outcome(command: Synapse, *arguments: str, cwd: Path | None = None) -> Finished:
    return command("plugin", "test", *arguments, cwd=cwd)


def test_arguments_after_the_dashes_and_the_exit_status_are_pytests(here: Synapse) -> None:
    passed = outcome(here, "--mode", "local", "--", "-k", "runs", "-v")
    assert passed.status == 0, passed.stdout
    assert "tests/test_all.py::test_runs PASSED" in passed.stdout
    failed = outcome(here, "--", "-k", "fails", "-q")
    assert failed.status == 1
    assert "1 failed" in failed.stdout
    assert outcome(here, "--", "-k", "nothing_like_it").status == 5


def test_json_is_alone_on_stdout(here: Synapse, tmp_path: Path) -> None:
    (tmp_path / "tests" / "test_more.py").write_text(MORE)
    (tmp_path / "tests" / "test_broken.py").write_text("import not_installed_here")
    for more in ((), ("-n", "1")):
        done = outcome(here, "--mode", "local", "--json", "--", "--deselect", "tests/test_all.py::test_naps",
                       "--continue-on-collection-errors", "-s", *more)  # fmt: skip
        assert done.status == done.result["status"] == 1
        assert "1 xfailed" in done.stderr
        tests = {test.pop("id"): test for test in done.result["tests"]}
        assert {name.partition("::")[2]: test["outcome"] for name, test in tests.items()} == {
            "": "error",
            "test_runs": "passed",
            "test_fails": "failed",
            "test_setup": "error",
            "test_skips": "skipped",
            "test_xfails": "xfailed",
            "test_xpasses": "xpassed",
        }
        assert tests["tests/test_all.py::test_runs"]["mode"] == "local"
        assert tests["tests/test_all.py::test_runs"]["seconds"] > 0
        assert tests["tests/test_all.py::test_fails"]["message"].startswith("AssertionError: assert")
        assert "not_installed_here" in tests["tests/test_broken.py"]["message"]


def test_runs_in_several_modes(here: Synapse) -> None:
    for modes in (("--mode", "local", "-m", "task"), ("--mode", "local,task", "--mode", "task")):
        done = outcome(here, *modes, "--", "--collect-only", "-q", "-k", "runs and (local or task)")
        assert done.stdout.splitlines()[:2] == [
            "tests/test_all.py::test_runs[local]",
            "tests/test_all.py::test_runs[task]",
        ]
    assert "test_runs[job]" in outcome(here, "--mode", "all", "--", "--collect-only", "-q").stdout
    wrong = outcome(here, "--mode", "taks")
    assert (wrong.status, wrong.stdout) == (2, "")
    assert "unknown mode 'taks', did you mean 'task'?" in wrong.stderr


def test_accepts_a_plugin_path_and_test_ids(here: Synapse, tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    done = outcome(here, str(tmp_path), "--", "tests/test_all.py::test_runs", "-q", cwd=tmp_path / "away")
    assert done.status == 0, done.stdout
    assert "1 passed" in done.stdout
    assert outcome(here, "--", "-q", "-k", "runs", cwd=tmp_path / "away").status == 0


def test_plugin_without_tests_is_an_error(here: Synapse, tmp_path: Path) -> None:
    (tmp_path / "tests" / "test_all.py").rename(tmp_path / "tests" / "conftest.py")
    done = outcome(here)
    assert (done.status, done.stdout) == (2, "")
    assert f"error: {tmp_path}/tests: no tests found" in done.stderr
    (tmp_path / "tests").rename(tmp_path / "checks")
    done = outcome(here)
    assert (done.status, done.stdout) == (2, "")
    assert f"error: {tmp_path}: the plugin has no directory 'tests'" in done.stderr
    assert "no config.yaml or synapse.yaml in this directory" in outcome(here, str(tmp_path / "checks")).stderr


def test_pytest_handles_ctrl_c(here: Synapse) -> None:
    with here.started("--", "-k", "naps", "-s", command=("plugin", "test")) as process:
        assert process.stdout is not None
        while "asleep" not in (line := process.stdout.readline()):
            assert line
        interrupt(process)
        assert process.wait(patience(20)) == 2
        assert "KeyboardInterrupt" in process.stdout.read()

"""Projects without Synapse tests pay nothing for the installed plugin."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from tests.pytest_synapse.conftest import Project

HEAVY = ("cloudpickle", "pydantic", "ray", "rich", "synapse_runtime.core.execution", "tblib", "typer", "yaml")

# Python imports this before anything else, so it sees every process that the session starts.
SITE = """\
import sys

started = sys.started_processes = []


def watch(event, arguments):
    if event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec"):
        started.append(f"{event} {arguments}")


sys.addaudithook(watch)
"""

WITNESS = """\
import json
import sys
from pathlib import Path

import pytest


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    seen = {"modules": sorted(sys.modules), "started": sys.started_processes}
    (config.rootpath / "seen.json").write_text(json.dumps(seen))
"""


class Activity(NamedTuple):
    """The activity of a finished session: heavy modules that it imported, processes that it started."""

    imported: list[str]
    started: list[str]


@pytest.fixture
def watched(project: Project) -> Project:
    """A project that records what its session imports and starts."""
    project.starts_python = True
    project.write("sitecustomize.py", SITE)
    project.write("conftest.py", WITNESS)
    return project


def seen_by(project: Project) -> Activity:
    seen = json.loads((project.path / "seen.json").read_text())
    return Activity([name for name in HEAVY if name in seen["modules"]], seen["started"])


def test_project_without_synapse_tests_imports_nothing_heavy_and_starts_no_process(watched):
    watched.test(
        f"""
        import sys

        def test_imports():
            assert not [name for name in {HEAVY} if name in sys.modules]

        @pytest.mark.parametrize("number", [1, 2])
        def test_more(number, tmp_path, monkeypatch, capsys): pass
        """,
        "test_plain.py",
    )

    watched.pytest().assert_outcomes(passed=3)

    assert seen_by(watched) == Activity([], [])


def test_project_without_synapse_tests_starts_no_cluster_in_any_mode(watched):
    watched.test("def test_plain(): pass\n", "test_plain.py")

    watched.pytest("--synapse-mode=all").assert_outcomes(passed=1)

    seen = seen_by(watched)
    assert "ray" not in seen.imported
    assert seen.started == []


def test_plugin_directory_without_synapse_tests_imports_nothing_heavy(watched):
    watched.plugin()
    watched.test("def test_plain(): pass\n")

    watched.pytest("demo").assert_outcomes(passed=1)

    assert seen_by(watched) == Activity([], [])


@pytest.mark.parametrize(
    "options",
    [
        *(["--collect-only"], ["--collect-only", "-q"], ["--setup-plan"], ["--setup-only"], ["--fixtures-per-test"]),
        *(["--fixtures"], ["--markers"], ["--collect-only", "-n2"]),
    ],
    ids=" ".join,
)
def test_listing_tests_of_task_and_job_mode_starts_no_cluster(watched, options):
    watched.plugin()
    watched.test("def test_it(synapse_executor): synapse_executor.execute('double')\n")

    assert watched.pytest("--synapse-mode=task,job", *options).ret == pytest.ExitCode.OK

    seen = seen_by(watched)
    assert "ray" not in seen.imported
    assert seen.started == []


def test_deselected_tests_start_no_cluster(watched):
    watched.plugin()
    watched.test("def test_it(synapse_executor): pass\ndef test_plain(): pass\n")

    watched.pytest("--synapse-mode=task", "-k", "plain").assert_outcomes(passed=1, deselected=1)

    seen = seen_by(watched)
    assert "ray" not in seen.imported
    assert seen.started == []


def test_local_mode_does_not_import_ray_and_starts_no_process(watched):
    watched.plugin()
    watched.test("def test_it(synapse_executor): assert synapse_executor.execute('double') == 2\n")

    watched.pytest().assert_outcomes(passed=1)

    seen = seen_by(watched)
    assert "pydantic" in seen.imported  # so the recording works
    assert "ray" not in seen.imported
    assert seen.started == []


def test_plugin_can_be_disabled(watched):
    watched.test(
        "def test_it(request): assert not request.config.pluginmanager.hasplugin('synapse')\n", "test_plain.py"
    )

    watched.pytest("-p", "no:synapse").assert_outcomes(passed=1)

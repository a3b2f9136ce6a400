"""How a session reports its runs: to hooks, in the properties of its tests, and in its summary."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.parity.sessions import Session, run_pytest, write
from tests.pytest_synapse.conftest import CONFIG, Project

MODES = ("local", "task", "job")

ACTIONS = """\
import time

from synapse_runtime.decorators import action


@action
def nap(params, context):
    time.sleep(params.get("seconds", 0))
    return "slept"


@action
def fail(params, context):
    raise ValueError("of the action")
"""

# Writes the arguments of the hooks to a file, in whichever process they are called.
LISTENER = """\
import json
import os
from pathlib import Path


def _write(hook, item, job_id, **record):
    record |= {"hook": hook, "test": item.nodeid.rpartition("::")[2], "job_id": job_id}
    record["process"] = os.environ.get("PYTEST_XDIST_WORKER")
    with open(Path(__file__).parent / "hooks.jsonl", "a") as file:
        file.write(json.dumps(record) + "\\n")


def pytest_synapse_run_started(item, call):
    _write("started", item, call.job_id, name=call.name, params=call.params)


def pytest_synapse_run_finished(item, run):
    failed = None if run.error is None else str(run.error)
    values = {"name": run.name, "mode": run.mode, "result": run.result, "failed": failed, "node": run.node}
    _write("finished", item, run.job_id, seconds=run.duration, **values)
"""

TESTS = """\
import pytest
from synapse_runtime.errors import ActionNotFoundError, ExecutionError, ValidationError


def test_two(synapse_executor):
    assert synapse_executor.execute("nap") == "slept"
    synapse_executor.execute("nap", {"seconds": 0.2})


def test_failure(synapse_executor):
    with pytest.raises(ExecutionError):
        synapse_executor.execute("fail")


def test_none(synapse_executor):
    with pytest.raises(ActionNotFoundError):
        synapse_executor.execute("nothing of the kind")


@pytest.mark.synapse(mode="job")
def test_submitted(synapse_executor):
    job_id = synapse_executor.submit("nap")
    assert synapse_executor.get_result(job_id) == "slept"
    assert synapse_executor.get_run(job_id).result == "slept"
"""

FILES = {
    "pytest.ini": "[pytest]\n",
    "demo/config.yaml": "actions:\n  nap: {entrypoint: 'plugin.work:nap'}\n  fail: {entrypoint: 'plugin.work:fail'}\n",
    "demo/plugin/__init__.py": "",
    "demo/plugin/work.py": ACTIONS,
    "demo/tests/conftest.py": LISTENER,
    "demo/tests/test_it.py": TESTS,
}


class Everywhere:
    """A finished session in all modes: its output, the calls of its hooks, and its JUnit properties."""

    def __init__(self, project: Path, session: Session) -> None:
        self.session = session
        self.summary = session.section("synapse actions")
        self.hook_calls = hooks_of(project)
        self.properties = properties_of(project / "results.xml")


def hooks_of(project: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (project / "demo/tests/hooks.jsonl").read_text().splitlines()]


def properties_of(results: Path) -> dict[str, list[tuple[str, str]]]:
    """Return the properties of each test, by its name."""
    cases = ElementTree.parse(results).iter("testcase")
    return {
        case.attrib["name"]: [(item.attrib["name"], item.attrib["value"]) for item in case.iter("property")]
        for case in cases
    }


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory: pytest.TempPathFactory, reached: dict[str, str]) -> Everywhere:
    project = write(tmp_path_factory.mktemp("everywhere"), FILES)
    options = ("--synapse-mode=local,task,job", "--synapse-durations=4", "--junitxml=results.xml")
    return Everywhere(project, run_pytest(project, *options, env={**reached, "COLUMNS": "80"}))


def test_session_passes(everywhere):
    assert everywhere.session.status == pytest.ExitCode.OK, everywhere.session.output


@pytest.mark.parametrize("mode", MODES)
def test_hooks_are_called_for_each_run_including_failures(everywhere, mode):
    calls = [entry for entry in everywhere.hook_calls if str(entry["test"]).endswith(f"[{mode}]")]

    started = [(entry["test"], entry["name"], entry["job_id"]) for entry in calls if entry["hook"] == "started"]
    finished = [entry for entry in calls if entry["hook"] == "finished"]
    assert [(entry["test"], entry["name"], entry["job_id"]) for entry in finished] == started
    assert [(entry["test"], entry["mode"], entry["result"], entry["failed"]) for entry in finished] == [
        (f"test_two[{mode}]", mode, "slept", None),
        (f"test_two[{mode}]", mode, "slept", None),
        (f"test_failure[{mode}]", mode, None, "fail failed: ValueError: of the action"),
    ]
    assert [entry["params"] for entry in calls if entry["hook"] == "started"] == [{}, {"seconds": 0.2}, {}]
    assert [entry["seconds"] > 0.2 for entry in finished] == [False, True, False]


def test_job_whose_result_is_requested_twice_is_one_run(everywhere):
    hooks = [entry["hook"] for entry in everywhere.hook_calls if entry["test"] == "test_submitted"]
    assert hooks == ["started", "finished"]
    assert ("synapse_runs", "1") in everywhere.properties["test_submitted"]


@pytest.mark.parametrize("mode", MODES)
def test_junit_file_contains_mode_runs_job_ids_and_node(everywhere, mode):
    test = f"test_two[{mode}]"
    finished = [entry for entry in everywhere.hook_calls if entry["test"] == test and entry["hook"] == "finished"]
    node = [] if mode == "local" else [("synapse_node", finished[0]["node"])]
    assert everywhere.properties[test] == [
        ("synapse_mode", mode),
        ("synapse_runs", "2"),
        ("synapse_job_id", finished[0]["job_id"]),
        ("synapse_job_id", finished[1]["job_id"]),
        *node,
    ]
    assert everywhere.properties[f"test_none[{mode}]"] == []


def test_task_and_job_report_the_same_node(everywhere):
    nodes = {value for test in everywhere.properties.values() for name, value in test if name == "synapse_node"}
    assert len(nodes) == 1
    assert "" not in nodes


def test_summary_counts_runs_and_time_by_mode(everywhere):
    head, *rows = (line.split() for line in everywhere.summary[:4])
    assert head == ["mode", "runs", "raised", "action", "time", "call", "time"]
    counts = {row[0]: (int(row[1]), int(row[2])) for row in rows}
    assert counts == {"local": (3, 1), "task": (3, 1), "job": (4, 1)}
    for row in rows:
        action_time, call_time = (
            float(number) / (1000 if unit == "ms" else 1) for number, unit in (row[3:5], row[5:7])
        )
        assert 0.2 <= action_time < 1
        assert call_time > action_time


def test_summary_shows_the_cluster(everywhere, reached):
    assert f"cluster: {reached['RAY_ADDRESS']} (RAY_ADDRESS)" in everywhere.summary


def test_summary_lists_the_slowest_runs_slowest_first(everywhere):
    start = everywhere.summary.index("slowest 4 runs:") + 1
    rows = [line.split() for line in everywhere.summary[start : start + 4]]
    assert {(row[2], row[3], row[4]) for row in rows[:3]} == {
        (mode, "nap", f"demo/tests/test_it.py::test_two[{mode}]") for mode in MODES
    }
    seconds = [float(row[0]) for row in rows]
    assert seconds == sorted(seconds, reverse=True)
    assert all(row[1] == "ms" for row in rows)
    assert len(everywhere.summary[start:]) >= 4


def test_summary_fits_80_columns_except_for_test_ids(everywhere):
    assert max(len(line) for line in everywhere.summary if "::" not in line) <= 80


CRASHING = """\
import os
import signal
import time

import pytest


@pytest.mark.parametrize("number", range(6))
def test_nap(synapse_executor, number):
    synapse_executor.execute("nap")
    if number == 3:
        time.sleep(0.5)  # so that the reports of earlier tests are sent
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.synapse(mode="local")
def test_locally(synapse_executor):
    synapse_executor.execute("nap")
"""


def test_xdist_adds_up_all_workers_except_for_the_test_that_kills_one(tmp_path, reached):
    project = write(tmp_path, FILES | {"demo/tests/test_it.py": CRASHING})
    options = ("--synapse-mode=task", "-n2", "--synapse-durations=0", "--junitxml=results.xml")
    session = run_pytest(project, *options, env=reached)

    assert "1 failed, 6 passed" in session.output
    summary = session.section("synapse actions")
    counts = {line.split()[0]: line.split()[1:3] for line in summary[1:3]}
    assert counts == {"local": ["1", "0"], "task": ["5", "0"]}
    assert sum(line.startswith("cluster: ") for line in summary) == 1
    assert "slowest 6 runs:" in summary
    finished = [entry for entry in hooks_of(project) if entry["hook"] == "finished"]
    assert len(finished) == 7
    assert {str(entry["process"])[:2] for entry in finished} == {"gw"}
    properties = properties_of(project / "results.xml")
    assert all(("synapse_mode", "task") in properties[f"test_nap[{number}]"] for number in (0, 1, 2, 4, 5))


@pytest.fixture
def local(project: Project) -> Project:
    """A project with a plugin; its tests run in local mode."""
    project.plugin(config=CONFIG)
    return project


def summary_of(project: Project, *options: str) -> list[str]:
    """Return the lines that a session prints between the progress of its tests and its last line."""
    lines = project.pytest("-p", "no:cacheprovider", *options).outlines
    last = next(number for number, line in enumerate(lines) if "%]" in line and line.rstrip().endswith("%]"))
    return [line for line in lines[last + 1 : -1] if line]


def test_summary_in_local_mode_is_one_line(local):
    local.test(
        """
        from synapse_runtime.errors import ValidationError

        def test_it(synapse_executor):
            synapse_executor.execute("double")
            with pytest.raises(ValidationError):
                synapse_executor.execute("double", {"number": "many"})
        """
    )
    for options in ([], ["-q"], ["-q", "--synapse-durations=1"]):
        (line,) = summary_of(local, *options)
        assert re.fullmatch(r"=+ synapse: local 2 runs \(1 raised\), [\d.]+ ms =+", line)
    assert "synapse" not in local.pytest("-qq", "--synapse-durations=1").stdout.str()


def test_summary_is_a_block_if_details_are_requested(local):
    local.test(
        """
        def test_it(synapse_executor):
            synapse_executor.execute("double")
            synapse_executor.execute("nap", {"seconds": 0.05})
            synapse_executor.execute("double")
        """
    )
    for number, title in ((0, "slowest 3 runs:"), (1, "slowest 1 run:")):
        lines = summary_of(local, f"--synapse-durations={number}")
        slowest = lines[lines.index(title) + 1].split()
        assert (slowest[1:4], slowest[4]) == (["ms", "local", "nap"], "demo/tests/test_it.py::test_it")
    (title, head, local_mode) = summary_of(local, "-v")
    assert re.fullmatch("=+ synapse actions =+", title)
    assert head.startswith("mode ")
    assert local_mode.startswith("local ")


def test_ini_option_sets_the_number_of_slowest_runs(local):
    local.test("def test_it(synapse_executor): [synapse_executor.execute('double') for _ in range(5)]\n")
    local.ini("synapse_durations = 3\n")
    assert "slowest 3 runs:" in local.pytest().outlines
    assert "slowest 5 runs:" in local.pytest("--synapse-durations=0").outlines
    local.ini("synapse_durations = some\n")
    assert "synapse_durations in " in (error := local.usage_error())
    assert "expected an integer of at least 0, got 'some'" in error


def test_no_summary_and_no_import_if_no_action_ran(local):
    local.starts_python = True
    local.test(
        """
        def test_it(synapse_executor): pass
        """
    )
    local.write(
        "conftest.py",
        """
        import sys

        def pytest_unconfigure():
            print("imported:", "pytest_synapse.reporting" in sys.modules)
        """,
    )
    output = local.pytest("-v", "--synapse-durations=0").stdout.str()
    assert "imported: False" in output
    assert "synapse actions" not in output


def test_many_runs_are_all_counted_and_the_first_ones_listed(local):
    local.test(
        """
        @pytest.fixture
        def before(synapse_executor):
            yield synapse_executor.execute("double")
            synapse_executor.execute("double")

        def test_it(before, synapse_executor, record_property):
            record_property("mine", "kept")
            for _ in range(48):
                synapse_executor.execute("double")
        """
    )
    local.pytest("--junitxml=results.xml").assert_outcomes(passed=1)
    properties = properties_of(local.path / "results.xml")["test_it"]
    assert Counter(name for name, _ in properties) == {
        "mine": 1,
        "synapse_mode": 1,
        "synapse_runs": 1,
        "synapse_job_id": 20,
    }
    assert ("synapse_runs", "50") in properties
    assert len(set(properties)) == len(properties)
    assert "= synapse: local 50 runs, " in summary_of(local)[0]


@pytest.mark.parametrize("processes", ["0", "2"])
def test_lines_covered_in_workers_are_counted_once(tmp_path, reached, processes):
    test = 'import pytest\n\n\n@pytest.mark.parametrize("number", range(4))\ndef test_it(synapse_executor, number):\n'
    project = write(tmp_path, FILES | {"demo/tests/test_it.py": f"{test}    synapse_executor.execute('nap')\n"})
    options = ("--synapse-mode=task", f"-n{processes}", "--cov=plugin", "--cov-report=")
    session = run_pytest(project, *options, env=reached)
    assert session.status == pytest.ExitCode.OK, session.output
    (line,) = (line for line in session.section("synapse actions") if line.startswith("coverage: "))
    number = re.fullmatch(r"coverage: (\d+) lines of 1 file collected from workers", line)
    assert number is not None
    assert 6 <= int(number[1]) <= 9  # lines of the module, which each worker imports, and of the action


def test_only_the_fixtures_executor_is_observed(local):
    local.test(
        """
        from synapse_runtime.executors.local import LocalExecutor

        def test_it(synapse_executor):
            synapse_executor.execute("double")
            LocalExecutor(plugin="demo").execute("double")
        """
    )
    assert "= synapse: local 1 run, " in summary_of(local)[0]


def test_runs_in_several_threads_are_all_counted_and_hooks_never_called_concurrently(local):
    local.write(
        "demo/tests/conftest.py",
        """
        import time

        inside = []

        def pytest_synapse_run_finished(item, run):
            assert inside == []
            inside.append(run)
            time.sleep(0.001)
            inside.remove(run)
        """,
    )
    local.test(
        """
        from concurrent.futures import ThreadPoolExecutor

        def test_it(synapse_executor):
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda number: synapse_executor.execute("double", {"number": number}), range(100)))
        """
    )
    assert "= synapse: local 100 runs, " in summary_of(local)[0]


def test_hook_can_add_markers_with_settings_per_item(local):
    local.write(
        "demo/tests/conftest.py",
        """
        import pytest

        def pytest_collection_modifyitems(items):
            for item in items:
                item.add_marker(pytest.mark.synapse(timeout=1.5))

        def pytest_synapse_run_started(item, call):
            print("limit:", call.timeout)
        """,
    )
    local.test("def test_it(synapse_executor): synapse_executor.execute('double')\n")
    assert "limit: 1.5" in local.pytest("-s").stdout.str()


RAISING = """
    def pytest_synapse_run_{when}(item):
        raise RuntimeError("the database is full")
"""


@pytest.mark.parametrize("when", ["started", "finished"])
def test_raising_hook_fails_the_test_and_is_named(local, when):
    local.write("demo/tests/conftest.py", RAISING.format(when=when))
    local.test("def test_it(synapse_executor): synapse_executor.execute('double')\n")
    local.test("def test_elsewhere(synapse_executor): synapse_executor.execute('double')\n", "demo/others/test_more.py")

    result = local.pytest()

    result.assert_outcomes(failed=1, passed=1)  # a conftest's hooks are for the tests below it
    result.stdout.fnmatch_lines(
        [
            "E * RuntimeError: the database is full",
            f"E * Raised by an implementation of the hook pytest_synapse_run_{when} for double in local mode.",
        ]
    )


def test_raising_hook_does_not_hide_that_the_action_failed(local):
    local.write("demo/tests/conftest.py", RAISING.format(when="finished"))
    local.test("def test_it(synapse_executor): synapse_executor.execute('double', {'number': 'many'})\n")

    local.pytest().stdout.fnmatch_lines(["E * The action itself failed: double: 1 invalid parameter *"])

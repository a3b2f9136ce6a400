"""The same tests in local, task and job mode: one real session over one plugin, checked in many ways.

The session is shared by the tests of this module, which `pytester` does not support, so a plain process runs it.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.processes import MARK, command_of, processes_with
from tests.patience import patience, within
from tests.pytest_synapse.conftest import session_environment

MODES = ("local", "task", "job")

CONFIG = """\
code: demo
env: {LEVEL: config, SHARED: config}
actions:
  train: {entrypoint: "plugin.work:Train"}
  process_state: {entrypoint: "plugin.work:process_state"}
  talk: {entrypoint: "plugin.work:talk"}
  fail: {entrypoint: "plugin.work:fail"}
"""

WORK = """\
import logging
import os
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel, Field

from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action


class TrainParams(BaseModel):
    epochs: int = Field(2, ge=1)


class Trained(BaseModel):
    epochs: int
    weights: Path


class Train(BaseAction[TrainParams]):
    def execute(self):
        for epoch in range(1, self.params.epochs + 1):
            self.ctx.set_progress(epoch, self.params.epochs)
            self.ctx.set_metrics({"loss": 1 / epoch}, "training")
        self.ctx.log("trained", {"epochs": self.params.epochs})
        return Trained(epochs=self.params.epochs, weights=Path("weights.bin"))


@action
def process_state(params, context):
    return {
        "job_id": context.job_id,
        "pid": os.getpid(),
        "cwd": Path.cwd(),
        "data": Path("data.txt").read_text(),
        "env": {name: [context.env.get(name), os.environ.get(name)] for name in params["names"]},
    }


@action
def talk(params, context):
    print("printed")
    print("complained", file=sys.stderr)
    logging.getLogger("work").warning("logged")
    context.logger.info("said")
    sys.stdout.flush()
    subprocess.run(["echo", "from a child"], check=True)


@action
def fail(params, context):
    print("before the failure")
    weights = {"a": 1}
    return weights["missing"]  # this line fails
"""

CONFTEST = """\
import pytest

from synapse_runtime.decorators import action


@action
def shout(params, context):
    return params["text"].upper() + SUFFIX


SUFFIX = "!"


@pytest.fixture
def shouting():
    return shout
"""

TESTS = """\
import dataclasses
import os
from pathlib import Path

import pytest
from plugin.work import Train, Trained

from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action
from synapse_runtime.environment import PluginEnvironment
from synapse_runtime.errors import ExecutionError, ValidationError

PLUGIN = Path(__file__).parent.parent
not_as_a_job = pytest.mark.synapse(mode=("local", "task"))


@dataclasses.dataclass
class Pages:
    count: int


class PaperJam(Exception):
    def __init__(self, tray, *, left):
        super().__init__(tray)
        self.left = left


class Print(BaseAction):
    def execute(self):
        return Pages(self.params["pages"])


@action
def jam(params, context):
    raise PaperJam("tray 2", left=3)


@action
def check(params, context):
    assert params["number"] == 2


def test_result_and_events_of_a_plugin_action(synapse_executor, synapse_mode):
    run = synapse_executor.run("train", {"epochs": 4})
    assert run.mode == synapse_mode
    assert type(run.result) is Trained
    assert run.result == Trained(epochs=4, weights=Path("weights.bin"))
    assert run.progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert run.metrics["training"] == {"loss": 0.25}
    assert [report["loss"] for report in run.metrics["training"].history] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert [(event.name, event.data) for event in run.logs] == [("trained", {"epochs": 4})]


@not_as_a_job
def test_action_and_result_class_defined_in_the_test_module(synapse_executor):
    result = synapse_executor.execute(Print, {"pages": 3})
    assert type(result) is Pages
    assert result == Pages(3)


@not_as_a_job
def test_action_defined_in_a_conftest(synapse_executor, shouting):
    assert synapse_executor.execute(shouting, {"text": "hello"}) == "HELLO!"


@not_as_a_job
def test_action_defined_in_a_test_function(synapse_executor):
    factor = 3

    class Times(BaseAction):
        def execute(self):
            return factor * self.params["number"]

    assert synapse_executor.execute(Times, {"number": 14}) == 42


def test_bad_params(synapse_executor):
    with pytest.raises(ValidationError, match="epochs") as caught:
        synapse_executor.execute(Train, {"epochs": 0})
    (problem,) = caught.value.errors()
    assert (problem["loc"], problem["type"], problem["input"]) == (("epochs",), "greater_than_equal", 0)


@not_as_a_job
def test_exception_class_defined_in_the_test_module(synapse_executor):
    with pytest.raises(ExecutionError, match="jam failed: PaperJam: tray 2") as caught:
        synapse_executor.execute(jam)
    cause = caught.value.__cause__
    assert type(cause) is PaperJam
    assert (cause.args, cause.left) == (("tray 2",), 3)


@not_as_a_job
def test_assert_in_an_action_defined_in_the_test_module(synapse_executor):
    with pytest.raises(ExecutionError) as caught:
        synapse_executor.execute(check, {"number": 1})
    assert type(caught.value.__cause__) is AssertionError
    assert str(caught.value.__cause__) == "assert 1 == 2"


@pytest.mark.synapse(env={"SHARED": "marker"})
def test_process_state(synapse_executor, synapse_mode):
    before = os.getcwd(), dict(os.environ)
    run = synapse_executor.run("process_state", {"names": ["LEVEL", "SHARED"]})
    assert run.result["job_id"] == run.job_id
    assert run.result["pid"] == run.pid
    assert (run.pid == os.getpid()) is (synapse_mode == "local")
    assert run.result["cwd"] == PLUGIN
    assert run.result["data"] == "next to the config file"
    assert run.result["env"] == {"LEVEL": ["config", "config"], "SHARED": ["marker", "marker"]}
    assert (os.getcwd(), dict(os.environ)) == before


@not_as_a_job
def test_capsys_and_caplog_capture_output(synapse_executor, capsys, caplog):
    caplog.set_level("INFO")
    synapse_executor.execute("talk")
    out, err = capsys.readouterr()
    assert "printed\\n" in out
    assert "complained\\n" in err
    assert [record.getMessage() for record in caplog.records] == ["logged", "said"]


@not_as_a_job
def test_capfd_captures_output(synapse_executor, capfd):
    synapse_executor.execute("talk")
    out, err = capfd.readouterr()
    assert out == "printed\\nfrom a child\\n"
    assert "complained\\n" in err


class TestOwnEnvironment:
    @pytest.fixture
    def plugin_env(self, plugin_env, monkeypatch):
        return PluginEnvironment.merge(plugin_env, {"LEVEL": "test"})

    @pytest.fixture(autouse=True)
    def changed(self, monkeypatch):
        monkeypatch.setenv("CHANGED", "by the test")  # after the worker has started

    @not_as_a_job
    def test_given_and_changed_variables_are_sent(self, synapse_executor):
        run = synapse_executor.run("process_state", {"names": ["LEVEL", "CHANGED"]})
        assert run.result["env"] == {"LEVEL": ["test", "test"], "CHANGED": ["by the test", "by the test"]}


def test_that_fails(synapse_executor):
    synapse_executor.execute("fail")
"""

OTHER_CONFIG = 'code: other\nactions:\n  who: {entrypoint: "plugin.work:who"}\n'
OTHER_WORK = """\
from synapse_runtime.decorators import action


@action
def who(params, context):
    return __file__
"""
OTHER_TESTS = """\
from pathlib import Path


def test_other_plugin_with_a_package_of_the_same_name(synapse_executor):
    assert synapse_executor.execute("who") == str(Path(__file__).parent / "plugin" / "work.py")
"""

PASSING = {
    "test_result_and_events_of_a_plugin_action": MODES,
    "test_action_and_result_class_defined_in_the_test_module": MODES[:2],
    "test_action_defined_in_a_conftest": MODES[:2],
    "test_action_defined_in_a_test_function": MODES[:2],
    "test_bad_params": MODES,
    "test_exception_class_defined_in_the_test_module": MODES[:2],
    "test_assert_in_an_action_defined_in_the_test_module": MODES[:2],
    "test_process_state": MODES,
    "test_capsys_and_caplog_capture_output": MODES[:2],
    "test_capfd_captures_output": MODES[:2],
    "test_given_and_changed_variables_are_sent": MODES[:2],
    "test_other_plugin_with_a_package_of_the_same_name": MODES,
}


@dataclass(frozen=True)
class Session:
    """A session that has ended.

    Attributes:
        status: Its exit status.
        output: Everything that it printed.
        cases: The report of each test by its id, in the order in which they ran.
        files: Files that it created in the project.
        processes: Command lines of its processes that still ran 5 s after its end.
        temporary: The remaining files in its temporary directory.
    """

    status: int
    output: str
    cases: dict[str, ElementTree.Element]
    files: list[str]
    processes: list[str]
    temporary: list[str]

    def outcome(self, test: str) -> str:
        """Return `passed`, or the report of the failure."""
        problems = [
            child.text or child.tag for child in self.cases[test] if child.tag in ("failure", "error", "skipped")
        ]
        return "\n".join(problems) or "passed"

    def section(self, test: str, stream: str) -> str:
        """Return the captured output of a test: `system-out` or `system-err`."""
        return self.cases[test].findtext(stream, default="")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The session, in all modes."""
    project = tmp_path_factory.mktemp("modes")
    write_project(project)
    with tempfile.TemporaryDirectory(prefix="s") as temp:  # a short name, as Ray creates sockets in it
        yield _run(project, Path(temp))


def _run(project: Path, temp: Path) -> Session:
    mark = uuid.uuid4().hex
    report = temp / "report.xml"
    before = _files(project)
    with started(
        project, temp, mark, "--synapse-mode=local,task,job", f"--junitxml={report}", "-o", "junit_logging=all"
    ) as process:
        output, _ = process.communicate(timeout=patience(110))
    return Session(
        status=process.returncode,
        output=output,
        cases={str(case.get("name")): case for case in ElementTree.parse(report).iter("testcase")},
        files=sorted(_files(project) - before),
        processes=left_after_5_seconds(mark),
        temporary=sorted(path.name for path in temp.iterdir() if path not in (report, temp / "pytest")),
    )


@contextlib.contextmanager
def started(project: Path, temp: Path, mark: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start pytest with a mark in its environment and a temporary directory; kill it at the end of the block."""
    kept = session_environment()
    command = [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={temp / 'pytest'}"]
    with subprocess.Popen(
        [*command, *arguments],
        cwd=project,
        env=kept | {MARK: mark, "TMPDIR": str(temp)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def write_project(project: Path) -> None:
    write(
        project,
        {
            "pytest.ini": "[pytest]\n",
            "demo/config.yaml": CONFIG,
            "demo/data.txt": "next to the config file",
            "demo/plugin/__init__.py": "",
            "demo/plugin/work.py": WORK,
            "demo/tests/conftest.py": CONFTEST,
            "demo/tests/test_demo.py": TESTS,
            "other/config.yaml": OTHER_CONFIG,
            "other/plugin/__init__.py": "",
            "other/plugin/work.py": OTHER_WORK,
            "other/test_other.py": OTHER_TESTS,
        },
    )


def write(project: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def left_after_5_seconds(mark: str) -> list[str]:
    """Return the command lines of a session's processes that still run 5 s after its end."""
    within(5, lambda: not processes_with(mark))
    return [command_of(pid) for pid in processes_with(mark)]


def _files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


@pytest.mark.parametrize(("test", "mode"), [(test, mode) for test, modes in PASSING.items() for mode in modes])
def test_passes_in_each_mode(session, test, mode):
    assert session.outcome(f"{test}[{mode}]") == "passed"


def test_each_test_runs_once_in_each_mode_with_the_mode_in_its_id(session):
    assert sorted(session.cases) == sorted(
        f"{test}[{mode}]" for test, modes in (PASSING | {"test_that_fails": MODES}).items() for mode in modes
    )


def test_tests_are_grouped_by_mode(session):
    modes = [test.partition("[")[2].removesuffix("]") for test in session.cases]

    assert modes == sorted(modes, key=MODES.index)


def test_session_fails_only_because_of_its_failing_tests(session):
    assert session.status == pytest.ExitCode.TESTS_FAILED
    assert f"3 failed, {sum(map(len, PASSING.values()))} passed in" in session.output


def test_header_shows_all_modes_and_the_cluster(session):
    assert "synapse: mode local, task, job; cluster: ephemeral, started when first needed\n" in session.output


@pytest.mark.parametrize("mode", MODES)
def test_report_of_a_failing_action_shows_its_source_and_output(session, mode):
    report = session.outcome(f"test_that_fails[{mode}]")

    assert '    weights = {"a": 1}\n>       return weights["missing"]  # this line fails\n' in report
    assert "E       KeyError: 'missing'\n" in report
    assert "demo/plugin/work.py:" in report
    assert '    synapse_executor.execute("fail")\n' in report
    assert "ExecutionError: fail failed: KeyError: 'missing'" in report
    assert "before the failure\n" in session.section(f"test_that_fails[{mode}]", "system-out")


def test_summary_counts_the_runs_of_each_mode_and_shows_the_cluster(session):
    summary = session.output.partition(" synapse actions ")[2].partition("===\n")[2].splitlines()
    assert [line.split()[0] for line in summary[:4]] == ["mode", *MODES]
    assert re.fullmatch(r"cluster: 127\.0\.0\.1:\d+ \(started for this run\)", summary[4])


def test_session_leaves_no_process(session):
    assert session.processes == []


def test_session_leaves_no_file(session):
    assert session.temporary == []
    assert session.files == []


STUCK = """\
import time
from pathlib import Path

from synapse_runtime.decorators import action


@action
def stick(params, context):
    Path("is_stuck").touch()
    time.sleep(60)


def test_first(synapse_executor):
    synapse_executor.execute(stick)


def test_second(synapse_executor):
    Path("has_continued").touch()
"""


@pytest.mark.parametrize(
    ("mode", "how", "status"),
    [
        ("job", signal.SIGINT, int(pytest.ExitCode.INTERRUPTED)),
        # With pytest-xdist: tests/pytest_synapse/test_one_cluster.py.
        pytest.param("task", signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.thorough),
    ],
    ids=["ctrl_c_in_a_job", "kill_9_in_a_task"],
)
def test_nothing_is_left_if_the_session_is_stopped_during_an_action(tmp_path, mode, how, status):
    write(tmp_path, {"pytest.ini": "[pytest]\n", "test_stuck.py": STUCK})
    mark = uuid.uuid4().hex

    with tempfile.TemporaryDirectory(prefix="s") as temp:
        with started(tmp_path, Path(temp), mark, f"--synapse-mode={mode}") as process:
            assert within(60, (tmp_path / "is_stuck").exists)
            process.send_signal(how)
            process.communicate(timeout=patience(20))

        assert process.returncode == status
        assert left_after_5_seconds(mark) == []
        assert list(Path(temp).glob("synapse-*")) == []
    assert not (tmp_path / "has_continued").exists()


@pytest.mark.parametrize("params", ["", "params=['local', 'task']", "params=[('local', 1), ('task', 2)]"])
def test_fixture_synapse_mode_of_the_user_takes_precedence(demo, reached, monkeypatch, params):
    for name, value in reached.items():
        monkeypatch.setenv(name, value)
    demo.test(
        f"""
        @pytest.fixture({params})
        def synapse_mode(request):
            mode = getattr(request, "param", "task")
            return mode if isinstance(mode, str) else mode[0]

        def test_it(synapse_executor, synapse_mode):
            assert synapse_executor.run("double", {{"number": 2}}).mode == synapse_mode

        @pytest.mark.synapse(mode=("local", "job"))
        def test_with_marker(synapse_executor, synapse_mode):
            assert synapse_executor.mode == synapse_mode != "job"
        """
    )
    demo.pytest("--synapse-mode=local,task,job").assert_outcomes(passed=4 if params else 2)


def test_freezegun_may_stop_the_clock_before_the_first_call(demo, reached, monkeypatch):
    for name, value in reached.items():
        monkeypatch.setenv(name, value)
    demo.starts_python = True  # in the forks of other tests Ray is imported already
    demo.test(
        """
        import freezegun

        @freezegun.freeze_time("2020-01-01")
        def test_it(synapse_executor):
            assert synapse_executor.execute("double", {"number": 2}) == 4
            with pytest.raises(Exception, match="cannot be sent") as caught:
                synapse_executor.execute("lock")
            assert any("lock ran in" in note for note in caught.value.__notes__)
        """
    )
    demo.pytest("--synapse-mode=local,task").assert_outcomes(passed=2)

"""Other pytest plugins: a real session with each. docs/compatibility.md is generated from these tests."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from tests.parity.sessions import Session, run_pytest, write
from tests.patience import within
from tests.pytest_synapse.conftest import ALONE

CONFIG = """\
code: demo
actions:
  double: {entrypoint: "plugin.actions:double"}
  fail: {entrypoint: "plugin.actions:fail"}
  tick: {entrypoint: "plugin.actions:tick"}
  once: {entrypoint: "plugin.actions:once"}
  helped: {entrypoint: "plugin.actions:helped"}
  pid: {entrypoint: "plugin.actions:pid"}
  clock: {entrypoint: "plugin.actions:clock"}
  dice: {entrypoint: "plugin.actions:dice"}
"""

ACTIONS = '''\
import os
import random
import time
from pathlib import Path

from synapse_runtime.decorators import action


def helper():
    """Help.

    >>> helper()
    'real'
    """
    return "real"


@action
def double(params, context):
    return 2 * params["number"]


@action
def fail(params, context):
    print("before it failed")
    raise ValueError(f"{params['number']} is too much")


@action
def tick(params, context):
    context.log("ticks")
    until = time.monotonic() + params["seconds"]
    while time.monotonic() < until:
        Path(params["path"]).write_text(str(time.time()))
        time.sleep(0.02)


@action
def once(params, context):
    path = Path(params["path"])
    if path.exists():
        return "passed"
    path.touch()
    if params["crash"]:
        os._exit(3)
    raise ValueError("the first time")


@action
def helped(params, context):
    return helper()


@action
def clock(params, context):
    return time.time()


@action
def dice(params, context):
    return random.random()


@action
def pid(params, context):
    return os.getpid()
'''

RunSession = Callable[..., Session]


def other_plugin(name: str, tested: str, *, modes: str = "local, task") -> pytest.MarkDecorator:
    """Mark the plugin that a test is about and what is tested, for docs/compatibility.md."""
    return pytest.mark.other_plugin(name=name, tested=tested, modes=modes)


@pytest.fixture(autouse=True)
def _report_other_plugin(request: pytest.FixtureRequest) -> None:
    mark = request.node.get_closest_marker("other_plugin")
    assert mark is not None, "each test here needs the decorator other_plugin"
    values = dict(mark.kwargs)
    own = values["name"].partition(" ")[0]
    values["version"] = importlib.metadata.version("pytest" if own in ("unittest", "doctest", "pytester") else own)
    request.node.user_properties.extend((f"other_plugin_{key}", value) for key, value in values.items())


@pytest.fixture
def session(tmp_path: Path, reached: dict[str, str]) -> RunSession:
    """Run a session over one test file in local and task mode; `beside` names the disabled plugins to enable."""
    write(
        tmp_path,
        {"config.yaml": CONFIG, "plugin/__init__.py": "", "plugin/actions.py": ACTIONS, "pytest.ini": "[pytest]\n"},
    )

    def run(
        tests: str, *arguments: str, beside: str = "", modes: str = "local,task", own_cluster: bool = False
    ) -> Session:
        write(tmp_path, {"test_it.py": "import pytest\n" + dedent(tests)})
        off = " ".join(option for option in ALONE.split() if option not in [f"-pno:{name}" for name in beside.split()])
        env = {"PYTEST_ADDOPTS": off} | ({} if own_cluster else reached)
        return run_pytest(tmp_path, f"--synapse-mode={modes}", "-p", "no:cacheprovider", "-rA", *arguments, env=env)

    return run


def ids_of(session: Session, outcome: str) -> set[str]:
    """Return the ids, without file and class, of the tests with this outcome."""
    return {test for test, line in session.summary().items() if line.startswith(outcome)}


@other_plugin("pytest-xdist", "`load`, `loadscope`, `loadgroup`, `worksteal`, `-n 0`")
@pytest.mark.parametrize("dist", ["load", "loadscope", "loadgroup", "worksteal", "none"])
def test_xdist(session, dist):
    processes = "0" if dist == "none" else "2"
    ended = session(
        """
        import os

        class TestScope:
            @pytest.mark.parametrize("number", range(3))
            def test_double(self, synapse_executor, number):
                assert synapse_executor.execute("double", {"number": number}) == 2 * number

        @pytest.mark.xdist_group("one")
        @pytest.mark.parametrize("number", range(3))
        def test_group(synapse_executor, synapse_mode, number):
            own = synapse_executor.execute("pid") == os.getpid()
            assert own is (synapse_mode == "local")
        """,
        f"-n{processes}",
        *(() if dist == "none" else (f"--dist={dist}",)),
    )
    assert ended.status == 0, ended.output
    assert len(ids_of(ended, "PASSED")) == 12
    assert ("2 workers" in ended.output) is (processes == "2")


@other_plugin("pytest-cov", "the same lines are covered; `no_cover`, `--cov-fail-under`, a report in the terminal")
@pytest.mark.parametrize("mode", ["local", "task"])
def test_cov(session, mode, tmp_path):
    ended = session(
        """
        def test_double(synapse_executor):
            assert synapse_executor.execute("double", {"number": 2}) == 4

        @pytest.mark.no_cover
        def test_not_covered(synapse_executor):
            assert synapse_executor.execute("helped") == "real"
        """,
        *("--cov=plugin", "--cov-report=term", "--cov-report=json", "--cov-fail-under=40"),
        modes=mode,
    )
    assert ended.status == 0, ended.output
    executed = json.loads((tmp_path / "coverage.json").read_text())["files"]["plugin/actions.py"]["executed_lines"]
    returned = [
        line.strip() for number, line in enumerate(ACTIONS.splitlines(), 1) if "return" in line and number in executed
    ]
    assert returned == ['return 2 * params["number"]']
    assert "Required test coverage of 40% reached" in ended.output


@other_plugin("pytest-randomly", "tests are shuffled within each mode; each call starts with its seed")
def test_randomly(session, tmp_path):
    tests = """
        import random
        from pathlib import Path

        @pytest.mark.parametrize("number", range(8))
        def test_double(synapse_executor, synapse_mode, number):
            with Path("order.txt").open("a") as file:
                print(synapse_mode, number, file=file)
            assert synapse_executor.execute("dice") == random.Random(7).random()
        """
    ended = session(tests, "--randomly-seed=7", beside="randomly")
    assert ended.status == 0, ended.output
    assert "Using --randomly-seed=7" in ended.output
    assert len(ids_of(ended, "PASSED")) == 16
    order = [line.split() for line in (tmp_path / "order.txt").read_text().splitlines()]
    modes, numbers = zip(*order, strict=True)
    assert list(numbers[:8]) != sorted(numbers[:8])
    assert sum(one != other for one, other in itertools.pairwise(modes)) == 1  # modes stay together


@other_plugin(
    "pytest-rerunfailures",
    "tests of an action that fails once, and of one that crashes its worker, pass when they are rerun",
)
def test_rerunfailures(session, tmp_path):
    ended = session(
        """
        from pathlib import Path

        @pytest.mark.flaky(reruns=1)
        @pytest.mark.parametrize("crash", [False, True])
        def test_once(synapse_executor, synapse_mode, crash):
            if crash and synapse_mode == "local":
                return
            path = Path(f"{synapse_mode}-{crash}").absolute()
            assert synapse_executor.execute("once", {"path": str(path), "crash": crash}) == "passed"

        def test_after(synapse_executor):
            assert synapse_executor.execute("double", {"number": 2}) == 4
        """,
        beside="rerunfailures",
    )
    assert ended.status == 0, ended.output
    assert re.search(r"6 passed, 3 rerun in", ended.output), ended.output


@other_plugin("pytest-timeout", "its `signal` method stops an action; the next test and the marker's own timeout work")
def test_timeout_by_signal(session, tmp_path):
    ended = session(
        """
        from pathlib import Path

        def test_before(synapse_executor):  # starts the worker
            assert synapse_executor.execute("double", {"number": 2}) == 4

        @pytest.mark.timeout(1.5)
        def test_stuck(synapse_executor, synapse_mode):
            synapse_executor.execute("tick", {"seconds": 30, "path": str(Path(f"ticks-{synapse_mode}").absolute())})

        @pytest.mark.timeout(20)
        @pytest.mark.synapse(timeout=0.3)
        def test_own_limit(synapse_executor, tmp_path):
            from synapse_runtime.errors import ExecutionTimeout
            with pytest.raises(ExecutionTimeout):
                synapse_executor.execute("tick", {"seconds": 30, "path": str(tmp_path / "ticks")})

        def test_after(synapse_executor):
            assert synapse_executor.execute("double", {"number": 2}) == 4
        """,
        "--timeout-method=signal",
    )
    assert ids_of(ended, "FAILED") == {"test_stuck[local]", "test_stuck[task]"}, ended.output
    assert ended.output.count("Failed: Timeout (>1.5s) from pytest-timeout") >= 2
    assert len(ids_of(ended, "PASSED")) == 6
    assert all(is_at_rest(tmp_path / f"ticks-{mode}") for mode in ("local", "task"))


@other_plugin("pytest-timeout", "its `thread` method terminates pytest and its worker", modes="task")
def test_timeout_by_thread(session, tmp_path):
    ended = session(
        """
        from pathlib import Path

        @pytest.mark.synapse(mode="task")
        def test_before(synapse_executor):  # starts the worker
            assert synapse_executor.execute("double", {"number": 2}) == 4

        @pytest.mark.timeout(2)
        @pytest.mark.synapse(mode="task")
        def test_stuck(synapse_executor):
            synapse_executor.execute("tick", {"seconds": 60, "path": str(Path("ticks").absolute())})
        """,
        "--timeout-method=thread",
    )
    assert ended.status == 1
    assert "Timeout" in ended.output
    assert within(15, lambda: is_at_rest(tmp_path / "ticks"))


def is_at_rest(path: Path) -> bool:
    before = path.read_text()
    time.sleep(0.3)
    return path.read_text() == before


ASYNC_TESTS = """
    import asyncio
    import time
    from synapse_runtime.errors import ExecutionError, ExecutionTimeout

    {mark}
    async def test_await(synapse_executor, capsys):
        assert await synapse_executor.aexecute("double", {{"number": 2}}) == 4
        with pytest.raises(ExecutionError, match="3 is too much"):
            await synapse_executor.aexecute("fail", {{"number": 3}})
        assert capsys.readouterr().out == "before it failed\\n"

    {mark}
    async def test_limits(synapse_executor, tmp_path):
        await synapse_executor.aexecute("double", {{"number": 2}})
        ticks = {{"seconds": 30, "path": str(tmp_path / "ticks")}}
        started = time.monotonic()
        with pytest.raises(ExecutionTimeout):
            await synapse_executor.aexecute("tick", ticks, timeout=0.3)
        {cancel}
        assert time.monotonic() - started < 15
        assert await synapse_executor.aexecute("double", {{"number": 3}}) == 6

    {mark}
    async def test_fails(synapse_executor):
        await synapse_executor.aexecute("fail", {{"number": 4}})
    """


@other_plugin(
    "pytest-asyncio",
    "`aexecute`: results, errors, reports, output, timeouts, `wait_for`, `gather`",
)
def test_asyncio(session, tmp_path):
    write(tmp_path, {"pytest.ini": "[pytest]\nasyncio_default_fixture_loop_scope = function\n"})
    cancel = """with pytest.raises(TimeoutError):
            await asyncio.wait_for(synapse_executor.aexecute("tick", ticks), 0.3)
        calls = [synapse_executor.aexecute("double", {"number": number}) for number in range(3)]
        assert await asyncio.gather(*calls) == [0, 2, 4]"""
    ended = session(ASYNC_TESTS.format(mark="@pytest.mark.asyncio", cancel=cancel), beside="asyncio")
    expect_async(ended, ["local", "task"])


@other_plugin("anyio", "`aexecute` under asyncio and trio: results, errors, reports, output, timeouts, `fail_after`")
def test_anyio(session):
    cancel = """import anyio
        with pytest.raises(TimeoutError), anyio.fail_after(0.3):
            await synapse_executor.aexecute("tick", ticks)"""
    ended = session(ASYNC_TESTS.format(mark="@pytest.mark.anyio", cancel=cancel), beside="anyio")
    expect_async(ended, [f"{loop}-{mode}" for mode in ("local", "task") for loop in ("asyncio", "trio")])


def expect_async(ended: Session, ids: list[str]) -> None:
    assert ids_of(ended, "PASSED") == {f"{test}[{each}]" for test in ("test_await", "test_limits") for each in ids}, (
        ended.output
    )
    failures = ended.reports()
    assert set(failures) == {f"test_fails[{each}]" for each in ids}
    for report in failures.values():  # as with the sync form: lines of the action and the test, none of ours
        assert "raise ValueError(f\"{params['number']} is too much\")" in report
        assert '>       await synapse_executor.aexecute("fail", {"number": 4})' in report
        assert "executors/base.py" not in report
        assert "threads.py" not in report


@other_plugin(
    "hypothesis",
    "`@given` accepts this plugin's fixtures without settings; a failure shows the action's error and the example",
)
def test_hypothesis(session):
    ended = session(
        """
        from hypothesis import given, settings, strategies as st

        @settings(max_examples=20, deadline=None)
        @given(number=st.integers(-1000, 1000))
        def test_holds(synapse_executor, synapse_mode, number):
            assert synapse_executor.execute("double", {"number": number}) == 2 * number

        @settings(max_examples=20, deadline=None)
        @given(number=st.integers(0, 9))
        def test_fails(synapse_executor, number):
            if number > 3:
                synapse_executor.execute("fail", {"number": number})

        @settings(max_examples=2, deadline=None)
        @given(number=st.integers())
        def test_with_a_user_fixture(synapse_executor, tmp_path, number): pass

        @given(number=st.integers())
        def test_default_settings(synapse_mode, number): pass

        class TestGiven:
            @settings(max_examples=2, deadline=None)
            @given(number=st.integers())
            def test_method(self, synapse_executor, number):
                assert synapse_executor.execute("double", {"number": number}) == 2 * number
        """,
        beside="hypothesispytest",
    )
    each = ("local", "task")
    assert ids_of(ended, "PASSED") == {
        f"{test}[{mode}]" for test in ("test_holds", "test_default_settings", "test_method") for mode in each
    }, ended.output
    failures = ended.reports()
    for mode in each:
        report = failures[f"test_fails[{mode}]"]
        assert "ValueError: 4 is too much" in report
        assert "ExecutionError: fail failed: ValueError: 4 is too much" in report
        assert "number=4" in report
        assert re.search(r"(Falsifying example|Failing test case): test_fails\(", report)
        assert "function-scoped fixture" in failures[f"test_with_a_user_fixture[{mode}]"]


@other_plugin("pytest-html", "a failed test's entry contains the action's traceback and output")
def test_html(session, tmp_path):
    ended = session(
        """
        def test_fails(synapse_executor):
            synapse_executor.execute("fail", {"number": 5})
        """,
        "--html=report.html",
        "--self-contained-html",
        beside="html metadata",
    )
    assert ended.status == 1
    report = (tmp_path / "report.html").read_text()
    for mode in ("local", "task"):
        assert f"test_fails[{mode}]" in report
        assert f"fail ran in {mode} mode" in report
    assert report.count("5 is too much") >= 4
    assert report.count("plugin/actions.py:") >= 2
    assert report.count("before it failed") >= 2


@other_plugin(
    "pytest-mock", "`mocker.patch` and `mocker.spy` hold where the action runs, and have its calls afterwards"
)
def test_mock(session):
    ended = session(
        """
        from plugin import actions

        def test_patched(synapse_executor, mocker):
            patched = mocker.patch("plugin.actions.helper", return_value="mocked")
            assert synapse_executor.execute("helped") == "mocked"
            patched.assert_called_once_with()

        def test_spied(synapse_executor, mocker):
            spy = mocker.spy(actions, "helper")
            assert synapse_executor.execute("helped") == "real"
            spy.assert_called_once_with()
            assert spy.spy_return == "real"

        def test_after(synapse_executor):
            assert synapse_executor.execute("helped") == "real"

        def test_on_event(synapse_executor, mocker):
            listener = mocker.stub()
            synapse_executor.run("tick", {"seconds": 0.01, "path": "ticks"}, on_event=listener)
            listener.assert_called_once()
        """
    )
    assert ended.status == 0, ended.output
    assert len(ids_of(ended, "PASSED")) == 8


@other_plugin("freezegun", "a clock that is stopped is that of the action too")
def test_freezegun(session):
    ended = session(
        """
        import freezegun

        @freezegun.freeze_time("2020-01-02")
        def test_stopped(synapse_executor):
            assert synapse_executor.execute("clock") == 1577923200
        """
    )
    assert ended.status == 0, ended.output
    assert len(ids_of(ended, "PASSED")) == 2


@other_plugin("time-machine", "a clock that is moved or stopped is that of the action too")
def test_time_machine(session):
    ended = session(
        """
        import time_machine

        @time_machine.travel(1577923200, tick=False)
        def test_moved(synapse_executor):
            assert synapse_executor.execute("clock") == 1577923200
        """
    )
    assert ended.status == 0, ended.output
    assert len(ids_of(ended, "PASSED")) == 2


@other_plugin("pytest-benchmark", "`benchmark(synapse_executor.execute, ...)`")
def test_benchmark(session):
    ended = session(
        """
        def test_double(synapse_executor, benchmark):
            assert benchmark(synapse_executor.execute, "double", {"number": 2}) == 4
        """,
        "--benchmark-max-time=0.2",
        "--benchmark-min-rounds=3",
        beside="benchmark",
    )
    assert ended.status == 0, ended.output
    assert re.search(r"^test_double\[local\] ", ended.output, re.MULTILINE)
    assert re.search(r"^test_double\[task\] ", ended.output, re.MULTILINE)


@other_plugin("pytest subtests", "a failing subtest is reported, and the others run")
def test_subtests(session):
    ended = session(
        """
        def test_each(synapse_executor, subtests):
            for number in range(3):
                with subtests.test("action", number=number):
                    action = "fail" if number == 1 else "double"
                    assert synapse_executor.execute(action, {"number": number}) == 2 * number
        """
    )
    assert ended.status == 1
    assert ended.output.count("ExecutionError: fail failed: ValueError: 1 is too much") >= 2
    assert ended.output.count("SUBFAILED[action] (number=1)") + ended.output.count("SUBFAIL") >= 2, ended.output
    assert "2 is too much" not in ended.output


UNITTEST = """
    import unittest
    from pytest_synapse import SynapseTestCase

    class TestPlain(SynapseTestCase):
        @classmethod
        def setUpClass(cls):
            cls.began = True

        def test_double(self):
            assert self.began
            self.assertEqual(self.synapse_executor.execute("double", {"number": 2}), 4)

        @pytest.mark.synapse(mode="local", env={"NAME": "value"})
        def test_marked(self):
            self.assertEqual(self.synapse_executor.mode, "local")
            self.assertEqual(self.synapse_executor.call("double").env["NAME"], "value")

    @pytest.mark.synapse(mode="task", timeout=7)
    class TestMarked(SynapseTestCase):
        def test_mode(self):
            self.assertEqual(self.synapse_executor.mode, "task")
            self.assertEqual(self.synapse_executor.call("double").timeout, 7)

    @pytest.mark.synapse(mode=("local", "task"), timeout=8)
    class TestSeveral(SynapseTestCase):
        def test_timeout(self):
            self.assertEqual(self.synapse_executor.call("double").timeout, 8)

    class TestAsync(SynapseTestCase, unittest.IsolatedAsyncioTestCase):
        async def test_double(self):
            self.assertEqual(await self.synapse_executor.aexecute("double", {"number": 2}), 4)
    """

OWN_FIXTURE = """
    import unittest

    class TestOwn(unittest.TestCase):
        @pytest.fixture(autouse=True)
        def _take(self, request, synapse_executor):
            request.cls.executor = synapse_executor

        def test_double(self):
            self.assertEqual(self.executor.execute("double", {"number": 2}), 4)
    """


@other_plugin("unittest", "`SynapseTestCase`: marker on class and method, each mode, `IsolatedAsyncioTestCase`")
def test_unittest(session, tmp_path):
    ended = session(UNITTEST, "-v")
    assert ended.status == 0, ended.output
    assert set(re.findall(r"test_it\.py::(\S+) PASSED", ended.output)) == {
        *("TestPlain-local::test_double", "TestPlain-task::test_double", "TestPlain-local::test_marked"),
        *("TestSeveral-local::test_timeout", "TestSeveral-task::test_timeout"),
        *("TestMarked::test_mode", "TestAsync-local::test_double", "TestAsync-task::test_double"),
    }
    again = session(UNITTEST, "-v", "test_it.py::TestPlain-local::test_double")
    assert "1 passed" in again.output, again.output


@other_plugin(
    "unittest",
    "a `TestCase` with a user-defined fixture: one mode; several modes are a usage error that names the test",
)
def test_unittest_with_a_user_fixture(session):
    assert session(OWN_FIXTURE, modes="local").status == 0
    refused = (
        "test_it.py::TestOwn::test_double: pytest runs each test of a unittest.TestCase once, "
        "but several modes are selected (local, task)"
    )
    ended = session(OWN_FIXTURE)
    assert ended.status == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {refused}" in ended.output
    assert "SynapseTestCase" in ended.output
    distributed = session(OWN_FIXTURE, "-n1")
    assert distributed.status != 0
    assert refused in distributed.output
    assert "INTERNALERROR" not in distributed.output


@other_plugin("doctest", "`--doctest-modules` collects a plugin's modules, along with tests of its actions")
def test_doctest(session, tmp_path):
    ended = session(
        """
        def test_double(synapse_executor):
            assert synapse_executor.execute("double", {"number": 2}) == 4
        """,
        "--doctest-modules",
    )
    assert ended.status == 0, ended.output
    assert ids_of(ended, "PASSED") == {"plugin.actions.helper", "test_double[local]", "test_double[task]"}


PYTESTER = """
    pytest_plugins = "pytester"
    seen = []

    def test_before(synapse_executor):
        seen.append(synapse_executor.execute("pid"))

    INNER = '''
    def test_inner(synapse_executor):
        assert synapse_executor.execute("double", {"number": 2}) == 4
    '''

    def test_inner_session(pytester, request):
        pytester.makepyfile(INNER)
        result = pytester.RUN("--synapse-mode=local,task", f"--synapse-plugin={request.config.rootpath}")
        result.assert_outcomes(passed=2)

    def test_after(synapse_executor):
        assert synapse_executor.execute("pid") == seen[0]
    """


@other_plugin(
    "pytester",
    "suites that run this plugin in inner sessions, in process or not, do not affect the outer worker and cluster",
    modes="task",
)
@pytest.mark.parametrize("how", ["subprocess", "inprocess"])
def test_pytester(session, how):
    # In process with the run's own cluster, which the inner session could stop by mistake.
    run = "runpytest_inprocess" if how == "inprocess" else "runpytest_subprocess"
    ended = session(PYTESTER.replace("RUN", run), modes="task", own_cluster=how == "inprocess")
    assert ended.status == 0, ended.output
    assert len(ids_of(ended, "PASSED")) == 3

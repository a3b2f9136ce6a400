"""What a suite sets up for its actions: the environment since the session began, patches, context managers, seeds."""

from __future__ import annotations

import os

import pytest

from tests.pytest_synapse.conftest import Project

ACTIONS = """\
import os
import random

from synapse_runtime.decorators import action


def load(path="p"):
    return path


@action
def variables(params, context):
    return {name: os.environ.get(name) for name in params["names"]}


@action
def use(params, context):
    return load("used")


@action
def dice(params, context):
    return random.random()
"""


@pytest.fixture
def demo(project: Project, reached: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with a plugin, whose sessions use the cluster of this run."""
    for name, value in reached.items():
        monkeypatch.setenv(name, value)
    project.plugin(actions=ACTIONS, config="code: demo\nenv: {FROM_CONFIG: config}\n")
    project.write(
        "conftest.py",  # which the process that starts those of pytest-xdist imports too
        """
        import os

        os.environ["OF_CONFTEST"] = "conftest"
        os.environ.pop("DELETED_BY_CONFTEST", None)
        """,
    )
    return project


@pytest.mark.parametrize("processes", [(), ("-p", "xdist", "-n", "2")], ids=["one", "xdist"])
def test_only_variables_that_changed_since_the_session_began_are_sent(
    demo: Project, monkeypatch: pytest.MonkeyPatch, processes: tuple[str, ...]
) -> None:
    monkeypatch.setenv("SET_BEFORE_THE_SESSION", "secret")
    monkeypatch.setenv("DELETED_BY_CONFTEST", "before")
    demo.test(
        """
        NAMES = ["SET_BEFORE_THE_SESSION", "OF_CONFTEST", "DELETED_BY_CONFTEST", "PYTEST_CURRENT_TEST", "OF_TEST"]

        @pytest.fixture(scope="session", autouse=True)
        def of_the_session():
            with pytest.MonkeyPatch.context() as patches:
                patches.setenv("OF_TEST", "session")
                yield

        @pytest.mark.parametrize("number", [1, 2])
        def test_it(synapse_executor, monkeypatch, number):
            found = synapse_executor.execute("plugin.actions:variables", {"names": NAMES})
            assert found == dict(zip(NAMES, [None, "conftest", None, None, "session"]))
            monkeypatch.setenv("SET_BEFORE_THE_SESSION", "changed")
            monkeypatch.setenv("OF_TEST", str(number))
            found = synapse_executor.execute("plugin.actions:variables", {"names": NAMES})
            assert found == dict(zip(NAMES, ["changed", "conftest", None, None, str(number)]))
        """
    )
    demo.pytest("--synapse-mode=task", *processes).assert_outcomes(passed=2)


def test_a_cluster_that_starts_during_a_test_does_not_keep_its_variables(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHANGED_BY_TEST", "before")
    project.plugin(actions=ACTIONS, config="code: demo\n")
    project.test(
        """
        @pytest.mark.parametrize("value", ["first", "second", None])
        def test_it(synapse_executor, monkeypatch, value):
            if value is not None:
                monkeypatch.setenv("CHANGED_BY_TEST", value)
                monkeypatch.setenv("OF_TEST", value)
            found = synapse_executor.execute("plugin.actions:variables", {"names": ["CHANGED_BY_TEST", "OF_TEST"]})
            assert found == {"CHANGED_BY_TEST": value or "before", "OF_TEST": value}
        """
    )
    project.pytest("--synapse-mode=remote", "-p", "no:randomly").assert_outcomes(passed=3)


def test_a_secret_that_the_test_sets_is_not_shown(demo: Project) -> None:
    demo.write("demo/plugin/fails.py", "def fail(params, context):\n    raise ValueError(context.env['API_TOKEN'])\n")
    demo.test(
        """
        from synapse_runtime.decorators import action

        @action
        def fails(params, context):
            token = check(context.env["API_TOKEN"])

        def check(token):
            raise ValueError("no")

        def test_it(synapse_executor, monkeypatch):
            monkeypatch.setenv("API_TOKEN", "hunter2-hunter2")
            synapse_executor.execute(fails)
        """
    )
    result = demo.pytest("--synapse-mode=task", "--showlocals")
    result.assert_outcomes(failed=1)
    assert "hunter2" not in "\n".join(line for line in result.outlines if "setenv" not in line)


def test_patch_that_cannot_be_sent_fails_the_test_and_names_it(demo: Project) -> None:
    demo.test(
        """
        import threading
        from plugin import actions

        def test_it(synapse_executor, monkeypatch):
            lock = threading.Lock()
            monkeypatch.setattr(actions, "load", lambda path: lock)
            synapse_executor.execute(actions.use)

        def test_next(synapse_executor):
            from plugin import actions
            assert synapse_executor.execute(actions.use) == "used"
        """
    )
    result = demo.pytest("--synapse-mode=local,task", "-p", "no:randomly", "-k", "task")
    result.assert_outcomes(passed=1, failed=1)
    (line,) = (line for line in result.outlines if line.startswith("E  "))
    assert "PatchNotSerializable: the patch of plugin.actions.load cannot be sent to a worker: its " in line


def test_patches_of_a_fixture_and_of_a_helper_module_of_the_tests(demo: Project) -> None:
    demo.write("demo/tests/conftest.py", "")
    demo.write(
        "demo/tests/conftest.py",
        """
        import pytest
        from plugin import actions

        @pytest.fixture(scope="session")
        def loaded():
            calls = []
            with pytest.MonkeyPatch.context() as patches:
                patches.setattr(actions, "load", lambda path: calls.append(path) or "fake")
                yield calls
        """,
    )
    demo.test(
        """
        @pytest.mark.parametrize("number", [1, 2])
        def test_it(synapse_executor, loaded, number):
            assert synapse_executor.execute("plugin.actions:use") == "fake"
            assert loaded == ["used"] * number
        """
    )
    demo.pytest("--synapse-mode=task").assert_outcomes(passed=2)


def test_seed_of_the_ini_option_and_of_pytest_randomly(demo: Project) -> None:
    demo.ini("synapse_seed = 7")
    test = """
        import random

        @pytest.mark.parametrize("number", [1, 2])
        def test_it(synapse_executor, number):
            first = synapse_executor.execute("plugin.actions:dice")
            random.random()
            assert synapse_executor.execute("plugin.actions:dice") == first == random.Random({seed}).random()
        """
    demo.test(test.replace("{seed}", "7"))
    demo.pytest("--synapse-mode=local,task").assert_outcomes(passed=4)
    demo.ini("")
    demo.test(test.replace("{seed}", "11"))
    demo.pytest("--synapse-mode=local,task", "-p", "randomly", "--randomly-seed=11").assert_outcomes(passed=4)


def test_wrong_seed_is_a_usage_error(demo: Project) -> None:
    demo.ini("synapse_seed = many")
    assert "synapse_seed in " in demo.usage_error()


@pytest.mark.parametrize("around", ["3", "()", "[None]", "(3, 4)"])
def test_wrong_context_manager_is_a_usage_error(demo: Project, around: str) -> None:
    demo.test(
        f"""
        @pytest.mark.synapse(around={around})
        def test_it(synapse_executor):
            pass
        """
    )
    assert "around must be a context manager, a function that returns one" in demo.usage_error()


def test_context_managers_of_class_and_test_nest(demo: Project) -> None:
    demo.test(
        """
        import contextlib
        import os

        @contextlib.contextmanager
        def set_to(value):
            before = os.environ.get("OF_MANAGER", "")
            os.environ["OF_MANAGER"] = before + value
            yield
            os.environ["OF_MANAGER"] = before

        @pytest.mark.synapse(around=(set_to, "a"))
        class TestIt:
            @pytest.mark.synapse(around=[(set_to, "b"), (set_to, "c")])
            def test_it(self, synapse_executor):
                found = synapse_executor.execute("plugin.actions:variables", {"names": ["OF_MANAGER"]})
                assert found == {"OF_MANAGER": "abc"}
        """
    )
    demo.pytest("--synapse-mode=local,task").assert_outcomes(passed=2)


def test_remote_mode_skips_what_a_backend_cannot_do_and_says_why(project: Project) -> None:
    project.plugin(actions=ACTIONS, config="code: demo\n")
    project.test(
        """
        import contextlib
        from plugin import actions

        def test_function(synapse_executor, monkeypatch):
            monkeypatch.setattr(actions, "load", lambda path: path)
            synapse_executor.execute(actions.use)

        @pytest.mark.synapse(around=contextlib.nullcontext)
        def test_manager(synapse_executor):
            synapse_executor.execute(actions.use)

        def test_constant(synapse_executor, monkeypatch):
            monkeypatch.setattr(actions.load, "__defaults__", ("constant",))
            synapse_executor.execute(actions.use)
        """
    )
    result = project.pytest("--synapse-mode=remote", "-rs")
    result.assert_outcomes(skipped=2, passed=1)
    output = result.stdout.str()
    assert "remote mode: use: the patch of plugin.actions.load cannot be sent to a backend: JSON does not" in output
    assert "remote mode: use: nullcontext runs around the action, and a backend runs no code of the test" in output


def test_sessions_in_one_process_keep_their_environments_apart(demo: Project) -> None:
    demo.test(
        """
        pytest_plugins = ["pytester"]

        def test_it(synapse_executor, pytester, monkeypatch):
            monkeypatch.setenv("OF_OUTER", "1")
            pytester.makepyfile(test_inner="def test_inner(): pass")
            pytester.runpytest_inprocess("-p", "no:randomly", "test_inner.py").assert_outcomes(passed=1)
            names = {"names": ["OF_OUTER"]}
            assert synapse_executor.execute("plugin.actions:variables", names) == {"OF_OUTER": "1"}
        """,
        name="demo/test_it.py",
    )
    demo.pytest("--synapse-mode=task").assert_outcomes(passed=1)
    assert "OF_CONFTEST" not in os.environ


@pytest.mark.parametrize("processes", [(), ("-p", "xdist", "-n", "1")], ids=["one", "xdist"])
@pytest.mark.parametrize("marker", ["mode='task'", "isolation='fresh'"])
def test_patches_of_fixtures_that_are_set_up_before_the_executor(
    demo: Project, marker: str, processes: tuple[str, ...]
) -> None:
    """The session itself runs in local mode, so only the test's marker says that there is something to note."""
    demo.test(
        f"""
        from unittest.mock import patch

        @pytest.fixture
        def loaded():
            with patch("plugin.actions.load", return_value="fake") as load:
                yield load

        @pytest.mark.synapse({marker})
        def test_it(loaded, synapse_executor):
            assert synapse_executor.execute("plugin.actions:use") == "fake"
            loaded.assert_called_once_with("used")
        """
    )
    demo.starts_python = True  # in the forks of other tests patches may be noted already
    demo.pytest(*processes).assert_outcomes(passed=1)

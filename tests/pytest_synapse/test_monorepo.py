"""Five plugins in one repository, tested in one session: each uses its own modules."""

from __future__ import annotations

import re
import sys

import pytest

from tests.patience import patience
from tests.pytest_synapse.conftest import ALONE, Project
from tests.pytest_synapse.monorepo import write_monorepo

MODULES = "[name for name in sys.modules if name.partition('.')[0] in {'plugin', 'tests', 'test_train', 'conftest'}]"


@pytest.fixture
def monorepo(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Five plugins with 40 tests each, and one test outside of them; `pytest-randomly` is enabled."""
    write_monorepo(project.path, each=8)
    monkeypatch.setenv("PYTEST_ADDOPTS", ALONE.replace("-pno:randomly", ""))
    return project


def passed(result: pytest.RunResult) -> int:
    """Return the number of passed tests; fail if there are other outcomes."""
    assert result.ret == pytest.ExitCode.OK, result.stdout.str()
    counts = result.parseoutcomes()
    assert counts.keys() <= {"passed", "deselected"}
    return counts["passed"]


@pytest.mark.parametrize(
    ("packages", "options"),
    [
        (False, "--import-mode=prepend --randomly-seed=1 -n2"),
        (False, "--import-mode=importlib --randomly-seed=18 -pno:cacheprovider"),
        (True, "--import-mode=prepend --randomly-seed=22"),
        (True, "--import-mode=importlib --randomly-seed=36 -n2 --dist=loadscope"),
        (True, "--import-mode=append -pno:randomly"),
    ],
)
def test_each_plugin_is_tested_with_its_own_modules_in_any_order(monorepo, packages, options):
    write_monorepo(monorepo.path, each=8, packages=packages)
    assert passed(monorepo.pytest("--doctest-modules", *options.split())) == 206


def test_paths_given_one_by_one_use_their_own_modules(monorepo):
    assert passed(monorepo.pytest("red/tests", "plugins/pink/tests", "outside", "green/tests/test_train.py")) == 121
    assert passed(monorepo.pytest("-pno:randomly", "blue/vendor/grey/tests", "blue/tests")) == 80


def test_each_plugin_is_tested_with_its_own_modules_in_every_mode(project, reached, monkeypatch):
    write_monorepo(project.path, each=1)
    for name, value in reached.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTEST_ADDOPTS", ALONE.replace("-pno:randomly", ""))
    few_jobs = ("-k", "test_names_resolve_to_its_own_modules or not job")
    # 12 tests of each plugin, 5 of them with an action: again in task mode, and one as a job.
    tests = 5 * (12 + 5 + 1) + 1
    assert passed(project.pytest("-n2", "--randomly-seed=7", "--synapse-mode=local,task,job", *few_jobs)) == tests


def test_session_restores_sys_path_and_sys_modules(monorepo, monkeypatch):
    script = f"""
        import sys
        import pytest

        path = list(sys.path)
        assert pytest.main(["-q", "red", "green"]) == 0
        # pytest itself leaves the entry that it added for the conftest file above the plugins.
        left = [entry for entry in sys.path if entry not in path]
        print("left:", [entry for entry in left if entry.rstrip("/") != sys.argv[1]], {MODULES})
    """
    monorepo.write("main.py", script)
    result = monorepo._pytester.run(sys.executable, "main.py", monorepo.path, timeout=patience(60))
    (line,) = (line for line in result.outlines if line.startswith("left:"))
    assert line == "left: [] []"


def test_nested_session_does_not_change_the_outer_one(demo, pytester):
    demo.write("conftest.py", "pytest_plugins = ['pytester']")
    demo.plugin("other")
    demo.test(
        """
        import os
        import sys
        from plugin.actions import Double

        ALONE = os.environ["PYTEST_ADDOPTS"].split()

        def test_outer(pytester, synapse_executor):
            pytester.makefile(".yaml", config="code: inner\\nactions: {}\\n")
            pytester.mkpydir("plugin")
            pytester.makepyfile(**{"plugin/inner": "NAME = 'inner'"})
            pytester.makepyfile("from plugin.inner import NAME\\ndef test_inner(): assert NAME == 'inner'")
            path = list(sys.path)
            pytester.inline_run(*ALONE).assertoutcome(passed=1)
            assert sys.path == path
            assert sys.modules["plugin.actions"].Double is Double
            assert "plugin.inner" not in sys.modules
            assert synapse_executor.execute(Double, {"number": 2}) == 4
        """
    )
    assert passed(demo.pytest("demo")) == 1


def test_plugin_edited_by_a_test_runs_with_the_edit(demo):
    demo.test(
        """
        import pickle
        import sys
        from pathlib import Path

        ACTIONS = Path(__file__).parents[1] / "plugin" / "actions.py"

        class OfThisTest: pass

        @pytest.mark.parametrize("factor", "345")
        def test_edit(synapse_executor, factor):
            text = ACTIONS.read_text()
            before = 2 if "return 2 *" in text else int(factor) - 1
            assert synapse_executor.execute("double", {"number": 1}) == before
            ACTIONS.write_text(text.replace(f"return {before} *", f"return {factor} *"))
            assert synapse_executor.execute("double", {"number": 1}) == int(factor)
            assert type(pickle.loads(pickle.dumps(OfThisTest()))) is OfThisTest
        """
    )
    assert passed(demo.pytest()) == 3


def test_session_fixtures_are_torn_down_with_their_own_modules(project):
    for name in ("one", "two"):
        project.plugin(name)
        project.write(f"{name}/plugin/late.py", f"NAME = '{name}'")
        project.write(
            f"{name}/tests/conftest.py",
            f"""
            import pytest

            @pytest.fixture(scope="session")
            def whole_session():
                yield
                from plugin.late import NAME
                print("torn down:", NAME, {name!r})
                raise RuntimeError("reported, and the next fixture is still torn down")

            @pytest.fixture(scope="session")
            def fails(whole_session):
                raise RuntimeError("fails in setup")
            """,
        )
        project.test(
            "def test_it(whole_session): pass\ndef test_failing_setup(fails): pass", f"{name}/tests/test_it.py"
        )
    result = project.pytest("-s")
    assert re.findall(r"torn down: (\w+) (\w+)", result.stdout.str()) == [("two", "two"), ("one", "one")]
    result.assert_outcomes(passed=2, errors=3)
    assert "module_import.py" not in result.stdout.str()


def test_assertions_are_rewritten_and_lines_measured_in_each_plugins_own_files(project):
    for name in ("one", "two"):
        project.plugin(name, actions="def checked(number):\n    assert number == 1\n    return number\n")
        project.write(f"{name}/tests/conftest.py", "import pytest\npytest.register_assert_rewrite('plugin.actions')")
        project.test(
            f"""
            from plugin.actions import checked

            def test_it():
                with pytest.raises(AssertionError, match="assert 2 == 1") as caught:
                    checked(2)
                assert caught.traceback[-1].path.parts[-3:] == ({name!r}, "plugin", "actions.py")
                {"assert checked(1) == 1" if name == "two" else ""}
            """,
            f"{name}/tests/test_it.py",
        )
    result = project.pytest("--cov=.", "--cov-report=term-missing")
    assert passed(result) == 2
    lines = {line.split()[0]: line.split()[1:] for line in result.outlines if "plugin/actions.py" in line}
    assert lines == {"one/plugin/actions.py": ["3", "1", "67%", "3"], "two/plugin/actions.py": ["3", "0", "100%"]}


def test_pytest_still_has_the_private_method_that_imports_conftest_files():
    assert callable(pytest.PytestPluginManager._importconftest)


def test_session_without_a_plugin_is_not_affected(project):
    project.starts_python = True
    project.write("conftest.py", "def pytest_unconfigure(config):\n    print(config.pluginmanager.list_name_plugin())")
    project.write("tests/conftest.py", "")
    project.write(
        "tests/test_it.py",
        "import sys\ndef test_it(): assert 'synapse_runtime.plugins.module_scopes' not in sys.modules",
    )
    result = project.pytest("-s")
    assert passed(result) == 1
    assert "synapse-importing" not in result.stdout.str()


def test_plugin_deleted_during_the_session_fails_only_its_own_tests(demo):
    demo.plugin("zebra")
    demo.test("import shutil\ndef test_it(): shutil.rmtree('demo')\ndef test_late(): import plugin.actions")
    demo.test("def test_it(): import plugin.actions", "zebra/tests/test_it.py")
    result = demo.pytest()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["FAILED demo/tests/test_it.py::test_late - ModuleNotFoundError*"])

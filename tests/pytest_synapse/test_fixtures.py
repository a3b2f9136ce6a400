"""The fixtures: their values, and how they find the plugin of a test."""

from __future__ import annotations

import pytest

from tests.pytest_synapse.conftest import Project

WHO_CONFIG = 'code: {code}\nactions:\n  who: {{entrypoint: "plugin.actions:who"}}\n'
WHO = """\
from synapse_runtime.decorators import action
from plugin.names import NAME


@action
def who(params, context):
    return NAME
"""


def named_plugin(project: Project, directory: str, name: str) -> None:
    """Write a plugin with one action, which returns the plugin's name from a second module of its package."""
    project.plugin(directory, config=WHO_CONFIG.format(code=name), actions=WHO)
    project.write(f"{directory}/plugin/names.py", f"NAME = {name!r}\n")


def asks_for(name: str) -> str:
    """Return a test that expects the plugin of this name."""
    return f"def test_it(synapse_executor): assert synapse_executor.execute('who') == {name!r}\n"


# synapse_executor


def test_executor_accepts_class_function_entrypoint_and_action_name(demo):
    demo.test(
        """
        from plugin.actions import Double, show_env

        @pytest.mark.parametrize("action", [Double, "double", "plugin.actions:Double", "plugin.actions.Double"])
        def test_double(synapse_executor, action):
            assert synapse_executor.execute(action, {"number": 21}) == 42

        def test_function(synapse_executor):
            assert synapse_executor.execute(show_env, {"names": ["LEVEL"]}) == {"LEVEL": ["config", "config"]}

        def test_no_params(synapse_executor):
            assert synapse_executor.execute("double") == 2

        def test_run(synapse_executor):
            run = synapse_executor.run("double", {"number": 21})
            assert (run.result, run.error, run.mode, run.name) == (42, None, "local", "double")
        """
    )

    demo.pytest().assert_outcomes(passed=7)


def test_unknown_action_error_suggests_the_nearest_name(demo):
    demo.test("def test_it(synapse_executor): synapse_executor.execute('duoble')\n")

    result = demo.pytest()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E *ActionNotFoundError: there is no action 'duoble' in *Did you mean 'double'? Available: double, show_env,*"]
    )


def test_action_defined_in_the_test_needs_no_plugin(project):
    project.test(
        """
        from synapse_runtime.decorators import action

        @action
        def add(params, context):
            return params["a"] + params["b"]

        def test_it(synapse_executor):
            assert synapse_executor.execute(add, {"a": 1, "b": 2}) == 3
        """,
        "test_alone.py",
    )

    project.pytest().assert_outcomes(passed=1)


# plugin_env


def test_environment_merges_three_layers_and_actions_get_the_same(demo):
    demo.test(
        """
        NAMES = ["OUTSIDE", "LEVEL", "SHARED"]

        @pytest.fixture(autouse=True)
        def outside(monkeypatch):
            for name in NAMES:
                monkeypatch.setenv(name, "process")

        def test_process_and_config(plugin_env, synapse_executor):
            assert [plugin_env[name] for name in NAMES] == ["process", "config", "config"]
            seen = synapse_executor.execute("show_env", {"names": NAMES})
            assert seen == {name: [plugin_env[name], plugin_env[name]] for name in NAMES}

        @pytest.mark.synapse(env={"SHARED": "marker", "COUNT": 3})
        def test_marker(plugin_env, synapse_executor):
            assert [plugin_env[name] for name in NAMES] == ["process", "config", "marker"]
            assert plugin_env.get_int("COUNT") == 3
            seen = synapse_executor.execute("show_env", {"names": [*NAMES, "COUNT"]})
            assert seen["SHARED"] == ["marker", "marker"]
            assert seen["COUNT"] == [3, "3"]

        def test_put_back(plugin_env):
            import os
            assert [os.environ[name] for name in NAMES] == ["process"] * 3
            assert "COUNT" not in os.environ and "COUNT" not in plugin_env
        """
    )

    demo.pytest().assert_outcomes(passed=3)


def test_environment_without_a_plugin_merges_process_and_marker(project):
    project.test(
        """
        @pytest.mark.synapse(env={"GIVEN": "marker"})
        def test_it(plugin_env):
            assert plugin_env.get_str("GIVEN") == "marker"
            assert plugin_env.get_str("PATH")
        """,
        "test_alone.py",
    )

    project.pytest().assert_outcomes(passed=1)


def test_override_may_derive_variables_from_those_of_the_process(demo):
    demo.write(
        "demo/tests/conftest.py",
        """
        import pytest

        @pytest.fixture
        def plugin_env(plugin_env):
            return {
                **plugin_env,
                "SHARED": plugin_env["OUTSIDE"],
                "JOINED": plugin_env["OUTSIDE"] + "/joined",
                "TYPED": plugin_env.get_str("OUTSIDE"),
                "SHORT": plugin_env["DIGIT"],
            }
        """,
    )
    demo.test(
        """
        @pytest.fixture(autouse=True)
        def outside(monkeypatch):
            monkeypatch.setenv("OUTSIDE", "process")
            monkeypatch.setenv("DIGIT", "1")

        def test_it(synapse_executor):
            call = synapse_executor.call("show_env", {})
            assert {name: call.env[name] for name in ("SHARED", "JOINED", "TYPED", "SHORT")} == {
                "SHARED": "process", "JOINED": "process/joined", "TYPED": "process", "SHORT": "1"
            }
            assert not {"OUTSIDE", "DIGIT", "PATH"} & set(call.env)
        """
    )

    demo.pytest().assert_outcomes(passed=1)


def test_conftest_can_override_the_environment_and_the_marker_still_wins(demo):
    demo.write(
        "demo/tests/conftest.py",
        """
        import pytest

        @pytest.fixture
        def plugin_env():
            return {"LEVEL": "conftest", "SHARED": "conftest"}
        """,
    )
    demo.test(
        """
        @pytest.mark.synapse(env={"SHARED": "marker"})
        def test_it(synapse_executor):
            seen = synapse_executor.execute("show_env", {"names": ["LEVEL", "SHARED"]})
            assert seen == {"LEVEL": ["conftest", "conftest"], "SHARED": ["marker", "marker"]}
        """
    )

    demo.pytest().assert_outcomes(passed=1)


def test_override_derived_from_plugin_env_does_not_pass_on_process_variables(demo):
    demo.write(
        "demo/tests/conftest.py",
        """
        import os
        import pytest
        from synapse_runtime.environment import PluginEnvironment

        @pytest.fixture
        def plugin_env(plugin_env):
            assert plugin_env.get_str("HOME") == os.environ["HOME"]
            return PluginEnvironment.merge(plugin_env, {"MORE": "conftest", "WANTED": os.environ["HOME"]})
        """,
    )
    demo.test(
        """
        import os

        def test_it(synapse_executor):
            assert synapse_executor.call("double").env == {
                "LEVEL": "config", "SHARED": "config", "MORE": "conftest", "WANTED": os.environ["HOME"]
            }
        """
    )

    demo.pytest().assert_outcomes(passed=1)


def test_environment_value_used_as_a_param_is_a_plain_str(demo):
    demo.test(
        """
        from synapse_runtime.decorators import action

        @action
        def kind(params, context):
            return type(params["value"]).__name__

        def test_it(synapse_executor, plugin_env):
            assert synapse_executor.execute(kind, {"value": plugin_env["PATH"]}) == "str"
        """
    )

    demo.pytest().assert_outcomes(passed=1)


# synapse_plugin


def test_plugin_fixture_has_directory_manifest_and_action_names(demo):
    demo.test(
        """
        from pathlib import Path

        def test_it(synapse_plugin):
            assert synapse_plugin.root == Path(__file__).parent.parent
            assert synapse_plugin.manifest.code == "demo"
            assert synapse_plugin.action_names == ("double", "show_env", "nap", "lock")
        """
    )

    demo.pytest().assert_outcomes(passed=1)


def test_missing_plugin_error_says_how_to_set_one(project):
    project.test("def test_it(synapse_plugin): pass\n", "tests/test_alone.py")

    result = project.pytest()

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            f"no plugin found: no plugin's config.yaml in {project.path / 'tests'} or a directory above it; "
            "pass --synapse-plugin or set the ini option synapse_plugin"
        ]
    )


@pytest.mark.parametrize("fixture", ["synapse_plugin", "plugin_env", "synapse_executor"])
def test_broken_config_file_is_reported_once_with_file_and_line(demo, fixture):
    broken = demo.write("demo/config.yaml", "code: demo\nactions:\n  train: {entrypoint: 'a:b'\nenv: {}\n")
    demo.test(f"def test_it({fixture}): pass\n")

    result = demo.pytest("-rN")
    output = result.stdout.str()

    result.assert_outcomes(errors=1)
    assert output.count(f"cannot load the plugin of this test: {broken}:4: invalid YAML: ") == 1
    assert output.count("invalid YAML") == 1
    assert "Traceback" not in output


def test_invalid_config_field_is_reported_with_its_line(demo):
    config = demo.write("demo/config.yaml", "code: demo\nactions:\n  train:\n    entrypoint: 3\n")
    demo.test("def test_it(synapse_plugin): pass\n")

    result = demo.pytest()

    result.stdout.fnmatch_lines([f"cannot load the plugin of this test: {config}:4: actions.train.entrypoint: *"])


# Which plugin is used


def test_default_plugin_is_the_nearest_above_the_test_file(project):
    project.plugin("outer", config="code: outer\n")
    project.plugin("outer/inner", config="code: inner\n")
    named = "def test_it(synapse_plugin): assert synapse_plugin.manifest.code == "
    project.test(f"{named}'outer'\n", "outer/tests/deep/test_outer.py")
    project.test(f"{named}'inner'\n", "outer/inner/test_inner.py")

    project.pytest().assert_outcomes(passed=2)


def test_config_file_of_something_else_is_skipped(project):
    named_plugin(project, "demo", "demo")
    project.write("demo/tests/config.yaml", "logging:\n  level: info\n  actions: [a]\n")
    project.test(asks_for("demo"))

    project.pytest().assert_outcomes(passed=1)


def test_option_sets_the_plugin(project):
    named_plugin(project, "demo", "near")
    named_plugin(project, "other", "named")
    project.test(asks_for("named"))

    project.pytest("--synapse-plugin=other").assert_outcomes(passed=1)
    project.pytest("--synapse-plugin=other/config.yaml").assert_outcomes(passed=1)


def test_option_is_relative_to_the_invocation_directory(project, monkeypatch):
    named_plugin(project, "demo", "near")
    named_plugin(project, "other", "named")
    project.test(asks_for("named"))
    monkeypatch.chdir(project.path / "other")

    project.pytest("--synapse-plugin=.", "../demo").assert_outcomes(passed=1)


def test_ini_option_sets_the_plugin_relative_to_the_ini_file(project, monkeypatch):
    named_plugin(project, "demo", "near")
    named_plugin(project, "other", "named")
    project.ini("synapse_plugin = other\n")
    project.test(asks_for("named"))
    monkeypatch.chdir(project.path / "demo" / "tests")

    project.pytest().assert_outcomes(passed=1)


def test_option_overrides_the_ini_option(project):
    named_plugin(project, "demo", "by option")
    named_plugin(project, "other", "by ini")
    project.ini("synapse_plugin = other\n")
    project.test(asks_for("by option"))

    project.pytest("--synapse-plugin=demo").assert_outcomes(passed=1)


def test_nonexistent_plugin_is_one_usage_error(demo):
    demo.test("def test_it(synapse_executor): pass\n")
    expected = "does not exist: pass a directory, config file or module"
    assert f"--synapse-plugin: 'elsewhere/demo' {expected}" in demo.usage_error("--synapse-plugin=elsewhere/demo")
    demo.ini("synapse_plugin = ../nowhere/config.yaml\n")
    assert f"nowhere/config.yaml' {expected}" in demo.usage_error()


def test_nonexistent_module_is_reported_by_its_name(demo):
    demo.test("def test_it(synapse_executor): pass\n")
    result = demo.pytest("--synapse-plugin=no.such_module")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["--synapse-plugin: *no.such_module*"])


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")], ids=" ".join)
def test_plugins_with_the_same_package_name_each_use_their_own(project, order):
    for name in ("one", "two"):
        named_plugin(project, name, name)
        again = asks_for(name).replace("test_it", "test_again")
        project.test(asks_for(name) + again, f"{name}/tests/test_{name}.py")

    project.pytest(*order).assert_outcomes(passed=4)


def test_two_plugins_can_alternate_in_one_test(project):
    named_plugin(project, "one", "one")
    named_plugin(project, "two", "two")
    project.test(
        """
        from synapse_runtime.executors.local import LocalExecutor

        @pytest.mark.parametrize("turn", range(3))
        def test_it(synapse_executor, turn):
            assert synapse_executor.execute("who") == "one"
            assert LocalExecutor(plugin="two").execute("who") == "two"
        """,
        "one/tests/test_turns.py",
    )

    project.pytest().assert_outcomes(passed=3)


def test_tests_and_conftest_can_import_the_plugins_modules(demo):
    demo.write("demo/tests/conftest.py", "from plugin.actions import Double\n")
    demo.test("from plugin.actions import Double\ndef test_it(): pass\n")

    demo.pytest().assert_outcomes(passed=1)
    demo.pytest("demo/tests/test_it.py::test_it").assert_outcomes(passed=1)
    demo.ini("testpaths = demo/tests\n")
    demo.pytest().assert_outcomes(passed=1)


# strict local mode


def test_strict_local_mode_rejects_a_result_that_cannot_be_pickled(demo):
    demo.test("def test_it(synapse_executor): synapse_executor.execute('lock')\n")

    result = demo.pytest()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(['E *ResultNotSerializable: result?"model"? cannot be sent between processes: *'])


def test_strict_local_mode_rejects_params_that_cannot_be_pickled(demo):
    demo.test(
        """
        import threading

        def test_it(synapse_executor):
            synapse_executor.execute("show_env", {"names": [], "lock": threading.Lock()})
        """
    )

    result = demo.pytest()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(['E *ResultNotSerializable: params?"lock"? cannot be sent between processes: *'])


def test_strict_mode_returns_a_copy_of_the_same_type(demo):
    demo.test(
        """
        from synapse_runtime.decorators import action

        class Kept(list): pass
        KEPT = Kept([1])

        @action
        def give(params, context):
            params["more"].append(2)
            return KEPT

        def test_it(synapse_executor):
            params = {"more": [1]}
            result = synapse_executor.execute(give, params)
            assert type(result) is Kept and result == KEPT and result is not KEPT
            assert params == {"more": [1]}
        """
    )

    demo.pytest().assert_outcomes(passed=1)


def test_strict_mode_can_be_turned_off(demo):
    demo.ini("synapse_strict = false\n")
    demo.test("def test_it(synapse_executor): assert synapse_executor.execute('lock')['model'].acquire()\n")

    demo.pytest().assert_outcomes(passed=1)


# time limits


def test_marker_timeout_overrides_option_and_option_overrides_ini(demo):
    demo.ini("synapse_timeout = 0.3\n")
    demo.test(
        """
        import time
        from synapse_runtime.errors import ExecutionTimeout

        @pytest.mark.synapse(timeout=0.1)
        def test_marker(synapse_executor):
            started = time.monotonic()
            with pytest.raises(ExecutionTimeout, match="nap exceeded its timeout of 0.1 s") as caught:
                synapse_executor.execute("nap", {"seconds": 10})
            assert time.monotonic() - started < 2
            assert 'time.sleep(params["seconds"])' in caught.value.details
            assert synapse_executor.execute("double") == 2

        @pytest.mark.synapse(timeout=5)
        def test_longer(synapse_executor):
            assert synapse_executor.execute("nap", {"seconds": 0.3}) == "slept"

        def test_unmarked(synapse_executor, request):
            limit = request.config.getoption("synapse_timeout") or 0.3
            with pytest.raises(ExecutionTimeout, match=f"its timeout of {limit:g} s"):
                synapse_executor.execute("nap", {"seconds": 10})

        def test_call(synapse_executor):
            with pytest.raises(ExecutionTimeout, match="its timeout of 0.15 s"):
                synapse_executor.execute("nap", {"seconds": 10}, timeout=0.15)
        """
    )

    demo.pytest().assert_outcomes(passed=4)
    demo.pytest("--synapse-timeout=0.2").assert_outcomes(passed=4)


def test_timeout_report_shows_where_the_action_was_stuck(demo):
    demo.test(
        """
        @pytest.mark.synapse(timeout=0.1)
        def test_it(synapse_executor):
            synapse_executor.execute("nap", {"seconds": 10})
        """
    )

    result = demo.pytest()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E *ExecutionTimeout: nap exceeded its timeout of 0.1 s",
            "E *Stack of the action:",
            '*time.sleep(params?"seconds"?)*',
        ]
    )

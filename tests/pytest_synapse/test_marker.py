"""The marker: its arguments, its errors, how markers on class and module are merged, and the resulting ids."""

from __future__ import annotations

import pytest

from tests.pytest_synapse.conftest import Project

NOWHERE = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("modes='local'", "unknown argument 'modes', did you mean 'mode'"),
        ("num_cpu=1", "unknown argument 'num_cpu', did you mean 'num_cpus'"),
        (
            "tries=3",
            "unknown argument 'tries'; expected mode, env, timeout, num_cpus, num_gpus, memory, resources, iso",
        ),
        ("mode='tsak'", "unknown mode 'tsak', did you mean 'task'"),
        ("mode=('local', 'jbo')", "unknown mode 'jbo', did you mean 'job'"),
        ("mode=()", "no mode given"),
        ("mode=3", "mode must be a string or a tuple of them, not 3"),
        ("mode=('local', 3)", "a mode is a string, not 3"),
        ("env=['A=secret']", "env must be a dict, not a list"),
        ("env={'A=secret': ''}", "'A=…' in env is not a valid variable name"),
        ("env={1: 'a'}", "1 in env is not a valid variable name"),
        ("timeout='5'", "timeout must be a positive number of seconds, not '5'"),
        ("timeout=0", "timeout must be a positive number of seconds, not 0"),
        ("timeout=True", "timeout must be a positive number of seconds, not True"),
        ("timeout=float('nan')", "timeout must be a positive number of seconds, not nan"),
        ("timeout=float('inf')", "timeout must be a positive number of seconds, at most 31,536,000, not inf"),
        ("timeout=1e12", "timeout must be a positive number of seconds, at most 31,536,000, not 1000000000000.0"),
        ("num_cpus=-1", "num_cpus must be a positive number, not -1"),
        ("num_gpus=True", "num_gpus must be a positive number, not True"),
        (
            "memory='2 potatoes'",
            "memory must be a number of bytes, or text such as '2GB' or '512MiB', not '2 potatoes'",
        ),
        ("memory=0", "memory must be a number of bytes, or text such as '2GB' or '512MiB', not 0"),
        ("resources=['tpu']", "resources must be a dict of names and numbers, not ['tpu']"),
        ("resources={'GPU': 1}", "resources cannot contain 'GPU': use num_gpus"),
        ("resources={'tpu': '1'}", "resources['tpu'] must be a non-negative number, not '1'"),
        ("isolation='frsh'", "isolation must be 'shared' or 'fresh', not 'frsh'"),
        ("'task'", "pass arguments by name, such as mode='task'"),
    ],
    ids=lambda value: value if "=" in value or value == "'task'" else "",
)
def test_invalid_marker_is_a_usage_error_naming_the_test_and_no_test_runs(project: Project, arguments, message):
    project.test(
        f"""
        def test_first():
            open("has_run", "w").close()

        class TestMarked:
            @pytest.mark.synapse({arguments})
            def test_it(self, synapse_executor): pass
        """,
        "test_marked.py",
    )

    error = project.usage_error()

    assert "test_marked.py::TestMarked::test_it: @pytest.mark.synapse" in error
    assert message in error
    assert "secret" not in error
    assert not (project.path / "has_run").exists()


def test_invalid_marker_is_rejected_even_if_the_test_uses_no_executor(project):
    project.test("@pytest.mark.synapse(modes='local')\ndef test_it(): pass\n", "test_marked.py")

    assert "did you mean 'mode'" in project.usage_error()


def test_invalid_marker_is_reported_by_xdist_workers_too(project):
    project.test("@pytest.mark.synapse(modes='local')\ndef test_it(): pass\n", "test_marked.py")

    result = project.pytest("-n", "1")
    assert result.ret not in {pytest.ExitCode.OK, pytest.ExitCode.INTERNAL_ERROR}
    result.stdout.fnmatch_lines(["test_marked.py::test_it: @pytest.mark.synapse: unknown argument 'modes', did you*"])


def test_marker_is_registered(project):
    project.test("@pytest.mark.synapse(mode='local')\ndef test_it(): pass\n", "test_marked.py")

    project.pytest("--strict-markers").assert_outcomes(passed=1)


def test_nearest_of_function_class_and_module_wins_and_env_is_merged(demo):
    demo.test(
        """
        pytestmark = pytest.mark.synapse(mode="job", env={"A": "module", "B": "module", "C": "module"})
        NAMES = {"names": ["A", "B", "C"]}

        def values(executor):
            return [given for given, _ in executor.execute("show_env", NAMES).values()]

        @pytest.mark.synapse(mode="local", env={"B": "class", "C": "class"})
        class TestMarked:
            def test_class(self, synapse_mode, synapse_executor):
                assert synapse_mode == "local"
                assert values(synapse_executor) == ["module", "class", "class"]

            @pytest.mark.synapse(env={"C": "function"})
            def test_function(self, synapse_mode, synapse_executor):
                assert synapse_mode == "local"
                assert values(synapse_executor) == ["module", "class", "function"]

            @pytest.mark.synapse(mode="task")
            def test_mode_of_function(self, synapse_mode):
                assert synapse_mode == "task"

        @pytest.mark.synapse(env={"C": "nearer"})
        @pytest.mark.synapse(mode="local", env={"B": "farther", "C": "farther"})
        def test_two_on_one_function(synapse_executor):
            assert values(synapse_executor) == ["module", "farther", "farther"]

        def test_module(synapse_mode):
            assert synapse_mode == "job"
        """
    )

    demo.pytest(f"--synapse-ray-address={NOWHERE}").assert_outcomes(passed=5)


def test_none_in_a_marker_leaves_the_argument_unset(demo):
    demo.test(
        """
        @pytest.mark.synapse(mode="local", timeout=0.2)
        class TestMarked:
            @pytest.mark.synapse(mode=None, timeout=None, env=None, num_cpus=None, num_gpus=None)
            def test_it(self, synapse_mode, synapse_executor):
                assert synapse_mode == "local"
                with pytest.raises(Exception, match="exceeded its timeout of 0.2 s"):
                    synapse_executor.execute("nap", {"seconds": 5})
        """
    )

    demo.pytest().assert_outcomes(passed=1)


def test_ids_contain_the_mode_if_a_marker_sets_several(project):
    project.test(
        """
        @pytest.mark.synapse(mode=("local", "task"))
        def test_tuple(synapse_mode): pass

        @pytest.mark.synapse(mode=["task", "job"])
        def test_list(synapse_executor): pass

        @pytest.mark.synapse(mode="all")
        def test_all(synapse_mode): pass

        @pytest.mark.synapse(mode="task")
        def test_one(synapse_executor): pass

        def test_unmarked(synapse_executor): pass

        @pytest.mark.synapse(mode="all")
        def test_without_executor(): pass
        """,
        "test_marked.py",
    )

    assert sorted(project.ids()) == [
        "test_all[job]",
        "test_all[local]",
        "test_all[remote]",
        "test_all[task]",
        "test_list[job]",
        "test_list[task]",
        "test_one",
        "test_tuple[local]",
        "test_tuple[task]",
        "test_unmarked",
        "test_without_executor",
    ]


def test_tests_are_grouped_by_mode(project):
    project.test("def test_a(synapse_mode): pass\ndef test_b(synapse_mode): pass\n", "test_one.py")
    project.test("def test_c(synapse_mode): pass\n", "test_two.py")

    assert project.ids("--synapse-mode=local,task") == [
        "test_a[local]",
        "test_b[local]",
        "test_c[local]",
        "test_a[task]",
        "test_b[task]",
        "test_c[task]",
    ]


def test_modes_combine_with_parametrize(demo):
    demo.test(
        """
        @pytest.mark.parametrize("number", [1, 2])
        def test_it(synapse_executor, number):
            assert synapse_executor.execute("double", {"number": number}) == 2 * number
        """
    )

    assert demo.ids() == ["test_it[1]", "test_it[2]"]
    assert demo.ids("--synapse-mode=local,task") == [
        "test_it[1-local]",
        "test_it[2-local]",
        "test_it[1-task]",
        "test_it[2-task]",
    ]
    demo.pytest("--synapse-mode=local").assert_outcomes(passed=2)


def test_a_test_can_parametrize_its_own_mode(demo):
    demo.test(
        """
        @pytest.mark.parametrize("synapse_mode", ["local"], indirect=True)
        def test_indirect(synapse_mode, synapse_executor):
            assert synapse_mode == "local"
            assert synapse_executor.run("double").mode == "local"

        @pytest.mark.parametrize("synapse_mode", ["local"])
        def test_direct(synapse_executor):
            assert synapse_executor.run("double").mode == "local"

        @pytest.mark.parametrize(("synapse_mode", "number"), [("local", 1)], indirect=["synapse_mode"])
        def test_names_as_a_tuple(synapse_executor, number): pass

        @pytest.mark.parametrize("number, synapse_mode", [(1, "local")], indirect=["synapse_mode"])
        def test_names_as_text(synapse_executor, number): pass

        @pytest.mark.parametrize(argnames="synapse_mode", argvalues=["local"], indirect=True)
        def test_names_by_keyword(synapse_executor): pass
        """
    )

    result = demo.pytest("--synapse-mode=all", "-v")

    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines_random(
        [
            "*::test_indirect?local? PASSED*",
            "*::test_direct?local? PASSED*",
            "*::test_names_as_a_tuple?local-1? PASSED*",
            "*::test_names_as_text?1-local? PASSED*",
            "*::test_names_by_keyword?local? PASSED*",
        ]
    )


def test_invalid_parametrized_mode_is_a_usage_error_before_any_test_runs(project):
    project.test(
        """
        @pytest.mark.parametrize("synapse_mode", ["local", "tsak"], indirect=True)
        def test_it(synapse_mode):
            open("has_run", "w").close()
        """,
        "test_marked.py",
    )

    error = project.usage_error()

    assert "test_marked.py::test_it[tsak]" in error
    assert "unknown mode 'tsak', did you mean 'task'" in error
    assert not (project.path / "has_run").exists()


SUPPORTS = """
    from pytest_synapse import SynapseTestCase

    def test_anywhere(synapse_executor):
        pass

    @pytest.mark.synapse(supports=("task", "jobs-api"))
    def test_on_a_cluster(synapse_executor):
        pass

    @pytest.mark.synapse(supports="local")
    class TestHere:
        def test_here(self, synapse_executor):
            pass

        @pytest.mark.synapse(mode="local", supports="job")
        def test_forced(self, synapse_executor):
            pass

    class TestCase(SynapseTestCase):
        @pytest.mark.synapse(supports="task")
        def test_case(self):
            pass

    @pytest.mark.synapse(supports="task")
    def test_without_executor():
        pass
    """


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ("local", ["test_anywhere", "TestHere::test_here", "TestHere::test_forced", "test_without_executor"]),
        (
            "task",
            [
                "test_anywhere",
                "test_on_a_cluster",
                "TestHere::test_forced",
                "TestCase::test_case",
                "test_without_executor",
            ],
        ),
        (
            "local,job",
            [
                *("test_anywhere[local]", "test_anywhere[job]", "test_on_a_cluster"),
                *("TestHere::test_here", "TestHere::test_forced", "test_without_executor"),
            ],
        ),
    ],
)
def test_supports_deselects_tests_in_other_modes(demo, modes, expected):
    demo.test(SUPPORTS)
    assert sorted(demo.ids(f"--synapse-mode={modes}", "-p", "no:randomly")) == sorted(expected)


def test_summary_counts_what_is_not_supported(demo):
    demo.test("""
        @pytest.mark.synapse(supports="task")
        @pytest.mark.parametrize("number", [1, 2])
        def test_on_a_cluster(synapse_executor, number):
            pass

        def test_anywhere(synapse_executor):
            assert synapse_executor.execute("double", {"number": 2}) == 4
        """)
    result = demo.pytest()
    result.assert_outcomes(passed=1, deselected=2)
    assert "cluster" not in result.stdout.str().partition("collected")[2].replace("test_on_a_cluster", "")


def test_unknown_mode_in_supports_is_a_usage_error(demo):
    demo.test("""
        @pytest.mark.synapse(supports="tusk")
        def test_it(synapse_executor):
            pass
        """)
    assert "@pytest.mark.synapse(supports=...): unknown mode 'tusk'" in demo.usage_error()


def test_idle_workers_of_the_session_do_not_keep_their_resources_from_other_tests(demo, reached, monkeypatch):
    for name, value in reached.items():
        monkeypatch.setenv(name, value)
    demo.test("""
        ALL = {"num_gpus": 2}  # as many as the cluster has

        @pytest.mark.synapse(**ALL)
        @pytest.mark.parametrize("number", [1, 2])
        def test_warm(synapse_executor, number):
            pid = synapse_executor.run("double", {"number": number}).pid
            assert test_warm.__dict__.setdefault("pid", pid) == pid

        @pytest.mark.synapse(num_cpus=1, **ALL)
        def test_with_a_cpu(synapse_executor):
            assert synapse_executor.execute("double", {"number": 2}) == 4

        @pytest.mark.synapse(isolation="fresh", **ALL)
        def test_fresh(synapse_executor):
            assert synapse_executor.execute("double", {"number": 2}) == 4

        @pytest.mark.synapse(**ALL)
        def test_warm_again(synapse_executor):
            assert synapse_executor.execute("double", {"number": 2}) == 4

        @pytest.mark.synapse(mode="job", **ALL)
        def test_job(synapse_executor):
            assert synapse_executor.execute("double", {"number": 2}) == 4
        """)
    demo.pytest("--synapse-mode=task", "-p", "no:randomly").assert_outcomes(passed=6)

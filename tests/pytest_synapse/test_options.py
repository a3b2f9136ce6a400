"""Options: where a session runs its actions, and how it says so."""

from __future__ import annotations

import pytest

from tests.pytest_synapse.conftest import Project

# Nobody listens there. A session that is given it starts no cluster of its own, whatever its mode.
NOWHERE = "127.0.0.1:1"


@pytest.fixture
def where(project: Project) -> Project:
    """A project with one test, which the session's modes apply to."""
    project.test("def test_where(synapse_mode): pass\n", "test_where.py")
    return project


@pytest.mark.parametrize(
    ("options", "modes"),
    [
        (["--synapse-mode=local,task"], ["local", "task"]),
        (["--synapse-mode=task, local"], ["task", "local"]),
        (["--synapse-mode=job", "--synapse-mode=local"], ["job", "local"]),
        (["--synapse-mode=task,local", "--synapse-mode=local,task"], ["task", "local"]),
        (["--synapse-mode=all"], ["local", "task", "job"]),
        (["--synapse-mode=job,all"], ["job", "local", "task"]),
    ],
    ids=" ".join,
)
def test_several_modes_run_the_test_once_in_each_and_its_id_says_which(where, options, modes):
    assert where.ids(*options) == [f"test_where[{mode}]" for mode in modes]


@pytest.mark.parametrize("mode", ["local", "task", "job"])
def test_with_one_mode_the_id_stays_as_it_is(where, mode):
    result = where.pytest("--collect-only", f"--synapse-mode={mode}")

    result.stdout.fnmatch_lines([f"synapse: mode {mode}*", "*<Function test_where>"])


@pytest.mark.parametrize(("word", "nearest"), [("tsak", "task"), ("locla", "local"), ("JOB", "job")])
def test_an_unknown_mode_is_a_usage_error_with_the_nearest_name(where, word, nearest):
    error = where.usage_error(f"--synapse-mode=local,{word}")

    assert f"--synapse-mode: unknown mode {word!r}, did you mean {nearest!r}" in error
    assert "Choose from local, task, job, all" in error


def test_remote_mode_is_refused_as_not_available_yet(where):
    assert "--synapse-mode: remote mode is not available yet" in where.usage_error("--synapse-mode=remote")


def test_a_mode_must_be_given(where):
    assert "--synapse-mode: no mode given" in where.usage_error("--synapse-mode=")


@pytest.mark.parametrize(
    "words", ["local task", "local,task", "\n    local\n    task"], ids=["words", "comma", "lines"]
)
def test_pytest_ini_gives_modes_as_words(where, words):
    where.ini(f"synapse_mode = {words}\n")

    assert where.ids() == ["test_where[local]", "test_where[task]"]


def test_pyproject_gives_modes_as_a_list(where):
    (where.path / "pytest.ini").unlink()
    where.write("pyproject.toml", '[tool.pytest.ini_options]\nsynapse_mode = ["local", "task"]\n')

    assert where.ids() == ["test_where[local]", "test_where[task]"]


def test_the_environment_gives_modes(where, monkeypatch):
    monkeypatch.setenv("SYNAPSE_MODE", "local,task")

    assert where.ids() == ["test_where[local]", "test_where[task]"]


def test_a_wrong_mode_in_an_ini_file_is_told_with_the_file(where):
    where.ini("synapse_mode = tsak\n")

    error = where.usage_error()

    assert f"synapse_mode in {where.path / 'pytest.ini'}" in error
    assert "did you mean 'task'" in error


def test_a_wrong_mode_in_the_environment_is_told_with_the_variable(where, monkeypatch):
    monkeypatch.setenv("SYNAPSE_MODE", "tsak")

    assert "the environment variable SYNAPSE_MODE: unknown mode 'tsak'" in where.usage_error()


def test_the_marker_wins_over_the_option_the_option_over_ini_ini_over_the_environment(project, monkeypatch):
    project.test(
        """
        def test_of_the_session(synapse_mode): print("\\nsession:", synapse_mode)

        @pytest.mark.synapse(mode="job")
        def test_of_the_marker(synapse_mode): print("\\nmarker:", synapse_mode)
        """,
        "test_where.py",
    )

    def modes(*options: str) -> tuple[str, str]:
        lines = project.pytest("-s", f"--synapse-ray-address={NOWHERE}", *options).outlines
        told = dict(line.split(": ") for line in lines if line.startswith(("session: ", "marker: ")))
        return told["session"], told["marker"]

    assert modes() == ("local", "job")
    monkeypatch.setenv("SYNAPSE_MODE", "job")
    assert modes() == ("job", "job")
    project.ini("synapse_mode = task\n")
    assert modes() == ("task", "job")
    assert modes("--synapse-mode=local") == ("local", "job")


def test_in_local_mode_the_header_says_no_more_than_that(where):
    assert where.header() == "synapse: mode local"


def test_the_header_says_that_a_cluster_will_be_started(where):
    assert where.header("--synapse-mode=all") == (
        "synapse: mode local, task, job; cluster: ephemeral, started on first need"
    )


def test_the_header_names_the_cluster_and_who_named_it(where, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", NOWHERE)

    assert where.header("--synapse-mode=task") == f"synapse: mode task; cluster: {NOWHERE} (RAY_ADDRESS)"
    assert where.header("--synapse-mode=task", "--synapse-ray-address=10.0.0.1:6379") == (
        "synapse: mode task; cluster: 10.0.0.1:6379 (given)"
    )


def test_a_cluster_that_does_not_answer_fails_the_test_with_its_address(demo):
    demo.test("def test_it(synapse_executor): synapse_executor.execute('double')\n")

    result = demo.pytest("--synapse-mode=task", f"--synapse-ray-address={NOWHERE}")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"E *ClusterError: no cluster answers at {NOWHERE}: *"])


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_wrong_timeout_is_a_usage_error(where, text):
    error = where.usage_error(f"--synapse-timeout={text}")

    assert f"--synapse-timeout: a positive number of seconds is wanted, not {text!r}" in error


def test_a_wrong_timeout_in_an_ini_file_is_a_usage_error(where):
    where.ini("synapse_timeout = soon\n")

    assert "synapse_timeout: a positive number of seconds is wanted, not 'soon'" in where.usage_error()


def test_the_help_tells_of_each_option_with_its_default(project):
    text = " ".join(project.pytest("--help").stdout.str().split())

    assert "--synapse-mode=MODE[,MODE...] where actions run: local, task, job, several of them, or all" in text
    assert "Default: the ini option synapse_mode, the environment variable SYNAPSE_MODE, else local." in text
    assert "--synapse-plugin=PATH the plugin under test: its directory, config file or module name" in text
    assert "else the nearest config.yaml above each test file." in text
    assert "--synapse-ray-address=ADDRESS the cluster for task and job mode" in text
    assert (
        "Default: RAY_ADDRESS, else the warm cluster of `synapse cluster up`, else an ephemeral one on this machine."
        in text
    )
    assert "--synapse-timeout=SECONDS how long an action may take" in text
    assert "--synapse-durations=N show the N slowest runs of actions in the summary, 0 for all" in text
    for option in (
        "synapse_mode (args)",
        "synapse_plugin (string)",
        "synapse_timeout (string)",
        "synapse_durations (string)",
        "synapse_strict (bool)",
    ):
        assert option in text


def test_the_list_of_markers_teaches_the_marker(project):
    (text,) = (line for line in project.pytest("--markers").outlines if line.startswith("@pytest.mark.synapse("))

    for argument in ("mode", "env", "timeout", "num_cpus", "num_gpus"):
        assert f"{argument}=None" in text
        assert f"{argument}: " in text or f"{argument}, " in text
    for phrase in ("'local'", "'task'", "'job'", "seconds", "a dict of variables", "the nearest wins, env is merged"):
        assert phrase in text


def test_the_list_of_fixtures_teaches_each_of_them(project):
    lines = project.pytest("--fixtures", "-v").stdout.str()
    text = " ".join(lines.split())

    for name in ("synapse_executor", "synapse_mode", "synapse_plugin", "plugin_env"):
        assert f"\n{name} -- " in lines
    assert "synapse_executor.execute(action, params) returns the action's result" in text
    assert "synapse_executor.run(action, params) returns the ActionRun" in text
    assert "An action is a class, an @action function, an entrypoint 'module:Name', or an action's name" in text
    assert "The mode this test runs in: 'local', 'task' or 'job'." in text
    assert "else the nearest config.yaml above the test file" in text
    assert "plugin_env.get_int('BATCH_SIZE')" in text
    assert "this process's variables, 'env' of config.yaml, env= of @pytest.mark.synapse" in text

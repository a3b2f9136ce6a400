"""Options: where a session runs its actions, and how this is shown."""

from __future__ import annotations

import pytest

from tests.pytest_synapse.conftest import Project

# No server listens there. A session with this address starts no cluster of its own in any mode.
NOWHERE = "127.0.0.1:1"


@pytest.fixture
def where(project: Project) -> Project:
    """A project with one test, which runs in the modes of the session."""
    project.test("def test_where(synapse_mode): pass\n", "test_where.py")
    return project


@pytest.mark.parametrize(
    ("options", "modes"),
    [
        (["--synapse-mode=local,task"], ["local", "task"]),
        (["--synapse-mode=task, local"], ["task", "local"]),
        (["--synapse-mode=job", "--synapse-mode=local"], ["job", "local"]),
        (["--synapse-mode=task,local", "--synapse-mode=local,task"], ["task", "local"]),
        (["--synapse-mode=all"], ["local", "task", "job", "remote"]),
        (["--synapse-mode=job,all"], ["job", "local", "task", "remote"]),
    ],
    ids=" ".join,
)
def test_several_modes_run_a_test_once_in_each_with_the_mode_in_its_id(where, options, modes):
    assert where.ids(*options) == [f"test_where[{mode}]" for mode in modes]


@pytest.mark.parametrize("mode", ["local", "task", "job"])
def test_one_mode_does_not_change_the_id(where, mode):
    result = where.pytest("--collect-only", f"--synapse-mode={mode}")

    result.stdout.fnmatch_lines([f"synapse: mode {mode}*", "*<Function test_where>"])


@pytest.mark.parametrize(("word", "nearest"), [("tsak", "task"), ("locla", "local"), ("JOB", "job")])
def test_unknown_mode_is_a_usage_error_that_suggests_the_nearest(where, word, nearest):
    error = where.usage_error(f"--synapse-mode=local,{word}")

    assert f"--synapse-mode: unknown mode {word!r}, did you mean {nearest!r}" in error
    assert "Choose from local, task, job, remote, all" in error


def test_empty_mode_is_a_usage_error(where):
    assert "--synapse-mode: no mode given" in where.usage_error("--synapse-mode=")


@pytest.mark.parametrize(
    "words", ["local task", "local,task", "\n    local\n    task"], ids=["words", "comma", "lines"]
)
def test_pytest_ini_sets_modes_as_words(where, words):
    where.ini(f"synapse_mode = {words}\n")

    assert where.ids() == ["test_where[local]", "test_where[task]"]


def test_pyproject_sets_modes_as_a_list(where):
    (where.path / "pytest.ini").unlink()
    where.write("pyproject.toml", '[tool.pytest.ini_options]\nsynapse_mode = ["local", "task"]\n')

    assert where.ids() == ["test_where[local]", "test_where[task]"]


def test_environment_variable_sets_modes(where, monkeypatch):
    monkeypatch.setenv("SYNAPSE_MODE", "local,task")

    assert where.ids() == ["test_where[local]", "test_where[task]"]


def test_invalid_mode_in_an_ini_file_is_reported_with_the_file(where):
    where.ini("synapse_mode = tsak\n")

    error = where.usage_error()

    assert f"synapse_mode in {where.path / 'pytest.ini'}" in error
    assert "did you mean 'task'" in error


def test_invalid_mode_in_the_environment_is_reported_with_the_variable(where, monkeypatch):
    monkeypatch.setenv("SYNAPSE_MODE", "tsak")

    assert "the environment variable SYNAPSE_MODE: unknown mode 'tsak'" in where.usage_error()


def test_marker_overrides_option_overrides_ini_overrides_environment(project, monkeypatch):
    project.test(
        """
        def test_session_mode(synapse_mode): print("\\nsession:", synapse_mode)

        @pytest.mark.synapse(mode="job")
        def test_marker_mode(synapse_mode): print("\\nmarker:", synapse_mode)
        """,
        "test_where.py",
    )

    def modes(*options: str) -> tuple[str, str]:
        lines = project.pytest("-s", f"--synapse-ray-address={NOWHERE}", *options).outlines
        shown = dict(line.split(": ") for line in lines if line.startswith(("session: ", "marker: ")))
        return shown["session"], shown["marker"]

    assert modes() == ("local", "job")
    monkeypatch.setenv("SYNAPSE_MODE", "job")
    assert modes() == ("job", "job")
    project.ini("synapse_mode = task\n")
    assert modes() == ("task", "job")
    assert modes("--synapse-mode=local") == ("local", "job")


def test_header_in_local_mode_shows_the_mode_only(where):
    assert where.header() == "synapse: mode local"


def test_header_shows_that_a_cluster_will_be_started(where):
    assert where.header("--synapse-mode=all") == (
        "synapse: mode local, task, job, remote; cluster: ephemeral, started when first needed; backend: started for "
        "this run"
    )


def test_header_shows_the_cluster_and_where_its_address_is_set(where, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", NOWHERE)

    assert where.header("--synapse-mode=task") == f"synapse: mode task; cluster: {NOWHERE} (RAY_ADDRESS)"
    assert where.header("--synapse-mode=task", "--synapse-ray-address=10.0.0.1:6379") == (
        "synapse: mode task; cluster: 10.0.0.1:6379 (given)"
    )


def test_unreachable_cluster_fails_the_test_with_its_address(demo):
    demo.test("def test_it(synapse_executor): synapse_executor.execute('double')\n")

    result = demo.pytest("--synapse-mode=task", f"--synapse-ray-address={NOWHERE}")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"E *ClusterError: no cluster answers at {NOWHERE}: *"])


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf", "1e12"])
def test_invalid_timeout_is_a_usage_error(where, text):
    error = where.usage_error(f"--synapse-timeout={text}")

    assert "--synapse-timeout: expected a positive number of seconds" in error
    assert f", got {text!r}" in error


@pytest.mark.parametrize("text", ["soon", "inf", "1e12"])
def test_invalid_timeout_in_an_ini_file_is_a_usage_error(where, text):
    where.ini(f"synapse_timeout = {text}\n")

    error = where.usage_error()
    assert "synapse_timeout: expected a positive number of seconds" in error
    assert f", got {text!r}" in error


def test_help_describes_each_option_and_its_default(project):
    text = " ".join(project.pytest("--help").stdout.str().split())

    assert (
        "--synapse-mode=MODE[,MODE...] Run actions in these modes: local, task, job, remote, or all; each test runs"
        in text
    )
    assert "Default: the ini option synapse_mode, the environment variable SYNAPSE_MODE, else local." in text
    assert "--synapse-plugin=PATH Test this plugin: a directory, config file or module name" in text
    assert "else the nearest config.yaml above each test file." in text
    assert "--synapse-ray-address=ADDRESS Use this cluster in task and job mode" in text
    assert (
        "Default: RAY_ADDRESS, else the warm cluster of `synapse cluster up`, else an ephemeral one on this machine."
        in text
    )
    assert "--synapse-timeout=SECONDS Stop an action after SECONDS" in text
    assert "--synapse-durations=N Show the N slowest runs of actions in the summary, 0 for all" in text
    assert "--synapse-host=URL Use this backend in remote mode. Default: the ini option synapse_host, else one" in text
    assert "--synapse-token-file=PATH Read its access token from this file." in text
    for option in (
        "synapse_host (string)",
        "synapse_token_file (string)",
        "synapse_remote_strict (bool)",
        "synapse_mode (args)",
        "synapse_plugin (string)",
        "synapse_timeout (string)",
        "synapse_durations (string)",
        "synapse_strict (bool)",
    ):
        assert option in text


def test_markers_list_describes_the_marker(project):
    (text,) = (line for line in project.pytest("--markers").outlines if line.startswith("@pytest.mark.synapse("))

    for argument in ("mode", "env", "timeout", "num_cpus", "num_gpus"):
        assert f"{argument}=None" in text
        assert f"{argument}: " in text or f"{argument}, " in text
    for phrase in ("'local'", "'task'", "'job'", "seconds", "a dict of variables", "the nearest wins, env is merged"):
        assert phrase in text


def test_fixtures_list_describes_each_fixture(project):
    lines = project.pytest("--fixtures", "-v").stdout.str()
    text = " ".join(lines.split())

    for name in ("synapse_executor", "synapse_mode", "synapse_plugin", "plugin_env"):
        assert f"\n{name} -- " in lines
    assert "synapse_executor.execute(action, params) returns the action's result" in text
    assert "synapse_executor.run(action, params) returns the ActionRun" in text
    assert "An action is a class, an @action function, an entrypoint 'module:Name', or an action's name" in text
    assert "The mode this test runs in: 'local', 'task', 'job' or 'remote'." in text
    assert "Default: the nearest config.yaml above the test file." in text
    assert "plugin_env.get_int('BATCH_SIZE')" in text
    assert "this process's variables, 'env' of config.yaml, env= of @pytest.mark.synapse" in text


@pytest.mark.parametrize("how", ["option", "ini"])
def test_masked_names_are_those_of_the_option_or_the_ini_file(project, how):
    project.test(
        """
        def test_it():
            from synapse_runtime.redaction import masked_names
            assert masked_names() == ("CUSTOMER", "PIN")
        """,
        "test_alone.py",
    )
    if how == "ini":
        project.write("pytest.ini", "[pytest]\nsynapse_mask = PIN CUSTOMER\n")
        result = project.pytest()
    else:
        result = project.pytest("--synapse-mask=PIN, CUSTOMER,")
    result.assert_outcomes(passed=1)

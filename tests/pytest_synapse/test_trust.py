"""A config file that others could have written runs no code, and a session without a plugin is not changed."""

from __future__ import annotations

import pytest

from tests.pytest_synapse.conftest import Project


@pytest.fixture
def untrusted(project: Project) -> Project:
    """A plugin that others may write to, with a module in place of an installed package, and a test below it."""
    project.write("shared/config.yaml", "code: x\nactions:\n  go: {entrypoint: 'evil:go'}\n")
    project.write("shared/yaml.py", "raise SystemExit('code of another user')\n")
    (project.path / "shared" / "config.yaml").chmod(0o666)
    project.write(
        "shared/mine/test_mine.py",
        """
        import sys

        def test_import_path_and_packages_are_not_changed(request):
            import yaml

            assert "site-packages" in yaml.__file__
            assert str(request.config.rootpath / "shared") not in sys.path
        """,
    )
    return project


def test_untrusted_config_file_is_ignored_with_a_warning(untrusted):
    result = untrusted.pytest("shared/mine")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["*ConfigWarning: */config.yaml is ignored: others may write to the file. If you trust it, add * to the *"]
    )


def test_untrusted_config_file_is_a_usage_error_if_warnings_are_errors(untrusted):
    result = untrusted.pytest("shared/mine", "-W", "error")
    assert result.ret != pytest.ExitCode.OK
    assert "config.yaml is ignored: others may write to the file" in result.stdout.str() + result.stderr.str()
    assert "INTERNALERROR" not in result.stdout.str()


def test_untrusted_plugin_is_used_if_it_is_named_or_allowed(untrusted, monkeypatch):
    (untrusted.path / "shared" / "yaml.py").unlink()
    untrusted.write(
        "shared/mine/test_mine.py",
        "def test_it(synapse_plugin):\n    assert synapse_plugin.manifest.code == 'x'\n",
    )
    untrusted.pytest("shared/mine").assert_outcomes(errors=1, warnings=1)
    untrusted.pytest("shared/mine", "--synapse-plugin=shared").assert_outcomes(passed=1)
    monkeypatch.setenv("SYNAPSE_SAFE_DIRECTORIES", str(untrusted.path / "shared"))
    untrusted.pytest("shared/mine").assert_outcomes(passed=1)


def test_config_file_above_the_root_directory_is_not_found(project):
    project.write("config.yaml", "code: outer\n")
    project.write("inner/pytest.ini", "[pytest]\n")
    project.write("inner/test_inner.py", "def test_it(request):\n    assert not request.config.rootpath.name == 'x'\n")
    project.write(
        "inner/test_plugin.py",
        "def test_it(synapse_plugin):\n    assert synapse_plugin.manifest.code == 'outer'\n",
    )
    result = project.pytest("-c", "inner/pytest.ini", "--rootdir=inner", "inner")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*no plugin found*"])


@pytest.fixture
def no_state(demo: Project, monkeypatch) -> Project:
    """A plugin with a test, in an environment whose state directory cannot be used, not even by root."""
    (demo.path / "state").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(demo.path / "state"))
    demo.test("def test_it(synapse_executor):\n    assert synapse_executor.execute('double') == 2\n")
    return demo


def test_state_directory_that_cannot_be_used_counts_as_no_warm_cluster_with_a_warning(no_state):
    result = no_state.pytest("--synapse-mode=task")

    result.assert_outcomes(passed=1, warnings=1)
    problem = (
        f"{no_state.path}/state/synapse-clusters/*.json, the state of the warm cluster, cannot be used: Not a dir*"
    )
    result.stdout.fnmatch_lines([f"synapse: mode task; cluster: ephemeral, started when first needed ({problem})"])
    result.stdout.fnmatch_lines([f"*ClusterWarning: no warm cluster is used: {problem}"])


def test_cluster_cannot_be_kept_without_a_state_directory(no_state):
    error = no_state.usage_error("--synapse-mode=task", "--synapse-keep-cluster")
    assert error.startswith(f"ERROR: --synapse-keep-cluster: {no_state.path}/state/synapse-clusters, the state of the ")

"""Warnings about unknown fields in a config file."""

from __future__ import annotations

from tests.pytest_synapse.conftest import CONFIG, Project

TESTS = """\
@pytest.mark.parametrize("number", [1, 2])
def test_it(synapse_executor, number):
    assert synapse_executor.execute("double", {"number": number}) == 2 * number
"""


def test_unknown_config_field_warns_once(project: Project) -> None:
    root = project.plugin(config=CONFIG + "evn: {API_KEY: s3cret}\n")
    project.test(TESTS)
    project.test(TESTS, name="demo/tests/test_more.py")
    result = project.pytest()
    result.assert_outcomes(passed=4, warnings=1)
    result.stdout.fnmatch_lines([f"  {root}/config.yaml:8:1: ConfigWarning: unknown field 'evn'; did you mean 'env'?"])
    result.stdout.no_fnmatch_line("*s3cret*")


def test_config_warning_can_be_turned_into_an_error(project: Project) -> None:
    project.plugin(config=CONFIG + "evn: {}\n")
    project.test(TESTS)
    result = project.pytest("-W", "error::synapse_runtime.errors.ConfigWarning", "-x")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E * unknown field 'evn'; did you mean 'env'?"])

"""A plugin written for synapse-sdk runs unchanged where synapse-sdk is not installed: tests/sdk/handwritten."""

import shutil
from pathlib import Path

import pytest

from tests.pytest_synapse.conftest import Project

PLUGIN = Path(__file__).parents[1] / "sdk" / "handwritten"


@pytest.fixture
def handwritten(project: Project) -> Project:
    shutil.copytree(PLUGIN, project.path / "handwritten", ignore=shutil.ignore_patterns("__pycache__"))
    return project


def test_results_equal_those_of_the_sdk(handwritten: Project, reached, monkeypatch):
    for name, value in reached.items():
        monkeypatch.setenv(name, value)
    result = handwritten.pytest("handwritten/tests/test_actions.py", "--synapse-mode=local,task", "-pno:cacheprovider")
    outcomes = result.parseoutcomes()
    assert outcomes == {"passed": outcomes["passed"]}, result.stdout.str()
    assert outcomes["passed"] > 20


def test_sdk_only_features_raise_with_an_install_hint(handwritten: Project):
    handwritten.test(
        """
        from synapse_runtime.errors import ExecutionError

        @pytest.mark.parametrize("action", ["steps", "train"])
        def test_it(action, synapse_executor):
            with pytest.raises(ExecutionError, match="pip install synapse-sdk") as caught:
                synapse_executor.execute(action)
            assert isinstance(caught.value.__cause__, ModuleNotFoundError)
        """,
        "handwritten/tests/test_missing.py",
    )
    handwritten.pytest("handwritten/tests/test_missing.py", "--synapse-mode=local").assert_outcomes(passed=2)

"""Sessions with another Python: tests with the real synapse-sdk beside us or as a client of our server, benchmarks."""

import sys
from pathlib import Path

import nox

nox.options.error_on_missing_interpreters = True
nox.options.download_python = "never"
PROJECT = nox.project.load_toml("pyproject.toml")


@nox.session(python="3.12", venv_backend="uv|virtualenv")
def sdk(session: nox.Session) -> None:
    """Run the tests of plugins written for synapse-sdk, with the SDK installed, in every mode."""
    session.install("--editable", ".[all]", *nox.project.dependency_groups(PROJECT, "sdk"))
    parallel = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    session.run("python", "-m", "pytest", "tests/sdk", "--synapse-mode=all", *parallel, *session.posargs)


@nox.session(python="3.12", venv_backend="uv|virtualenv")
def sdk_remote(session: nox.Session) -> None:
    """Run the tests of our server with the SDK, alone in its environment; the server runs in that of nox."""
    session.install(*(each for each in nox.project.dependency_groups(PROJECT, "sdk") if each.startswith("synapse-sdk")))
    python = str(Path(session.bin, "python"))
    command = (sys.executable, "-m", "pytest", "tests/sdk_remote", *session.posargs)
    session.run(*command, env={"SYNAPSE_SDK_PYTHON": python, "PYTHONPATH": None}, external=True)


@nox.session(python="3.12", venv_backend="uv|virtualenv")
def compare(session: nox.Session) -> None:
    """Run the same benchmarks with this project and synapse-sdk, and write docs/performance/sdk.json."""
    session.install("--editable", ".[all]", *nox.project.dependency_groups(PROJECT, "sdk"))
    session.run("python", "-m", "benchmarks.compare_sdk")

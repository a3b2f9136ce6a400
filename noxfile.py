"""Sessions that need another Python: `nox -s sdk` tests with the real synapse-sdk."""

import nox

nox.options.error_on_missing_interpreters = True
nox.options.download_python = "never"
PROJECT = nox.project.load_toml("pyproject.toml")


@nox.session(python="3.12", venv_backend="uv|virtualenv")
def sdk(session: nox.Session) -> None:
    """Run plugins that were written for synapse-sdk, where it is installed, in every mode."""
    session.install("--editable", ".[all]", *nox.project.dependency_groups(PROJECT, "sdk"))
    parallel = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    session.run("python", "-m", "pytest", "tests/sdk", "--synapse-mode=all", *parallel, *session.posargs)

"""Setup of all tests of this project: `pytester`, working Ctrl-C in child processes, scheduling, and the cluster."""

import os
import signal
import tempfile

import pytest

pytest_plugins = ["pytester", "tests.suite_profile", "tests.quarantine"]

# A process started in the background (`nohup`, `&` in a script) ignores interrupts, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Do not touch the warm cluster of the user who runs these tests. All processes of the run share one directory.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _state = tempfile.TemporaryDirectory(prefix="synapse-tests-")
    os.environ["XDG_STATE_HOME"] = _state.name

# The slowest files are started first, so that no pytest-xdist process runs one of them alone at the end.
_LONGEST = (
    *("ray/test_two_machines.py", "parity/test_coverage.py", "ray/test_resources.py", "cli/test_cluster.py"),
    *("pytest_synapse/test_one_cluster.py", "parity/test_workers.py", "ray/test_addresses.py", "ray/test_cluster.py"),
    *("cli/test_run_ray.py", "pytest_synapse/test_other_plugins.py", "parity/test_reports.py", "cli/test_job.py"),
    *("pytest_synapse/test_modes.py", "pytest_synapse/test_pdb.py", "ray/test_secrets.py", "parity/test_places.py"),
)
# Files whose tests share no expensive fixtures: their tests are scheduled one by one, on any free process.
_ALONE = frozenset(
    {"pytest_synapse/test_one_cluster.py", "pytest_synapse/test_other_plugins.py", "pytest_synapse/test_monorepo.py"}
    | {"ray/test_cluster.py", "cli/test_run_ray.py", "benchmarks/test_command.py"}
)


def _file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0].removeprefix("tests/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slowest files."""
    ranks = {name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get(_file_of(item.nodeid), len(ranks)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Schedule each file on one process, so that its fixtures are created once; but independent tests one by one."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if _file_of(nodeid) in _ALONE else super()._split_scope(nodeid)

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def reached() -> dict[str, str]:
    """Environment variables with which a session or command connects to the cluster of this run, as an existing one."""
    from synapse_runtime.executors.ray.cluster.control_socket import LOOPBACK_ENV
    from synapse_runtime.executors.ray.cluster.resolve import dashboard_of, find_cluster

    cluster = find_cluster(jobs=True)
    dashboard_of(cluster)  # which starts in the background; job mode requires it of an existing cluster
    assert cluster.token is not None
    # With LOOPBACK_ENV, Ray's own programs do not replace the loopback address either.
    return {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token} | LOOPBACK_ENV


@pytest.fixture(scope="session")
def dashboard(reached: dict[str, str]) -> str:
    """The URL of the dashboard of the cluster of this run."""
    from synapse_runtime.executors.ray.cluster.resolve import dashboard_of, find_cluster

    return dashboard_of(find_cluster(jobs=True))

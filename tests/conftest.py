"""What all tests of this project share: `pytester`, to run pytest inside pytest; and Ctrl-C that works in children."""

import os
import signal
import tempfile

import pytest

pytest_plugins = ["pytester", "tests.suite_profile", "tests.quarantine"]

# Whoever starts us in the background (`nohup`, `&` in a script) has interrupts ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A warm cluster of whoever runs these tests is neither used nor touched. One directory for all processes of the run.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _state = tempfile.TemporaryDirectory(prefix="synapse-tests-")
    os.environ["XDG_STATE_HOME"] = _state.name

# The files that take longest, so that no process of pytest-xdist is left alone with one of them at the end.
_LONGEST = (
    *("ray/test_two_machines.py", "parity/test_coverage.py", "ray/test_resources.py", "cli/test_cluster.py"),
    *("pytest_synapse/test_one_cluster.py", "parity/test_workers.py", "ray/test_addresses.py", "ray/test_cluster.py"),
    *("cli/test_run_ray.py", "pytest_synapse/test_other_plugins.py", "parity/test_reports.py", "cli/test_job.py"),
    *("pytest_synapse/test_modes.py", "pytest_synapse/test_pdb.py", "ray/test_secrets.py", "parity/test_places.py"),
)
# Files whose tests share nothing that is expensive to make: each test goes to whichever process has time.
_ALONE = frozenset(
    {"pytest_synapse/test_one_cluster.py", "pytest_synapse/test_other_plugins.py", "pytest_synapse/test_monorepo.py"}
    | {"parity/test_workers.py", "ray/test_cluster.py", "cli/test_run_ray.py", "benchmarks/test_command.py"}
)


def _file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0].removeprefix("tests/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    ranks = {name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get(_file_of(item.nodeid), len(ranks)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Give each file to one process, so that what its tests share is made once; and tests that share nothing to any."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if _file_of(nodeid) in _ALONE else super()._split_scope(nodeid)

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def reached() -> dict[str, str]:
    """Variables by which a session or command finds the cluster of this run, and is let in: to it, somebody else's."""
    from synapse_runtime.executors.ray.cluster.control_socket import LOOPBACK_ENV
    from synapse_runtime.executors.ray.cluster.resolve import find_cluster

    cluster = find_cluster(jobs=True)
    assert cluster.token is not None
    # By LOOPBACK Ray's own programs, too, take the loopback address as it is.
    return {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token} | LOOPBACK_ENV


@pytest.fixture(scope="session")
def dashboard(reached: dict[str, str]) -> str:
    """The URL of that cluster's dashboard."""
    from synapse_runtime.executors.ray.cluster.resolve import dashboard_of, find_cluster

    return dashboard_of(find_cluster(jobs=True))

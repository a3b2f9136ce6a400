"""Resource requests: granted, rejected if no node has enough, waited for while other workers hold them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor
from tests.cli.processes import synapse_in
from tests.patience import patience
from tests.ray.clusters import Running, attempt, holding, ray_cluster, run_python
from tests.ray.conftest import PLUGIN

MODES = pytest.mark.parametrize("mode", ["task", "job"])
GIGABYTE = 1_000_000_000


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Running]:
    """A cluster of two equal nodes, except that the second has a custom resource."""
    node = {"num-cpus": 2, "memory": 2 * GIGABYTE}
    with ray_cluster(node, node | {"resources": json.dumps({"my_chip": 2})}) as running:
        yield running


def address_of(running: Running, mode: str) -> str:
    return running.address if mode == "task" else running.dashboard


@MODES
def test_worker_holds_what_it_requests(two_nodes, mode):
    requested = {"num_cpus": 1, "memory": "1.5GB", "resources": {"my_chip": 0.5}}
    done = attempt(mode, address_of(two_nodes, mode), ("held", {}), **requested)
    assert done.result == {"CPU": 1, "memory": 1.5 * GIGABYTE, "my_chip": 0.5}


@MODES
def test_worker_that_requests_no_cpus_holds_none(two_nodes, mode):
    done = attempt(mode, address_of(two_nodes, mode), ("held", {}), resources={"my_chip": 1})
    assert done.result == {"my_chip": 1}


@MODES
@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ({"num_cpus": 5}, "requested num_cpus=5, but the cluster has 4 CPUs in total (CPU 4, GPU 0)"),
        ({"num_gpus": 0.5}, "requested num_gpus=0.5, but the cluster has no GPUs (CPU 4, GPU 0)"),
        (
            {"memory": "5GB"},
            "requested memory=5.0GB, but the cluster has 4.0GB of memory in total (CPU 4, GPU 0, memory 4.0GB)",
        ),
        (
            {"resources": {"tpu": 1}},
            "requested resources={'tpu': 1}, but the cluster has no tpu (CPU 4, GPU 0, tpu 0)",
        ),
        (
            {"num_cpus": 3},
            "requested num_cpus=3, which a worker needs on one node, but no node of the cluster has that much: "
            "2 × CPU 2, GPU 0",
        ),
        (
            {"num_cpus": 2, "memory": 3 * GIGABYTE, "resources": {"my_chip": 1}},
            "requested num_cpus=2, memory=3.0GB, resources={'my_chip': 1}, which a worker needs on one node, but no "
            "node of the cluster has that much: CPU 2, GPU 0, memory 2.0GB, my_chip 0; CPU 2, GPU 0, memory 2.0GB, "
            "my_chip 2",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_requests_that_no_node_can_satisfy_are_rejected_within_seconds(two_nodes, mode, requested, message):
    done = attempt(mode, address_of(two_nodes, mode), **requested)
    assert done.error == f"ClusterError: {message}"
    assert done.seconds < patience(10)


TESTS = """
import pytest


@pytest.mark.synapse(resources={"my_chip": 1}, memory="500MB")
class TestMarked:
    def test_worker_holds_the_resources_of_the_marker(self, synapse_executor):
        assert synapse_executor.execute("held") == {"my_chip": 1, "memory": 5e8}

    @pytest.mark.synapse(resources={"my_chip": 0.5}, num_cpus=1)
    def test_nearest_marker_wins(self, synapse_executor):
        assert synapse_executor.execute("held") == {"my_chip": 0.5, "memory": 5e8, "CPU": 1}


@pytest.mark.synapse(mode="local", resources={"my_chip": 1}, memory="500MB")
def test_local_mode_ignores_resources(synapse_executor):
    assert synapse_executor.execute("echo", {"value": 1}) == 1
"""


@MODES
def test_marker_requests_resources_for_the_workers_of_its_tests(two_nodes, mode, tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_marked.py").write_text(TESTS)
    options = [f"--synapse-mode={mode}", f"--synapse-ray-address={address_of(two_nodes, mode)}"]
    done = run_python(["-m", "pytest", *options, f"--synapse-plugin={PLUGIN}", str(tmp_path)], **two_nodes.variables)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


@MODES
def test_command_line_requests_resources(two_nodes, mode):
    with synapse_in(PLUGIN) as synapse:
        options = ("--ray-address", address_of(two_nodes, mode), "--mode", mode, "--json")
        requested = ("--cpus", "1", "--memory", "500MB", "--resource", "my_chip=0.5")
        done = synapse.run("held", *options, *requested, **two_nodes.variables)
        assert (done.status, done.result) == (0, {"CPU": 1, "memory": 5e8, "my_chip": 0.5})
        done = synapse.run("held", *options, "--resource", "my_chip=1", "--resource", "tpu=3", **two_nodes.variables)
        assert done.status == 3
        assert "requested resources={'tpu': 3}, but the cluster has no tpu" in done.stderr


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"memory": "2 cups"}, "memory must be a number of bytes, or text such as '2GB' or '512MiB', not '2 cups'"),
        ({"memory": -1}, "memory must be a number of bytes"),
        ({"memory": True}, "memory must be a number of bytes"),
        ({"num_gpus": 1.5}, "num_gpus must be a fraction of one GPU or a whole number, not 1.5"),
        ({"num_cpus": float("nan")}, "num_cpus must be a non-negative number, not nan"),
        ({"resources": {"CPU": 1}}, "resources cannot contain 'CPU': use num_cpus"),
        (
            {"resources": {"object_store_memory": 1}},
            "resources cannot contain 'object_store_memory', which Ray manages itself",
        ),
        ({"resources": {"": 1}}, "the name of a resource must be a non-empty string, not ''"),
        ({"resources": {"tpu": "1"}}, "resources['tpu'] must be a non-negative number, not '1'"),
        ({"resources": [("tpu", 1)]}, "resources must be a dict of names and numbers, not [('tpu', 1)]"),
        ({"timeout": float("inf")}, "timeout must be a positive number of seconds, at most 31,536,000, not inf"),
        ({"resource_timeout": float("nan")}, "resource_timeout must be a number of seconds, 0 or more, not nan"),
        ({"resource_timeout": -1}, "resource_timeout must be a number of seconds, 0 or more, not -1"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("executor_class", [RayActorExecutor, RayJobsApiExecutor])
def test_constructor_rejects_invalid_requests(executor_class, wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        executor_class(plugin=PLUGIN, **wrong)


@pytest.mark.thorough
def test_nodes_are_known_through_ray_client(two_nodes):
    attempt("task", two_nodes.client)  # Ray Client's server may reject the first client, after half a minute
    done = attempt("task", two_nodes.client, num_cpus=3)
    assert "which a worker needs on one node" in done.error
    assert done.seconds < patience(10)


@MODES
def test_waiting_for_held_resources_times_out_with_an_error_that_lists_what_is_available(two_nodes, mode):
    with holding(two_nodes, num_cpus=2, resources={"my_chip": 1.5}):
        done = attempt(mode, address_of(two_nodes, mode), resource_timeout=4, num_cpus=1, resources={"my_chip": 1})
        assert done.error.startswith("ClusterError: no worker could be scheduled on ")
        assert done.error.endswith(
            " within 4 s: requested num_cpus=1, resources={'my_chip': 1}; "
            "available on all nodes together: CPU 2, GPU 0, my_chip 0.5"
        )
        assert done.seconds < patience(15)


@MODES
def test_resources_released_in_time_are_used(two_nodes, mode):
    with holding(two_nodes, seconds=8, num_cpus=2, resources={"my_chip": 2}):
        done = attempt(mode, address_of(two_nodes, mode), resource_timeout=40, resources={"my_chip": 2})
        assert done.result == 1
        assert done.seconds > 3


def test_job_that_timed_out_waiting_never_runs(two_nodes, tmp_path):
    touched = tmp_path / "touched"
    with holding(two_nodes, seconds=60, resources={"my_chip": 2}) as release:
        params = {"touch": str(touched), "seconds": 5}
        done = attempt("job", two_nodes.dashboard, ("sleep", params), resource_timeout=3, resources={"my_chip": 1})
        assert re.search("no worker could be scheduled on .* within 3 s", done.error)
        release()
        assert attempt("job", two_nodes.dashboard, resource_timeout=60, resources={"my_chip": 2}).result == 1
    assert not touched.exists()

"""What calls ask of a cluster: given, refused where no node has it, waited for where others hold it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor
from tests.cli.processes import synapse_in
from tests.patience import patience
from tests.ray.clusters import ROOT, Running, attempt, holding, outer_environment, ray_cluster
from tests.ray.conftest import PLUGIN

MODES = pytest.mark.parametrize("mode", ["task", "job"])
GIGABYTE = 1_000_000_000


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Running]:
    """A cluster of two nodes that look alike, but for a chip that the second has."""
    node = {"num-cpus": 2, "memory": 2 * GIGABYTE}
    with ray_cluster(node, node | {"resources": json.dumps({"my_chip": 2})}) as running:
        yield running


def address_of(running: Running, mode: str) -> str:
    return running.address if mode == "task" else running.dashboard


@MODES
def test_a_worker_holds_what_it_asked_for(two_nodes, mode):
    asked = {"num_cpus": 1, "memory": "1.5GB", "resources": {"my_chip": 0.5}}
    done = attempt(mode, address_of(two_nodes, mode), ("held", {}), **asked)
    assert done.result == {"CPU": 1, "memory": 1.5 * GIGABYTE, "my_chip": 0.5}


@MODES
def test_a_worker_that_asks_for_no_cpus_holds_none(two_nodes, mode):
    done = attempt(mode, address_of(two_nodes, mode), ("held", {}), resources={"my_chip": 1})
    assert done.result == {"my_chip": 1}


@MODES
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_cpus": 5}, "asked for num_cpus=5, but the cluster has 4 CPU in all (CPU 4, GPU 0)"),
        ({"num_gpus": 0.5}, "asked for num_gpus=0.5, but the cluster has 0 GPU in all (CPU 4, GPU 0)"),
        (
            {"memory": "5GB"},
            "asked for memory=5.0GB, but the cluster has 4.0GB memory in all (CPU 4, GPU 0, memory 4.0GB)",
        ),
        (
            {"resources": {"tpu": 1}},
            "asked for resources={'tpu': 1}, but the cluster has 0 tpu in all (CPU 4, GPU 0, tpu 0)",
        ),
        (
            {"num_cpus": 3},
            "asked for num_cpus=3, which a worker needs on one node, but no node of the cluster has that: "
            "2 × CPU 2, GPU 0",
        ),
        (
            {"num_cpus": 2, "memory": 3 * GIGABYTE, "resources": {"my_chip": 1}},
            "asked for num_cpus=2, memory=3.0GB, resources={'my_chip': 1}, which a worker needs on one node, but no "
            "node of the cluster has that: CPU 2, GPU 0, memory 2.0GB, my_chip 0; CPU 2, GPU 0, memory 2.0GB, "
            "my_chip 2",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_no_node_will_ever_give_is_refused_in_seconds(two_nodes, mode, asked, message):
    done = attempt(mode, address_of(two_nodes, mode), **asked)
    assert done.error == f"ClusterError: {message}"
    assert done.seconds < patience(10)


TESTS = """
import pytest


@pytest.mark.synapse(resources={"my_chip": 1}, memory="500MB")
class TestMarked:
    def test_it_holds_what_the_marker_says(self, synapse_executor):
        assert synapse_executor.execute("held") == {"my_chip": 1, "memory": 5e8}

    @pytest.mark.synapse(resources={"my_chip": 0.5}, num_cpus=1)
    def test_the_nearest_marker_wins(self, synapse_executor):
        assert synapse_executor.execute("held") == {"my_chip": 0.5, "memory": 5e8, "CPU": 1}


@pytest.mark.synapse(mode="local", resources={"my_chip": 1}, memory="500MB")
def test_local_mode_has_what_this_machine_has(synapse_executor):
    assert synapse_executor.execute("echo", {"value": 1}) == 1
"""


@MODES
def test_a_marker_asks_for_the_workers_of_its_tests(two_nodes, mode, tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_marked.py").write_text(TESTS)
    options = [f"--synapse-mode={mode}", f"--synapse-ray-address={address_of(two_nodes, mode)}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--synapse-plugin={PLUGIN}", str(tmp_path)],
        env=outer_environment(PYTHONPATH=str(ROOT), **two_nodes.variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience(120),
    )
    assert "3 passed" in done.stdout, done.stdout + done.stderr


@MODES
def test_the_command_line_asks_too(two_nodes, mode):
    with synapse_in(PLUGIN) as synapse:
        options = ("--ray-address", address_of(two_nodes, mode), "--mode", mode, "--json")
        asked = ("--cpus", "1", "--memory", "500MB", "--resource", "my_chip=0.5")
        done = synapse.run("held", *options, *asked, **two_nodes.variables)
        assert (done.status, done.result) == (0, {"CPU": 1, "memory": 5e8, "my_chip": 0.5})
        done = synapse.run("held", *options, "--resource", "my_chip=1", "--resource", "tpu=3", **two_nodes.variables)
        assert done.status == 3
        assert "asked for resources={'tpu': 3}, but the cluster has 0 tpu in all" in done.stderr


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"memory": "2 cups"}, "memory must be a number of bytes, or text such as '2GB' or '512MiB', not '2 cups'"),
        ({"memory": -1}, "memory must be a number of bytes"),
        ({"memory": True}, "memory must be a number of bytes"),
        ({"num_gpus": 1.5}, "num_gpus must be a part of one GPU or whole ones, not 1.5"),
        ({"num_cpus": float("nan")}, "num_cpus must be a number of at least 0, not nan"),
        ({"resources": {"CPU": 1}}, "resources cannot hold 'CPU': use num_cpus"),
        ({"resources": {"object_store_memory": 1}}, "resources cannot hold 'object_store_memory', which is Ray's own"),
        ({"resources": {"": 1}}, "the name of a resource must be a text, not ''"),
        ({"resources": {"tpu": "1"}}, "resources['tpu'] must be a number of at least 0, not '1'"),
        ({"resources": [("tpu", 1)]}, "resources must be a dict of names and numbers, not [('tpu', 1)]"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("executor_class", [RayActorExecutor, RayJobsApiExecutor])
def test_what_cannot_be_asked_is_refused_by_the_constructor(executor_class, wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        executor_class(plugin=PLUGIN, **wrong)


@pytest.mark.thorough
def test_nodes_are_known_through_ray_client_too(two_nodes):
    attempt("task", two_nodes.client)  # its server may refuse the first caller, after half a minute
    done = attempt("task", two_nodes.client, num_cpus=3)
    assert "which a worker needs on one node" in done.error
    assert done.seconds < patience(10)


@MODES
def test_what_others_hold_is_waited_for_for_a_while_then_told_with_what_is_free(two_nodes, mode):
    with holding(two_nodes, num_cpus=2, resources={"my_chip": 1.5}):
        done = attempt(mode, address_of(two_nodes, mode), resource_timeout=4, num_cpus=1, resources={"my_chip": 1})
        assert done.error.endswith(
            " gave no worker within 4 s: asked for num_cpus=1, resources={'my_chip': 1}; "
            "free, on all nodes together, is CPU 2, GPU 0, my_chip 0.5"
        )
        assert done.seconds < patience(15)


@MODES
def test_what_others_give_back_in_time_is_taken(two_nodes, mode):
    with holding(two_nodes, seconds=8, num_cpus=2, resources={"my_chip": 2}):
        done = attempt(mode, address_of(two_nodes, mode), resource_timeout=40, resources={"my_chip": 2})
        assert done.result == 1
        assert done.seconds > 3


def test_a_job_that_was_given_up_never_runs(two_nodes, tmp_path):
    touched = tmp_path / "touched"
    with holding(two_nodes, seconds=60, resources={"my_chip": 2}) as release:
        params = {"touch": str(touched), "seconds": 5}
        done = attempt("job", two_nodes.dashboard, ("sleep", params), resource_timeout=3, resources={"my_chip": 1})
        assert "gave no worker within 3 s" in done.error
        release()
        assert attempt("job", two_nodes.dashboard, resource_timeout=60, resources={"my_chip": 2}).result == 1
    assert not touched.exists()

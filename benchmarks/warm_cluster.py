"""A small test in task mode on a warm cluster, against what Ray itself takes to connect there and call an actor.

Run as `python benchmarks/warm_cluster.py [RUNS]`. It starts a warm cluster of its own and ends it. Each run takes one
measurement of each kind, in turn, so that a busy machine slows all of them; medians count.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "example_plugin"
SYNAPSE = [sys.executable, "-m", "synapse_runtime"]
SMALLEST = "tests/test_evaluate.py::test_missing_weights_are_told_with_their_path"
# What a plain program has to do: import Ray, connect to the cluster, make an actor and call it.
CONNECT = """
import sys
from synapse_runtime.executors.ray.door import Door
from pathlib import Path
with Door(Path(sys.argv[1])) as door:
    facts = door.ask("cluster")
import os
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": facts["token"], "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
import ray
ray.init(facts["address"], namespace="plain", log_to_driver=False, logging_level="error")

@ray.remote
class Echo:
    def echo(self, value):
        return value

assert ray.get(Echo.remote().echo.remote(1)) == 1
"""


def main() -> None:
    """Measure and print."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as state:
        # Whatever other plugins of pytest are installed here, they are not what is measured.
        env = {**os.environ, "XDG_STATE_HOME": state, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        subprocess.run([*SYNAPSE, "cluster", "up"], env=env, check=True, capture_output=True)
        try:
            status = subprocess.run([*SYNAPSE, "cluster", "status", "--json"], env=env, check=True, capture_output=True)
            directory = json.loads(status.stdout)["directory"]
            pytest = [sys.executable, "-m", "pytest", "-q", "-p", "pytest_synapse.plugin", SMALLEST]
            kinds = {
                "Ray: import, connect, call an actor": [sys.executable, "-c", CONNECT, directory],
                "pytest, local mode": [*pytest, "--synapse-mode=local"],
                "pytest, task mode, warm cluster": [*pytest, "--synapse-mode=task"],
            }
            taken: dict[str, list[float]] = {name: [] for name in kinds}
            for _ in range(runs + 1):  # the first finds cold caches
                for name, command in kinds.items():
                    taken[name].append(_seconds(command, env))
        finally:
            subprocess.run([*SYNAPSE, "cluster", "down"], env=env, check=True, capture_output=True)
    medians = {name: statistics.median(times[1:]) for name, times in taken.items()}
    for name, median in medians.items():
        print(f"{name:<40} {median:6.2f} s")
    ray, local, task = medians.values()
    print(f"{'task mode over Ray alone':<40} {task - ray:+6.2f} s   goal: at most +1.00 s")
    print(f"{'task mode / (Ray + pytest local)':<40} {task / (ray + local):6.2f} x   goal: at most 1.20 x")


def _seconds(command: list[str], env: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=EXAMPLE, env=env, check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

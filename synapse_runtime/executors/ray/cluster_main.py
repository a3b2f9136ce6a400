"""The process that owns an ephemeral cluster. It ends, and the cluster with it, when its owner does.

Started as `python -m synapse_runtime.executors.ray.cluster_main OPTIONS`, with the options as JSON. It writes one
line of JSON to its standard output when the cluster is ready, then waits for its standard input to close: that
happens however the owner ends, `kill -9` included. It also ends when one of Ray's own processes does, so that the owner
notices at once that its cluster is broken.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shutil
import signal
import socket
import sys
from types import FrameType
from typing import Any

_POLL_SECONDS = 0.5


def main() -> None:
    """Start the cluster, tell where it is, wait for the owner's end, leave nothing behind."""
    options: dict[str, Any] = json.loads(sys.argv[1])
    owner = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            _serve(options, owner)
    finally:
        shutil.rmtree(options["temp_dir"], ignore_errors=True)


def _serve(options: dict[str, Any], owner: int) -> None:
    import ray
    from ray._private import parameter

    # The agent that takes jobs listens on one fixed port, and gives up where another cluster's has it. `ray start`
    # has an option for that, `ray.init` has none. With port 0, Ray 2.52 tells others another port than it takes.
    parameter.RayParams = functools.partial(parameter.RayParams, dashboard_agent_listen_port=_free_port())
    context = ray.init(
        include_dashboard=options["dashboard"],
        num_cpus=options["num_cpus"],
        num_gpus=options["num_gpus"],
        _temp_dir=options["temp_dir"],
        log_to_driver=False,
        logging_level="error",
    )
    signal.signal(signal.SIGTERM, _stop)  # Ray has put a handler of its own there
    try:
        ready = {
            "address": ray.get_runtime_context().gcs_address,
            "dashboard": context.dashboard_url,
            "resources": ray.cluster_resources(),
        }
        os.write(1, json.dumps(ready).encode() + b"\n")
        _wait_for_end_of(owner, options["temp_dir"])
    finally:
        ray.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _wait_for_end_of(owner: int, temp_dir: str) -> None:
    # A child that the owner forked may hold our input open after the owner is gone: so look at the owner too.
    while os.getppid() == owner:
        if _a_part_has_ended():
            # Ray would wait for the lost part for long; the owner shall know at once that its cluster is broken.
            shutil.rmtree(temp_dir, ignore_errors=True)
            os.killpg(0, signal.SIGKILL)
        readable, _, _ = select.select([0], [], [], _POLL_SECONDS)
        if readable and not os.read(0, 1024):
            return


def _a_part_has_ended() -> bool:
    """Tell whether one of the cluster's own processes is gone: what is left of it answers late or never."""
    return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()

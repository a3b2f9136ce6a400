"""A server inside of another program, such as a test session: a free port, temporary data, a token in memory.

`python -m synapse_runtime.server.embedded [DIR…]` prints one line of JSON, `{"host", "token", "pid", "data"}`, once it
accepts requests; or `{"error"}` if it cannot start. It stops when its standard input is closed, so it ends with its
parent, however that ends. `executors.remote.embedded_server` starts it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Run a server until standard input is closed."""
    from synapse_runtime.errors import PluginError
    from synapse_runtime.server.runs import run_options
    from synapse_runtime.server.serve import Address, Parent, ServeOptions, serve

    parser = argparse.ArgumentParser(prog="synapse_runtime.server.embedded")
    parser.add_argument("directories", nargs="*", type=Path)
    parser.add_argument("--run-in", choices=("worker", "task", "job"), default="worker")
    parser.add_argument("--ray-address")
    parser.add_argument("--concurrency", type=int, default=0)
    parser.add_argument("--runs-directories", action="store_true")
    parser.add_argument("--parent", type=int)
    given = parser.parse_args()

    def show(address: Address) -> None:
        told = {"host": address.host, "token": address.token, "pid": os.getpid(), "data": str(address.data)}
        print(json.dumps(told), flush=True)

    try:
        runs = run_options(given.run_in, given.ray_address, given.concurrency)
        options = ServeOptions(
            given.directories, port=0, publish_login=False, runs=runs, runs_directories=given.runs_directories
        )
        serve(options, show, end_with=Parent(sys.stdin.fileno(), given.parent))
    except PluginError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

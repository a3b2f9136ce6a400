"""The `synapse` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command with this process's arguments and exit with its status."""
    try:
        from synapse_runtime.cli import collector, quick

        collector.pause()
        try:
            status = quick.run(sys.argv[1:])
            raise SystemExit(_run_by_typer() if status is None else status)
        finally:
            collector.resume()
    except KeyboardInterrupt:  # while the command is still being imported
        raise SystemExit(130) from None


def _run_by_typer() -> int:
    try:
        from synapse_runtime.cli.app import run
    except ModuleNotFoundError as error:  # the command's own dependencies are missing
        fix = "reinstall pytest-synapse-harness with its dependencies"
        raise SystemExit(f"error: the command cannot start: {error}; {fix}") from None
    return run()

"""The `synapse` command."""

from __future__ import annotations


def main() -> None:
    """Run the command with this process's arguments and exit with its status."""
    try:
        try:
            from synapse_runtime.cli.app import run
        except ModuleNotFoundError as error:  # not even the command's own libraries are there
            fix = "install pytest-synapse-harness anew, with all that it requires"
            raise SystemExit(f"error: the command cannot start: {error}; {fix}") from None
        raise SystemExit(run())
    except KeyboardInterrupt:  # before the command is there to handle it
        raise SystemExit(130) from None

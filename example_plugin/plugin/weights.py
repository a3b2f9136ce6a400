"""The path of the weights file: given by a param, else in the directory WEIGHTS_DIR."""

from __future__ import annotations

from pathlib import Path

from synapse_runtime.context import PluginEnvironment

_FILE_NAME = "digits.npz"


def file_to_write(output_dir: Path | None, env: PluginEnvironment) -> Path:
    """Return the absolute path of the weights file in `output_dir`, or in WEIGHTS_DIR if that is None."""
    return (output_dir or Path(env.get_str("WEIGHTS_DIR", default="weights"))).absolute() / _FILE_NAME


def file_to_read(weights: Path | None, env: PluginEnvironment) -> Path:
    """Return the absolute path of the file `weights`, or of the one in WEIGHTS_DIR if that is None."""
    return weights.absolute() if weights else file_to_write(None, env)

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compare_sdk, sides

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(compare_sdk.is_installed(), reason="synapse-sdk is installed")
def test_without_the_sdk_the_error_names_the_command_to_run(capsys):
    assert compare_sdk.main() == 2
    assert capsys.readouterr().err == "synapse-sdk is not installed; run `make compare` or `nox -s compare`\n"


def test_our_side_prints_only_its_measurements(tmp_path):
    plugin = sides.write(sides.OURS, tmp_path / "plugin")
    command = [sys.executable, "-m", "benchmarks.sides", sides.OURS, "local", plugin]
    measured = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert measured.keys() == {"new", "reused", "run_plugin"} <= compare_sdk.WHAT.keys()
    assert all(seconds > 0 for seconds in measured.values())

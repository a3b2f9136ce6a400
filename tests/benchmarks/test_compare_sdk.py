import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compare_sdk, sides

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(compare_sdk.is_there(), reason="there is one to compare with")
def test_without_the_sdk_it_says_how_to_get_it(capsys):
    assert compare_sdk.main() == 2
    assert capsys.readouterr().err == "synapse-sdk is not installed here: `make compare`, or `nox -s compare`\n"


def test_our_side_measures_calls_and_prints_nothing_else(tmp_path):
    plugin = sides.write(sides.OURS, tmp_path / "plugin")
    command = [sys.executable, "-m", "benchmarks.sides", sides.OURS, "local", plugin]
    told = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert told.keys() == {"new", "reused", "run_plugin"} <= compare_sdk.WHAT.keys()
    assert all(seconds > 0 for seconds in told.values())

"""Caller and worker with different versions of this package: an error that names both, in each mode that leaves it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import synapse_runtime
from synapse_runtime.executors.protocol import PROTOCOL
from tests.patience import patience

CALLER = """\
import json, sys
from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor
from synapse_runtime.loggers import NullLogger
found = {}
for executor_type in (RayActorExecutor, RayJobsApiExecutor):
    with executor_type(plugin=sys.argv[1], logger=NullLogger()) as executor:
        try:
            found[executor.mode] = f"result: {executor.execute('double', {'number': 2})}"
        except ClusterError as error:
            found[executor.mode] = str(error)
print(json.dumps(found))
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    root = tmp_path / "doubling"
    root.mkdir()
    (root / "config.yaml").write_text('code: doubling\nactions: {double: {entrypoint: "doubling_actions:double"}}\n')
    (root / "doubling_actions.py").write_text(
        "from synapse_runtime.decorators import action\n\n\n"
        "@action\ndef double(params, context):\n    return 2 * params['number']\n"
    )
    return root


def call(reached: dict[str, str], plugin: Path, runtime: Path | None) -> dict[str, str]:
    """Call an action in task and job mode, from a process with the runtime in this directory."""
    path = {} if runtime is None else {"PYTHONPATH": str(runtime)}
    done = subprocess.run(
        [sys.executable, "-c", CALLER, str(plugin)],
        env={**os.environ, **reached, **path},
        cwd=plugin,
        capture_output=True,
        text=True,
        timeout=patience(120),
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("protocol", "version"), [(PROTOCOL - 1, "0.0.1"), (PROTOCOL + 1, "99.0.0"), (PROTOCOL, "0.1.1")]
)
def test_an_older_or_newer_caller_gets_an_error_that_names_both_versions(
    reached: dict[str, str], plugin: Path, tmp_path: Path, protocol: int, version: str
) -> None:
    runtime = tmp_path / "runtime"
    package = runtime / "synapse_runtime"
    shutil.copytree(
        Path(synapse_runtime.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "server")
    )
    for file, old, new in (
        ("__init__.py", f'__version__ = "{synapse_runtime.__version__}"', f'__version__ = "{version}"'),
        ("executors/protocol.py", f"PROTOCOL: Final = {PROTOCOL}\n", f"PROTOCOL: Final = {protocol}\n"),
    ):
        text = (package / file).read_text(encoding="utf-8")
        assert old in text
        (package / file).write_text(text.replace(old, new), encoding="utf-8")

    found = call(reached, plugin, runtime)

    theirs = f"version {synapse_runtime.__version__} of pytest-synapse-harness (protocol {PROTOCOL})"
    for mode in ("task", "job"):
        assert f"the worker has {theirs}" in found[mode]
        assert f"this process has {version} (protocol {protocol}): install the same version on both" in found[mode]


def test_the_same_version_elsewhere_on_the_path_runs_the_action(reached: dict[str, str], plugin: Path) -> None:
    assert call(reached, plugin, None) == {"task": "result: 4", "job": "result: 4"}

"""Write the measured files: a small plugin with the actions, and test files that call actions or plain functions."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks import actions

_ACTIONS = {
    "echo": "Echo",
    "say": "Say",
    "array": "array",
    "heap": "heap",
    "take": "take",
    "give": "give",
    "nap": "nap",
    "stamp": "stamp",
}
# About a hundred lines, half of which run: what coverage has to record for one call.
_WORK = (
    "from synapse_runtime.decorators import action\n\n\n@action\ndef work(params, context):\n    total = 0\n"
    + "".join(f"    if total % 2:\n        total += {n}\n    else:\n        total -= {n}\n" for n in range(40))
    + "    return total\n"
)
_PLAIN = "from plugin.actions import EchoParams, plain\n"


def write_plugin(directory: Path) -> Path:
    """Write the plugin to a directory and return the directory."""
    package = directory / "plugin"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copy(actions.__file__, package / "actions.py")
    (package / "work.py").write_text(_WORK, encoding="utf-8")
    lines = [f"  {name}: {{entrypoint: plugin.actions:{target}}}\n" for name, target in _ACTIONS.items()]
    lines.append("  work: {entrypoint: plugin.work:work}\n")
    config = "code: benchmark\nname: Benchmark\nversion: 0.1.0\ncategory: custom\nactions:\n" + "".join(lines)
    (directory / "config.yaml").write_text(config, encoding="utf-8")
    # Keeps pytest from reading configuration of parent directories, and lets plain tests import the plugin's modules.
    (directory / "pytest.ini").write_text("[pytest]\npythonpath = .\n", encoding="utf-8")
    return directory


def write_action_tests(path: Path, count: int, *, action: str = "echo", params: str = "{'number': 1}") -> Path:
    """Write a test file whose tests call an action, and return its path."""
    test = "def test_{0}(synapse_executor):\n    synapse_executor.execute({1!r}, {2})\n\n\n"
    path.write_text("".join(test.format(n, action, params) for n in range(count)), encoding="utf-8")
    return path


def write_plain_tests(path: Path, count: int) -> Path:
    """Write a test file whose tests validate the same params and call the function, and return its path."""
    test = "def test_{0}():\n    plain(EchoParams.model_validate({{'number': 1}}))\n\n\n"
    path.write_text(_PLAIN + "".join(test.format(n) for n in range(count)), encoding="utf-8")
    return path

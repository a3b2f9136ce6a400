"""What `import pytest_synapse.plugin` costs everybody who has this project installed."""

from __future__ import annotations

import subprocess
import sys

CODE = """\
import sys
import pytest
import pytest_synapse.plugin
print(*sorted(name for name in sys.modules if name.partition(".")[0] not in sys.stdlib_module_names))
"""
ALLOWED = {"_pytest", "iniconfig", "packaging", "pluggy", "py", "pygments", "pytest", "pytest_synapse"}
HEAVY = {"cloudpickle", "pydantic", "ray", "rich", "typer", "yaml"}


def imported() -> set[str]:
    # -S: no `.pth` file of the environment may import something of its own.
    code = f"import sys; sys.path[:] = {sys.path!r}\n{CODE}"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_pytest_plugin_imports_nothing_heavy():
    assert {name.partition(".")[0] for name in imported()} & HEAVY == set()


def test_of_the_runtime_the_pytest_plugin_imports_only_where_configs_and_clusters_are():
    assert {name for name in imported() if name.startswith("synapse_runtime")} == {
        "synapse_runtime",
        "synapse_runtime.compat",
        "synapse_runtime.locate",
        "synapse_runtime.site",
    }


def test_beyond_that_the_pytest_plugin_imports_pytest_and_what_pytest_needs():
    tops = {name.partition(".")[0] for name in imported()} - {"__main__", "__mp_main__", "synapse_runtime"}
    assert tops <= ALLOWED

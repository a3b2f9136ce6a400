"""Tests for what the pytest plugin, executors, a local run and reading a config file import."""

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


def imported(code: str = CODE) -> set[str]:
    # -S: no `.pth` file of the environment can import anything.
    code = f"import sys; sys.path[:] = {sys.path!r}\n{code}"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_pytest_plugin_imports_no_heavy_packages():
    assert {name.partition(".")[0] for name in imported()} & HEAVY == set()


def test_pytest_plugin_imports_only_modes_discovery_and_import_hook_of_the_runtime():
    assert {name for name in imported() if name.startswith("synapse_runtime")} == {
        *("synapse_runtime", "synapse_runtime.modes"),
        *("synapse_runtime.sdk_compat", "synapse_runtime.sdk_compat.import_hook"),
        *("synapse_runtime.plugins", "synapse_runtime.plugins.discovery"),
    }


SESSION = """\
import sys
import pytest
before = {*sys.modules}
import synapse_runtime.executors.ray.session
print(*sorted({*sys.modules} - before))
"""


def test_session_of_ray_executors_needs_only_the_standard_library():
    tops = {name.partition(".")[0] for name in imported(SESSION)} - {"synapse_runtime"}
    assert tops <= sys.stdlib_module_names


def test_ray_executors_can_be_imported_without_ray():
    assert "ray" not in imported("import sys, synapse_runtime.executors.ray; print(*sys.modules)")


def test_cluster_daemon_does_not_import_what_it_does_not_need():
    found = imported("import sys, synapse_runtime.executors.ray.cluster.daemon; print(*sys.modules)")
    assert {"pydantic", "yaml", "ray"} & found == set()


def test_pytest_plugin_imports_only_pytest_and_its_dependencies():
    tops = {name.partition(".")[0] for name in imported()} - {"__main__", "__mp_main__", "synapse_runtime"}
    assert tops <= ALLOWED


LOCAL_RUN = """\
import sys
import pydantic
class Params(pydantic.BaseModel):
    number: int = 1
before = {*sys.modules}  # including what pydantic imports for a model
from synapse_runtime.action import BaseAction
from synapse_runtime.executors.local import LocalExecutor
class Double(BaseAction[Params]):
    def execute(self):
        self.ctx.log("doubling", {"number": self.params.number})
        return 2 * self.params.number
with LocalExecutor(env={"NAME": "value"}) as executor:
    assert executor.execute(Double, {"number": 2}) == 4
print(*{*sys.modules} - before)
"""
# Each takes longer to import than everything a local run needs, including those of the standard library.
NOT_FOR_A_LOCAL_RUN = {"asyncio", "cloudpickle", "concurrent", "ctypes", "difflib", "httpx", "ray", "rich", "ssl"} | {
    "subprocess",
    "tempfile",
    "tomllib",
    "typer",
    "yaml",
}


def test_local_run_imports_no_unneeded_modules():
    modules = imported(LOCAL_RUN)
    assert "synapse_runtime.core.execution" in modules
    assert {name.partition(".")[0] for name in modules} & NOT_FOR_A_LOCAL_RUN == set()
    assert "synapse_runtime.plugins.manifest" not in modules


def test_reading_a_config_file_does_not_import_pydantic_models():
    code = "import sys, synapse_runtime.plugins.manifest; print(*sys.modules)"
    assert "synapse_runtime.plugins.yaml_reader" in (modules := imported(code))
    assert "pydantic.main" not in modules

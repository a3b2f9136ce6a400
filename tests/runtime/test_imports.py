"""What is imported before anything happens: by everybody's pytest, by an action, by the command."""

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
    # -S: no `.pth` file of the environment may import something of its own.
    code = f"import sys; sys.path[:] = {sys.path!r}\n{code}"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_the_pytest_plugin_imports_nothing_heavy():
    assert {name.partition(".")[0] for name in imported()} & HEAVY == set()


def test_the_pytest_plugin_imports_only_modes_discovery_and_the_import_hook_of_the_runtime():
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


def test_what_ray_executors_share_in_a_session_needs_only_the_standard_library():
    tops = {name.partition(".")[0] for name in imported(SESSION)} - {"synapse_runtime"}
    assert tops <= sys.stdlib_module_names


def test_the_ray_executors_are_importable_without_importing_ray():
    assert "ray" not in imported("import sys, synapse_runtime.executors.ray; print(*sys.modules)")


def test_the_cluster_daemon_does_not_wait_for_imports_it_does_not_need():
    found = imported("import sys, synapse_runtime.executors.ray.cluster.daemon; print(*sys.modules)")
    assert {"pydantic", "yaml", "ray"} & found == set()


def test_beyond_that_the_pytest_plugin_imports_pytest_and_what_pytest_needs():
    tops = {name.partition(".")[0] for name in imported()} - {"__main__", "__mp_main__", "synapse_runtime"}
    assert tops <= ALLOWED


LOCAL_RUN = """\
import sys
import pydantic
class Params(pydantic.BaseModel):
    number: int = 1
before = {*sys.modules}  # with what pydantic imports for a model
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
# Each takes longer to import than all that is needed; those of the standard library, too.
NOT_FOR_A_LOCAL_RUN = {"asyncio", "cloudpickle", "concurrent", "ctypes", "difflib", "httpx", "ray", "rich", "ssl"} | {
    "subprocess",
    "tempfile",
    "tomllib",
    "typer",
    "yaml",
}


def test_an_action_that_runs_here_takes_nothing_that_it_does_not_need():
    modules = imported(LOCAL_RUN)
    assert "synapse_runtime.core.execution" in modules
    assert {name.partition(".")[0] for name in modules} & NOT_FOR_A_LOCAL_RUN == set()
    assert "synapse_runtime.plugins.manifest" not in modules


def test_a_config_file_is_read_without_the_models_of_pydantic():
    code = "import sys, synapse_runtime.plugins.manifest; print(*sys.modules)"
    assert "synapse_runtime.plugins.yaml_reader" in (modules := imported(code))
    assert "pydantic.main" not in modules

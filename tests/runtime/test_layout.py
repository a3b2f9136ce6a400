"""Who may import whom: the rooms of docs/architecture.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("synapse_runtime", "pytest_synapse")

# From the ground up; a module imports only from rooms before its own.
ROOMS = [
    "compat",
    "locate",
    "site",
    "edits",
    "errors",
    "scratch",
    "measurement",
    "events",
    "messages",
    "enums",
    "types",
    "environment",
    "transport",
    "tracing",
    "assertions",
    "loggers",
    "audience",
    "capture",
    "deadline",
    "aside",
    "modules",
    "context",
    "sdk",
    "action",
    "decorators",
    "yaml_document",
    "sections",
    "manifest",
    "plugin",
    "inspection_main",
    "inspection",
    "requirements",
    "plugin_check",
    "yaml_edit",
    "config_update",
    "surroundings",
    "execution",
    "executors.crash",
    "executors.base",
    "executors.travel",
    "executors.worker",
    "executors.local",
    "executors.ray.job_log",
    "executors.ray.door",
    "executors.ray.head",
    "executors.ray.cluster_main",
    "executors.ray.quiet",
    "executors.ray.resources",
    "executors.ray.probe",
    "executors.ray.connection",
    "executors.ray.owned",
    "executors.ray.ephemeral",
    "executors.ray.warm",
    "executors.ray.cluster",
    "executors.ray.packaging",
    "executors.ray.luggage",
    "executors.ray.job_main",
    "executors.ray.mailbox",
    "executors.ray.task",
    "executors.ray.job",
    "executors.ray",
    "runner",
    "cli.collector",
    "cli.refusal",
    "cli.modes",
    "cli.pydantic_plugins",
    "cli.findings",
    "cli.checks",
    "cli.cluster_checks",
    "cli.examination",
    "cli.console",
    "cli.doctor",
    "cli.options",
    "cli.find",
    "cli.params",
    "cli.fields",
    "cli.show",
    "cli.scaffold",
    "cli.create",
    "cli.testing",
    "cli.cluster",
    "cli.job",
    "cli.check",
    "cli.running",
    "cli.run",
    "cli.later",
    "cli.plugin",
    "cli.app",
    "cli.quick",
    "cli",
]


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Yield the names of all modules that a file imports, but for type checkers alone."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("name", sorted(name for name in modules() if name.startswith("synapse_runtime")))
def test_a_room_imports_only_from_rooms_below(name):
    room = name.removeprefix("synapse_runtime").removeprefix(".")
    if room in ("", "__main__", "executors"):
        return
    above = {f"synapse_runtime.{other}" for other in ROOMS[ROOMS.index(room) + 1 :]} - {name}
    reached = {target for target in imports(modules()[name]) if target in above}
    # A package's own name comes along with every import from below it.
    assert {target for target in reached if not target.endswith((".ray", ".cli"))} == set()


def test_every_module_has_its_room():
    named = {name.removeprefix("synapse_runtime.") for name in modules() if name.startswith("synapse_runtime.")}
    assert named - {"__main__", "executors"} == set(ROOMS)


@pytest.mark.parametrize(
    ("forbidden", "allowed_in"),
    [("ray", "synapse_runtime.executors.ray"), ("typer", "synapse_runtime.cli"), ("pytest_synapse", "pytest_synapse")],
)
def test_a_library_is_imported_in_its_one_room_only(forbidden, allowed_in):
    guilty = [
        name
        for name, path in modules().items()
        if not name.startswith(allowed_in) and any(target.partition(".")[0] == forbidden for target in imports(path))
    ]
    assert guilty == []


def test_the_pytest_plugin_imports_the_standard_library_and_pytest_alone():
    code = """
import sys
import pytest
before = set(sys.modules)
import pytest_synapse.plugin
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pytest_synapse", "synapse_runtime"]


def test_executors_of_ray_can_be_imported_without_importing_ray():
    code = "import sys, synapse_runtime.executors.ray; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_process_that_owns_a_cluster_waits_for_nothing_that_it_does_not_need():
    code = (
        "import sys, synapse_runtime.executors.ray.cluster.daemon; print({'pydantic', 'yaml', 'ray'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

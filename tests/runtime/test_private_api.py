"""Private names of other packages: docs/private-api.md lists each use, and nothing else uses any."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "private-api.md"
PACKAGES = ("synapse_runtime", "pytest_synapse")
# Outside of the packages: the schedule of our own suite.
OTHERS = ("tests/conftest.py",)
# Documented by Python, in spite of its name.
PUBLIC = {"_thread", "_exit", "_replace", "_asdict", "_fields", "_current_frames", "_value_"}
# What our decorator sets on a function, and reads elsewhere.
ON_ACTIONS = {"_is_action", "_action_name", "_action_params", "_action_result", "_action_description"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__")) and name != "_"


def own_attributes(tree: ast.Module) -> set[str]:
    """Return the private attributes of the classes in a file."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                    names.add(part.name)
                elif isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "__slots__":
                    names.update(ast.literal_eval(part.value))
                elif isinstance(part, ast.AnnAssign | ast.Assign):
                    targets = [part.target] if isinstance(part, ast.AnnAssign) else part.targets
                    names.update(ast.unparse(target) for target in targets)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
    return names


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def uses(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """Yield the private names of other packages that a file uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if module.partition(".")[0] in PACKAGES:
                continue
            for alias in node.names:
                yield from filter(is_private, (*module.split("."), *alias.name.split(".")))
        elif (
            isinstance(node, ast.Attribute)
            and is_private(node.attr)
            and node.attr not in own
            and not is_self(node.value)
        ):
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and isinstance(name.value, str) and is_private(name.value):
                yield name.value
        elif isinstance(node, ast.keyword) and node.arg and is_private(node.arg):
            yield node.arg


def found() -> dict[tuple[str, str], None]:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    files += [ROOT / name for name in OTHERS]
    trees = {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in files
        if "templates" not in path.parts
    }
    return dict.fromkeys(
        (file, name)
        for file, tree in trees.items()
        for name in uses(tree, own_attributes(tree))
        if name not in PUBLIC | ON_ACTIONS
    )


def listed() -> dict[str, set[str]]:
    """Return the names that the page's table has for each file."""
    table: defaultdict[str, set[str]] = defaultdict(set)
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if len(cells) == 4 and cells[0].startswith("`"):
            (file,) = re.findall(r"`([^`]+\.py)`", cells[1])
            table[file].update(re.findall(r"`([^`]+)`", cells[0]))
    return table


def test_every_private_name_of_another_package_is_listed_with_its_module():
    table = listed()
    missing = [f"{file}: {name}" for file, name in found() if name not in table.get(file, ())]
    assert missing == [], "add a row to docs/private-api.md, or use a public name"


def test_every_row_is_about_a_name_that_its_module_uses():
    for file, names in listed().items():
        text = (ROOT / file).read_text(encoding="utf-8")
        unused = [name for name in names if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
        assert unused == [], f"{file} does not use these: remove them from docs/private-api.md"


def test_every_row_names_a_test_that_exists():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| `", line)]
    assert rows
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row)
        assert named, row
        for file, test in named:
            text = (ROOT / file).read_text(encoding="utf-8")
            assert not test or f"def {test}(" in text, f"{file} has no {test}"

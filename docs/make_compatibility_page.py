"""Write the table of docs/compatibility.md from the results of tests/pytest_synapse/test_other_plugins.py, or check it.

Run `pytest tests/pytest_synapse/test_other_plugins.py --junitxml=results.xml`, then this with `results.xml`, and those of
further runs; with `--check` the status is 1 where the table and the results differ in more than versions. `make
compatibility` writes it, `make test` checks it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import junit

PAGE = Path(__file__).with_name("compatibility.md")
_BEGIN, _END = "<!-- table: written by make_compatibility_page.py -->\n\n", "\n<!-- end of table -->\n"
_HEAD = "| plugin | tested with | modes | what is tested |\n|---|---|---|---|\n"


def rows(paths: list[str]) -> list[str]:
    """Return a row for each promise, in the order of the tests' names; that a test of it failed ends the program."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for case in junit.cases(paths):
        told = {item.get("name", ""): item.get("value", "") for item in case.iter("property")}
        if "other_plugin_name" not in told:
            continue
        if any(child.tag not in ("properties", "system-out", "system-err") for child in case):
            raise SystemExit(f"{case.get('name')} did not pass: see the run's report")
        key = (told["other_plugin_name"], told["other_plugin_tested"])
        found[key] = (told["other_plugin_version"], told["other_plugin_modes"])
    if not found:
        raise SystemExit(f"{paths[0]} holds no results of test_other_plugins.py")
    return [
        f"| {name} | {version} | {modes} | {tested} |\n" for (name, tested), (version, modes) in sorted(found.items())
    ]


def without_versions(table: str) -> str:
    """Return a table without its column of versions, which changes with each release of another plugin."""
    return re.sub(r"^(\| [^|]+ \|) [^|]+ \|", r"\1", table, flags=re.MULTILINE)


def main() -> None:
    """Write or check the table."""
    table = _HEAD + "".join(rows([argument for argument in sys.argv[1:] if argument != "--check"]))
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(_BEGIN)
    written, _, after = rest.partition(_END)
    if "--check" not in sys.argv:
        PAGE.write_text(before + _BEGIN + table + _END + after, encoding="utf-8")
    elif without_versions(table) != without_versions(written):
        raise SystemExit(f"{PAGE.name} does not say what the tests say: run `make compatibility` and commit it")


if __name__ == "__main__":
    main()

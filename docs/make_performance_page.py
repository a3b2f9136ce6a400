"""Write the tables of docs/performance.md from docs/performance/results.json and sdk.json, or check them.

`make bench` and `make compare` run the benchmarks and then this script. With `--check` it exits with status 1 if the
page and the files differ.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = PAGE.parent / "performance"

sys.path.insert(0, str(ROOT))  # `benchmarks` is not installed

from benchmarks import report  # noqa: E402 - after the change of sys.path


def page(text: str, results: Path = RESULTS) -> str:
    """Return the page with its tables generated from the results files.

    Args:
        text: The current page.
        results: The directory of the results files.
    """
    measured = json.loads((results / "results.json").read_text(encoding="utf-8"))
    if measured["quick"]:
        raise SystemExit("these are the results of a quick run; run `make bench`")
    tables = {
        "machine": f"Measured on {report.header(measured)}.\n",
        "goals": report.markdown(report.HEAD, report.rows(measured)),
        "growth": report.markdown(report.GROWTH_HEAD, report.growth_rows(measured)),
    }
    sdk = results / "sdk.json"
    if sdk.exists():
        compared = json.loads(sdk.read_text(encoding="utf-8"))
        tables["sdk"] = f"Measured on {report.header(compared)}.\n\n" + report.markdown(
            report.SDK_HEAD, report.sdk_rows(compared)
        )
    for name, table in tables.items():
        marked = re.compile(f"(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->\n)", re.DOTALL)
        text, times = marked.subn(lambda match, table=table: f"{match[1]}\n{table}\n{match[2]}", text)
        if times != 1:
            raise SystemExit(f"{PAGE.name} has no markers for the table {name!r}")
    return text


def main() -> None:
    """Write or check the page."""
    before = PAGE.read_text(encoding="utf-8")
    after = page(before)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(after, encoding="utf-8")
    elif after != before:
        raise SystemExit(f"{PAGE.name} is out of date with {RESULTS.name}/; run docs/make_performance_page.py")


if __name__ == "__main__":
    main()

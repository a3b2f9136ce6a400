"""Write the tables of docs/performance.md from docs/performance/results.json and sdk.json, or check them.

`make bench` and `make compare` measure and run this. With `--check` the status is 1 where page and files differ.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = PAGE.parent / "performance"

sys.path.insert(0, str(ROOT))  # `benchmarks` is installed nowhere

from benchmarks import report  # noqa: E402 - only now


def page(text: str, results: Path = RESULTS) -> str:
    """Return the page with its tables written from the files.

    Args:
        text: The page as it is.
        results: Where the files are.
    """
    measured = json.loads((results / "results.json").read_text(encoding="utf-8"))
    if measured["quick"]:
        raise SystemExit("these are the results of a quick run: run `make bench`")
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
            raise SystemExit(f"{PAGE.name} has no place for its table {name}")
    return text


def main() -> None:
    """Write or check the page."""
    before = PAGE.read_text(encoding="utf-8")
    after = page(before)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(after, encoding="utf-8")
    elif after != before:
        raise SystemExit(f"{PAGE.name} does not say what {RESULTS.name}/ says: run docs/make_performance_page.py")


if __name__ == "__main__":
    main()

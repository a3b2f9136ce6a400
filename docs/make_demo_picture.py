"""Draw the picture in the README: a real run of the example plugin's tests in all modes, as it looks in a terminal.

Run it from the project's root: python docs/make_demo_picture.py
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

COMMAND = ["pytest", "example_plugin", "--synapse-mode=all", "-k", "training_learns or missing_weights or seed", "-v"]
TARGET = Path(__file__).parent / "images" / "demo.svg"


def main() -> None:
    """Run the command and write what it printed as an SVG."""
    done = subprocess.run(
        [sys.executable, "-m", *COMMAND, "--color=yes", "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100"},
        timeout=300,
    )
    shown = [line for line in done.stdout.splitlines() if not _is_of_this_machine(line)]
    console = Console(record=True, width=108, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ " + " ".join(word if " " not in word else f"'{word}'" for word in COMMAND), style="bold"))
    for line in shown:
        console.print(Text.from_ansi(line))
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(console.export_svg(title="One test, three places"), encoding="utf-8")


def _is_of_this_machine(line: str) -> bool:
    return line.startswith(("platform", "rootdir", "plugins:", "configfile"))


if __name__ == "__main__":
    main()

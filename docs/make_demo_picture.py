"""Draw the README's picture: the terminal output of a real run of the example plugin's tests in all modes.

Run it from the repository root: python docs/make_demo_picture.py
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
# As in an environment without other pytest plugins.
_ONLY_OUR_PLUGIN = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "-p synapse"}
TARGET = Path(__file__).parent / "images" / "demo.svg"


def main() -> None:
    """Run the command and write its output as an SVG."""
    done = subprocess.run(
        [sys.executable, "-m", *COMMAND, "--color=yes", "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100", **_ONLY_OUR_PLUGIN},
        timeout=300,
    )
    shown = [line for line in done.stdout.splitlines() if not _is_machine_specific(line)]
    console = Console(record=True, width=108, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ " + " ".join(word if " " not in word else f"'{word}'" for word in COMMAND), style="bold"))
    for line in shown:
        console.print(Text.from_ansi(line))
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(console.export_svg(title="One test, three modes"), encoding="utf-8")


def _is_machine_specific(line: str) -> bool:
    return line.startswith(("platform", "rootdir", "plugins:", "configfile"))


if __name__ == "__main__":
    main()

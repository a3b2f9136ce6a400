"""`synapse doctor`: check the installation, the plugin, the cluster, the backend and the machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from synapse_runtime.cli.console import exit_on_errors, print_line, printable

if TYPE_CHECKING:
    from synapse_runtime.cli.doctor.findings import Finding

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Check the installation, plugin, cluster, backend and machine.

    Shows what is installed, which cluster would be used, and problems with their fixes. Exit status 1 if there is a
    problem.
    """
    with exit_on_errors():
        from synapse_runtime.cli.doctor.checks import run_checks

        findings = run_checks()
        states = [finding.state for found in findings.values() for finding in found]
        if as_json:
            print_line(_as_json(findings))
        elif sys.stdout.isatty():
            _draw(findings)
        else:
            print_line("\n".join(_lines(findings)))
        if not as_json:
            print_line(_summary(states.count("problem"), states.count("warning")))
        if "problem" in states:
            raise typer.Exit(1)


def _summary(problems: int, warnings: int) -> str:
    counts = [(problems, "problem"), (warnings, "warning")]
    found = ", ".join(f"{count} {word}{'s' if count > 1 else ''}" for count, word in counts if count)
    return found or "No problems found."


def _as_json(findings: Mapping[str, list[Finding]]) -> str:
    import json
    from dataclasses import asdict

    flat = [{"topic": topic} | asdict(finding) for topic, found in findings.items() for finding in found]
    return json.dumps({"findings": flat}, ensure_ascii=False)


def _draw(findings: Mapping[str, list[Finding]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 1))
    table.add_column()
    table.add_column(max_width=32, overflow="fold")
    table.add_column(overflow="fold")
    for topic, found in findings.items():
        table.add_row("", Text(topic, style="bold"))
        for finding in found:
            mark, colour = _MARKS[finding.state]
            text = Text(printable(finding.text, lines=True))
            if finding.fix:
                text.append(f"\n→ {printable(finding.fix, lines=True)}", style=colour)
            table.add_row(Text(mark, style=colour), Text(printable(finding.what)), text)
    Console(markup=False, emoji=False, highlight=False).print(table)


def _lines(findings: Mapping[str, list[Finding]]) -> Iterator[str]:
    below = "\n" + " " * 11
    for topic, found in findings.items():
        yield topic
        for finding in found:
            text = finding.text.replace("\n", below)
            yield f"  {finding.state:<8} {finding.what}: {text}"
            if finding.fix:
                yield f"           fix: {finding.fix}"

"""Shell completion, requested as bash does it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import typer

from synapse_runtime.cli.app import app
from synapse_runtime.cli.options import action_names
from tests.cli.processes import SCRIPT, Synapse
from tests.patience import patience

BEGIN_WITH_TR = ["train", "trace_here"]


def completed(command: Synapse, line: str, *, cwd: Path | None = None) -> list[str]:
    """Return the completions of a line's last word. Checks that nothing is printed to standard error."""
    done = command(
        command=[SCRIPT],
        cwd=cwd,
        _SYNAPSE_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(line.count(" ")),
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_completes_actions_of_the_plugin_in_the_current_directory(synapse: Synapse, plugin_dir: Path) -> None:
    assert completed(synapse, "synapse plugin run tr") == BEGIN_WITH_TR
    assert completed(synapse, "synapse plugin run tr", cwd=plugin_dir / "lab") == BEGIN_WITH_TR


def test_completes_actions_of_the_plugin_at_the_path(synapse: Synapse, plugin_dir: Path, tmp_path: Path) -> None:
    assert completed(synapse, "synapse plugin run tr", cwd=tmp_path) == []
    assert completed(synapse, f"synapse plugin run --path {plugin_dir} tr", cwd=tmp_path) == BEGIN_WITH_TR


def test_completes_modes_and_categories(synapse: Synapse) -> None:
    assert completed(synapse, "synapse plugin run train --mode ") == ["local", "task", "job", "remote"]
    assert completed(synapse, "synapse plugin test --mode r") == ["remote"]
    assert completed(synapse, "synapse plugin test --mode t") == ["task"]
    assert completed(synapse, "synapse plugin create --category e") == ["export"]


def test_completes_commands(synapse: Synapse) -> None:
    assert {"create", "list", "actions", "schema", "test", "run"} <= set(completed(synapse, "synapse plugin "))


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ("actions: [unclosed\n", []),
        ("actions: 5\n", []),
        ("- actions\n", []),
        ("", []),
        ("actions:\n", []),
        ("code: a\nactions:\n  - {name: train, entrypoint: a.B}\n  - nothing\n  - {entrypoint: a.C}\n", ["train"]),
        ("code: a\nactions: {1: a.B, train: a.B, other: }\n", ["1", "train", "other"]),
        ("code: a\nactions: {train: !!python/object/apply:os.system [touch evil]}\n", []),
        (b"code: a\nactions: {train: a.B}\n# \xff\n", []),
        ("code: a\nactions: {train: a.B}\n#" + "x" * 1_000_000, []),
    ],
)
def test_broken_config_completes_only_readable_actions(tmp_path: Path, config: str | bytes, names: list[str]) -> None:
    (tmp_path / "config.yaml").write_bytes(config if isinstance(config, bytes) else config.encode())
    context = typer.Context(typer.main.get_command(app))
    context.params["path"] = tmp_path
    assert [name for name, _ in action_names(context, "")] == names
    assert not (tmp_path / "evil").exists()


def test_broken_config_prints_nothing(synapse: Synapse, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("actions: [unclosed\n")
    assert completed(synapse, "synapse plugin run ", cwd=tmp_path) == []


def imported(stderr: str) -> set[str]:
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in stderr.splitlines()}


def test_completion_imports_neither_the_plugin_nor_slow_modules(synapse: Synapse) -> None:
    done = synapse(
        command=[SCRIPT],
        _SYNAPSE_COMPLETE="complete_bash",
        COMP_WORDS="synapse plugin run tr",
        COMP_CWORD="3",
        PYTHONPROFILEIMPORTTIME="1",
    )
    assert done.stdout.split() == BEGIN_WITH_TR
    assert "yaml" in imported(done.stderr)
    assert imported(done.stderr) & {"lab", "numpy", "pytest", "ray", "rich"} == set()  # typer itself takes pydantic


def test_help_imports_no_slow_modules(synapse: Synapse) -> None:
    done = synapse("--help", PYTHONPROFILEIMPORTTIME="1")
    assert "typer" in imported(done.stderr)
    assert imported(done.stderr) & {"pydantic", "pytest", "ray", "rich", "yaml"} == set()


def test_bash_completes_with_the_generated_script(synapse: Synapse) -> None:
    script = f"""
        source <({SCRIPT} --show-completion)
        COMP_WORDS=(synapse plugin run tr) COMP_CWORD=3
        _synapse_completion {SCRIPT}
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=synapse.cwd,
        env=synapse.environment(),
        capture_output=True,
        text=True,
        timeout=patience(30),
    )
    assert (done.stdout.split(), done.stderr) == (BEGIN_WITH_TR, "")

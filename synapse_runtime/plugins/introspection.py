"""What is in a plugin's modules: they are imported in a process of their own, which may hang, exit or crash."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from synapse_runtime.errors import PluginError
from synapse_runtime.plugins.discovery import is_plugin
from synapse_runtime.plugins.introspection_worker import ImportProblem, ModuleInfo, ModuleRequest, Request

IMPORT_SECONDS = 60.0
_START_SECONDS = 60.0
_GRACE = 5.0  # the process ends itself at its limit; this is for one that cannot
_NO_PACKAGES = frozenset({"tests", "__pycache__", "build", "dist", "node_modules", "wheels", "venv"})
_NO_MODULES = frozenset({"conftest", "noxfile", "setup"})
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def introspect(
    root: Path,
    modules: Sequence[ModuleRequest],
    env: Mapping[str, str] | None = None,
    *,
    seconds: float = IMPORT_SECONDS,
) -> list[ModuleInfo]:
    """Import modules of a plugin elsewhere, and return what is in them.

    Args:
        root: The plugin's directory.
        modules: The modules, and what to look for in each.
        env: Variables that they may read while they are imported.
        seconds: How long the import of one may take.

    Returns:
        What was seen, in the order of `modules`. A module that did not survive its import is told by its `fault`.

    Raises:
        PluginError: Python cannot be started.
    """
    seen: list[ModuleInfo] = []
    while len(seen) < len(modules):
        request = Request(root=str(root), env=dict(env or {}), seconds=seconds, modules=list(modules[len(seen) :]))
        seen.extend(_run_worker(request))
    return seen


def _run_worker(request: Request) -> Iterator[ModuleInfo]:
    """Yield what one process tells, until it has told all or a module was the end of it; that one is the last."""
    reading, writing = os.pipe()
    with contextlib.ExitStack() as stack:
        answers = stack.enter_context(os.fdopen(reading, "rb", buffering=0))
        said = stack.enter_context(tempfile.TemporaryFile())
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "synapse_runtime.plugins.introspection_worker", str(writing)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
            pass_fds=[writing],
            start_new_session=True,
        )
        os.close(writing)
        stack.callback(_end, process)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as asked:  # no file: there may be secrets in it
            asked.write(request.model_dump_json().encode())
        lines = _lines(answers.fileno(), request.seconds + _GRACE)
        started = next(lines, None) is not None
        done = 0
        for line in lines:
            yield ModuleInfo.model_validate_json(line)
            done += 1
            if done == len(request.modules):
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
        said.seek(0)
        words = said.read().decode(errors="replace")
        if not started:
            why = (words.strip().splitlines() or ["it said nothing"])[-1]
            raise PluginError(f"the process that imports the plugin's modules did not start: {why}")
        fault = _describe_exit(process.returncode, words, request)
        yield ModuleInfo(module=request.modules[done].module, fault=fault)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _lines(descriptor: int, seconds: float) -> Iterator[bytes]:
    """Yield lines, until there are no more, or none comes for so long. The first has the time to start Python."""
    waiting = b""
    limit = _START_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while selector.select(limit):
            content = os.read(descriptor, 1 << 16)
            if not content:
                return
            limit = seconds
            *lines, waiting = (waiting + content).split(b"\n")
            yield from lines


def _describe_exit(status: int | None, said: str, request: Request) -> ImportProblem:
    """Return why a process ended while it imported a module, and where in the plugin that was.

    Args:
        status: Its exit status, or minus the signal; None if it runs still.
        said: What it wrote to standard error, where Python leaves its stack.
        request: What was asked of it.
    """
    if status is None or "Timeout (" in said:
        text = f"its import did not end within {request.seconds:g} s"
    elif status < 0:
        text = f"its import crashed Python: {signal.Signals(-status).name}"
    else:
        text = f"its import ended the process with exit status {status}"
    inside = os.path.join(request.root, "")
    for match in _FRAME.finditer(said):  # the innermost first
        if match["file"].startswith(inside):
            return ImportProblem(text=text, file=match["file"], line=int(match["line"]))
    return ImportProblem(text=text)


def modules_of_a_plugin(root: Path) -> dict[str, Path]:
    """Return the names and files of a plugin's modules that may define actions.

    Tests, directories that are no part of the plugin, and modules without a class or a decorated function are left out:
    a script would begin to work when it is imported.
    """
    return {name: path for name, path in _modules(root) if _may_define_actions(path)}


def module_names(root: Path) -> list[str]:
    """Return the names of a plugin's modules, but for tests."""
    return [name for name, _ in _modules(root)]


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    for path in _python_files(root):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            yield name, path


def _python_files(directory: Path) -> Iterator[Path]:
    for entry in sorted(directory.iterdir()):
        if entry.is_dir():
            if entry.name.isidentifier() and entry.name not in _NO_PACKAGES and not _is_apart(entry):
                yield from _python_files(entry)
        elif entry.suffix == ".py" and entry.stem.isidentifier() and not _is_of_tests(entry.stem):
            yield entry


def _is_apart(directory: Path) -> bool:
    """Tell whether a directory is a plugin of its own, or an environment that Python is installed in."""
    return is_plugin(directory) or (directory / "pyvenv.cfg").exists()


def _is_of_tests(stem: str) -> bool:
    return stem in _NO_MODULES or stem.startswith("test_") or stem.endswith("_test")


def _may_define_actions(path: Path) -> bool:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return True  # its import will tell why
    return any(
        isinstance(node, ast.ClassDef)
        or (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and bool(node.decorator_list))
        for node in ast.walk(tree)
    )

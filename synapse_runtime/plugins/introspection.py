"""Inspect a plugin's modules in a separate process, because their import may hang, exit or crash."""

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
_MAX_WAIT = 1_000_000.0  # the system accepts no more than 24 days
_GRACE = 5.0  # the process exits at its time limit; after this, one that cannot is killed
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
    """Import modules of a plugin in a separate process, and return what they contain.

    Args:
        root: The plugin's directory.
        modules: The modules, and what to look for in each.
        env: Environment variables during the import.
        seconds: Time limit for importing one module.

    Returns:
        One entry per module, in the order of `modules`. If a module's import failed, its `fault` says why.

    Raises:
        PluginError: Python cannot be started.
    """
    seen: list[ModuleInfo] = []
    while len(seen) < len(modules):
        request = Request(root=str(root), env=dict(env or {}), seconds=seconds, modules=list(modules[len(seen) :]))
        seen.extend(_run_worker(request))
    return seen


def _run_worker(request: Request) -> Iterator[ModuleInfo]:
    """Yield the results of one process; if a module ends the process, its result is the last."""
    reading, writing = os.pipe()
    with contextlib.ExitStack() as stack:
        results = stack.enter_context(os.fdopen(reading, "rb", buffering=0))
        stderr = stack.enter_context(tempfile.TemporaryFile())
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "synapse_runtime.plugins.introspection_worker", str(writing)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=[writing],
            start_new_session=True,
        )
        os.close(writing)
        stack.callback(_kill, process)
        assert process.stdin is not None
        # A pipe, not a file, because the request may contain secrets.
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(request.model_dump_json().encode())
        lines = _lines(results.fileno(), request.seconds + _GRACE)
        started = next(lines, None) is not None
        done = 0
        for line in lines:
            yield ModuleInfo.model_validate_json(line)
            done += 1
            if done == len(request.modules):
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
        stderr.seek(0)
        output = stderr.read().decode(errors="replace")
        if not started:
            why = (output.strip().splitlines() or ["no output"])[-1]
            raise PluginError(f"cannot start the Python process that imports the plugin's modules: {why}")
        fault = _describe_exit(process.returncode, output, request)
        yield ModuleInfo(module=request.modules[done].module, fault=fault)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _lines(descriptor: int, seconds: float) -> Iterator[bytes]:
    """Yield lines until the stream ends or times out; the timeout of the first line allows for starting Python."""
    waiting = b""
    limit = _START_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while selector.select(min(limit, _MAX_WAIT)):
            content = os.read(descriptor, 1 << 16)
            if not content:
                return
            limit = seconds
            *lines, waiting = (waiting + content).split(b"\n")
            yield from lines


def _describe_exit(status: int | None, stderr: str, request: Request) -> ImportProblem:
    """Return why a process ended while it imported a module, and at which line of the plugin.

    Args:
        status: Its exit status, or minus the signal; None if it is still running.
        stderr: Its standard error, which contains Python's traceback.
        request: The request that it was given.
    """
    if status is None or "Timeout (" in stderr:
        text = f"import timed out after {request.seconds:g} s"
    elif status < 0:
        text = f"Python crashed with {signal.Signals(-status).name}"
    else:
        text = f"the process exited with status {status}"
    inside = os.path.join(request.root, "")
    for match in _FRAME.finditer(stderr):  # innermost frame first
        if match["file"].startswith(inside):
            return ImportProblem(text=text, file=match["file"], line=int(match["line"]))
    return ImportProblem(text=text)


def modules_of_a_plugin(root: Path) -> dict[str, Path]:
    """Return the names and files of a plugin's modules that may define actions.

    Leaves out tests, directories that do not belong to the plugin, and modules without a class or a decorated function:
    importing a script would run it.
    """
    return {name: path for name, path in _modules(root) if _may_define_actions(path)}


def module_names(root: Path) -> list[str]:
    """Return the names of a plugin's modules, without tests."""
    return [name for name, _ in _modules(root)]


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    for path in _python_files(root):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            yield name, path


def _python_files(directory: Path) -> Iterator[Path]:
    for entry in sorted(directory.iterdir()):
        if entry.is_dir():
            if entry.name.isidentifier() and entry.name not in _NO_PACKAGES and not _is_separate(entry):
                yield from _python_files(entry)
        elif entry.suffix == ".py" and entry.stem.isidentifier() and not _is_test(entry.stem):
            yield entry


def _is_separate(directory: Path) -> bool:
    """Return whether a directory is another plugin or a virtual environment."""
    return is_plugin(directory) or (directory / "pyvenv.cfg").exists()


def _is_test(stem: str) -> bool:
    return stem in _NO_MODULES or stem.startswith("test_") or stem.endswith("_test")


def _may_define_actions(path: Path) -> bool:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return True  # importing it reports the error
    return any(
        isinstance(node, ast.ClassDef)
        or (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and bool(node.decorator_list))
        for node in ast.walk(tree)
    )

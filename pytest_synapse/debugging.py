"""`--pdb` on a failing action: where the debugger opens, and how to get it to where no debugger reaches."""

from __future__ import annotations

import os
import shlex
from types import TracebackType

import pytest

from pytest_synapse.modes import is_parametrized_by_user, marked, modes_of
from synapse_runtime.errors import ExecutionError, ExecutionTimeout, PluginError, WorkerCrashed
from synapse_runtime.modes import MODES

_TITLE = "to debug the action"


def prepare(item: pytest.Item, mode: str, call: pytest.CallInfo[object], report: pytest.TestReport) -> None:
    """Choose where the debugger opens on what a test has raised, and let the report say how to come nearer.

    In local mode it opens where the action failed. In others the action's frames are pictures of those of a worker;
    there it opens in the last frame that is not ours: at the line that made the call.

    Args:
        item: The test.
        mode: The mode that its actions run in.
        call: The phase of the test that has raised; its exception is replaced, or its traceback is cut.
        report: The phase's report.
    """
    if call.excinfo is None or not isinstance(call.excinfo.value, PluginError):
        return
    error = call.excinfo.value
    cause = error.__cause__
    if (
        MODES[mode].in_process
        and type(error) is ExecutionError
        and cause is not None
        and cause.__traceback__ is not None
    ):
        call.excinfo = pytest.ExceptionInfo.from_exception(cause)
        return
    call.excinfo = pytest.ExceptionInfo.from_exception(error.with_traceback(_without_ours(error.__traceback__)))
    if not MODES[mode].in_process and isinstance(error, ExecutionError):
        _add_section(report, f"{_why(error)}\n{_how(item, mode)}")


def _why(error: ExecutionError) -> str:
    if isinstance(error, WorkerCrashed):
        return "The worker is gone. In local mode pytest itself may end in its place."
    if isinstance(error, ExecutionTimeout):
        return "It was stuck as told above. In local mode it may get stuck elsewhere, or not."
    return "No debugger reaches a worker: here it opens at the call, locally in the action."


def _how(item: pytest.Item, mode: str) -> str:
    """Return the command that runs a test in local mode, and what is to be changed before, if anything is."""
    decided_by = _decided_by(item, mode)
    if decided_by is None:
        return (
            f"To run it in local mode:\n    pytest {_quoted(item, _test_name(item, mode))} --synapse-mode=local --pdb"
        )
    if decided_by == "marker" and "local" in modes_of(item, item.config):
        return f"To run it in local mode:\n    pytest {_quoted(item, _test_name(item, mode, 'local'))} --pdb"
    # All of its parameters where these decide: only they know their ids.
    name = item.nodeid.partition("::")[2].partition("[")[0] if decided_by == "parametrize" else _test_name(item, mode)
    return (
        f"To run it in local mode, let its {decided_by} say 'local' in place of {mode!r}, as that wins over "
        f"--synapse-mode; then:\n    pytest {_quoted(item, name)} --pdb"
    )


def _decided_by(item: pytest.Item, mode: str) -> str | None:
    """Return what decides a test's mode and wins over the command line; None where nothing does."""
    if is_parametrized_by_user(item):
        return "parametrize"
    if mode not in modes_of(item, item.config):
        return "own fixture synapse_mode"
    return None if marked(item).get("mode") is None else "marker"


def _test_name(item: pytest.Item, mode: str, other: str | None = None) -> str:
    """Return a test's id without its file, as it is in another mode; without any where there is only one."""
    _, _, name = item.nodeid.partition("::")
    callspec = getattr(item, "callspec", None)
    if callspec is None or "synapse_mode" not in callspec.params:
        return name
    parts = callspec.id.split("-")
    place = len(parts) - 1 - parts[::-1].index(mode)  # it is the last of the parameters
    parts[place : place + 1] = [] if other is None else [other]
    return name.removesuffix(f"[{callspec.id}]") + (f"[{'-'.join(parts)}]" if parts else "")


def _quoted(item: pytest.Item, name: str) -> str:
    return shlex.quote(f"{os.path.relpath(item.path, item.config.invocation_params.dir)}::{name}")


def _add_section(report: pytest.TestReport, text: str) -> None:
    """Let a text come below the traceback: just before the debugger opens, and in the report of the test."""
    add = getattr(report.longrepr, "addsection", None)
    if add is not None:
        add(_TITLE, text)
    else:  # another plugin makes reports of its own
        report.sections.append((_TITLE, text))


def _without_ours(tb: TracebackType | None) -> TracebackType | None:
    """Return a traceback up to its last frame that is not hidden."""
    entries = []
    while tb is not None:
        entries.append(tb)
        tb = tb.tb_next
    while len(entries) > 1 and _is_hidden(entries[-1]):
        entries.pop()
    cut: TracebackType | None = None
    for entry in reversed(entries):
        cut = TracebackType(cut, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return cut


def _is_hidden(entry: TracebackType) -> bool:
    frame = entry.tb_frame
    return bool(frame.f_locals.get("__tracebackhide__") or frame.f_globals.get("__tracebackhide__"))

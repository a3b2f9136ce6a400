"""`--pdb` on a failing action: where the debugger stops, and how to debug an action that ran in a worker."""

from __future__ import annotations

import os
import shlex
from types import TracebackType

import pytest

from pytest_synapse.modes import is_own_fixture, is_parametrized_by_user, marker_kwargs, modes_of
from synapse_runtime.errors import ExecutionError, ExecutionTimeout, PluginError, WorkerCrashed
from synapse_runtime.modes import MODES

_RUN_LOCALLY = "To stop inside the action, run the test in local mode:"
_TITLE = "how to debug the action"


def prepare(item: pytest.Item, mode: str, call: pytest.CallInfo[object], report: pytest.TestReport) -> None:
    """Choose the frame in which the debugger stops, and add to the report how to debug the action itself.

    In local mode the debugger stops where the action failed. In other modes the action's frames are reconstructed from
    the worker's, so it stops in the last frame outside this package: at the line that made the call.

    Args:
        item: The test.
        mode: The mode that its actions run in.
        call: The phase of the test that raised; its exception is replaced, or its traceback shortened.
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
    call.excinfo = pytest.ExceptionInfo.from_exception(
        error.with_traceback(_without_hidden_frames(error.__traceback__))
    )
    if not MODES[mode].in_process and isinstance(error, ExecutionError):
        _add_section(report, f"{_why(error)}\n{_how(item, mode)}")


def _why(error: ExecutionError) -> str:
    if isinstance(error, WorkerCrashed):
        return "The worker crashed. In local mode the crash may end pytest itself."
    if isinstance(error, ExecutionTimeout):
        return (
            "The action timed out; its stack is shown above. In local mode it may get stuck elsewhere, or not at all."
        )
    return "pdb cannot attach to a worker, so it stops at the call in your test."


def _how(item: pytest.Item, mode: str) -> str:
    """Return the command that runs a test in local mode, and what to change first, if anything."""
    decided_by = _decided_by(item, mode)
    if decided_by is None:
        return f"{_RUN_LOCALLY}\n    pytest {_quoted(item, _test_name(item, mode))} --synapse-mode=local --pdb"
    if decided_by == "marker" and "local" in modes_of(item, item.config):
        return f"{_RUN_LOCALLY}\n    pytest {_quoted(item, _test_name(item, mode, 'local'))} --pdb"
    # Without parameters if parametrize decides, since the ids after that change are unknown.
    name = item.nodeid.partition("::")[2].partition("[")[0] if decided_by == "parametrize" else _test_name(item, mode)
    return (
        f"To stop inside the action, change {mode!r} to 'local' in the test's {decided_by}, which overrides "
        f"--synapse-mode, and run:\n    pytest {_quoted(item, name)} --pdb"
    )


def _decided_by(item: pytest.Item, mode: str) -> str | None:
    """Return what sets a test's mode and overrides the command line; None if nothing does."""
    if is_parametrized_by_user(item):
        return "parametrize"
    if is_own_fixture(item) or mode not in modes_of(item, item.config):
        return "fixture synapse_mode"
    return None if marker_kwargs(item).get("mode") is None else "marker"


def _test_name(item: pytest.Item, mode: str, other: str | None = None) -> str:
    """Return a test's id without its file, with its mode replaced by another one or, if None, removed."""
    _, _, name = item.nodeid.partition("::")
    callspec = getattr(item, "callspec", None)
    if callspec is None or "synapse_mode" not in callspec.params:
        return name
    parts = callspec.id.split("-")
    place = len(parts) - 1 - parts[::-1].index(mode)  # the mode is the last parameter of this value
    parts[place : place + 1] = [] if other is None else [other]
    return name.removesuffix(f"[{callspec.id}]") + (f"[{'-'.join(parts)}]" if parts else "")


def _quoted(item: pytest.Item, name: str) -> str:
    return shlex.quote(f"{os.path.relpath(item.path, item.config.invocation_params.dir)}::{name}")


def _add_section(report: pytest.TestReport, text: str) -> None:
    """Add a text below the traceback: it is shown just before the debugger opens, and in the test's report."""
    add = getattr(report.longrepr, "addsection", None)
    if add is not None:
        add(_TITLE, text)
    else:  # another plugin has replaced the report's representation
        report.sections.append((_TITLE, text))


def _without_hidden_frames(tb: TracebackType | None) -> TracebackType | None:
    """Return a traceback cut after its last frame that is not hidden."""
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

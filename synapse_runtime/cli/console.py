"""Output of the command: results, failures and notes, with results alone on standard output for programs.

Exit statuses: 0 done, 1 the action failed, 2 bad arguments, params or config, 3 no cluster or backend, or no such job
there, 124 timeout, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from synapse_runtime.errors import (
    ClusterError,
    ConfigError,
    ExecutionError,
    ExecutionTimeout,
    NotSupportedRemotely,
    PluginError,
    RemoteError,
    ResultNotSerializable,
    ValidationError,
    WorkerCrashed,
    safe_str,
)

if TYPE_CHECKING:
    import traceback

    from synapse_runtime.core.execution import ActionRun
    from synapse_runtime.plugins.manifest import Manifest
    from synapse_runtime.redaction import HiddenValues

_MAX_LINE_LENGTH = 1000
# Characters that a terminal may take for commands, or that change the order of others: C0 and C1 without newline and
# tab, and the controls of bidirectional text.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str, *, lines: bool = False) -> str:
    r"""Return a text from a plugin, a cluster or an error with its control characters escaped, for a terminal.

    Args:
        text: The text.
        lines: Whether it may have several lines; else newlines are escaped too.

    Example:
        >>> printable("\x1b]52;c;bHM=\x07\nerror: none")
        '\\x1b]52;c;bHM=\\x07\\nerror: none'
    """
    if text.isprintable():
        return text
    text = _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return text if lines else text.replace("\n", "\\n")


def print_line(text: str = "", *, err: bool = False, end: str = "\n", **style: Any) -> None:
    """Print text, with control characters escaped.

    Args:
        text: The text. Parts of it that must be on one line have passed `printable`.
        err: Whether to print it to standard error instead of standard output.
        end: What to print after it.
        **style: Style on a terminal, as keyword arguments of `typer.style`.
    """
    text = printable(text, lines=True)
    stream = sys.stderr if err else sys.stdout
    # Without colours and with UTF-8, typer would write the same, and importing it takes longer than running an action.
    is_plain = stream is not None and not (style and stream.isatty())
    if is_plain and getattr(stream, "encoding", None) in ("utf-8", "UTF-8"):
        stream.write(text + end)
        stream.flush()
        return
    import typer

    typer.secho(text, err=err, nl=False, **style)
    typer.echo(end, err=err, nl=False)


def print_note(text: str) -> None:
    """Print a note for the user to standard error."""
    print_line(text, err=True, dim=True)


def report_config_problems(manifest: Manifest, *, strict: bool = False) -> None:
    """Print each unknown field or value of a plugin's config file to standard error, one per line.

    Args:
        manifest: The config file.
        strict: Whether they are errors.

    Raises:
        ConfigError: Something is unknown, and `strict` is true.
    """
    if strict and manifest.problems:
        raise ConfigError.of(manifest.problems)
    for problem in manifest.problems:
        print_note(str(problem))


@contextlib.contextmanager
def exit_on_errors(*, debug: bool = True) -> Iterator[None]:
    """Turn errors into a message on standard error and an exit status, without a traceback of this package.

    Args:
        debug: Whether a message may have several lines.
    """
    try:
        yield
    except (PluginError, FileNotFoundError, TimeoutError) as error:
        _print_error(error, debug=debug)
        raise SystemExit(exit_status(error)) from error
    except _interruptions() as error:
        print_line("interrupted", err=True)
        raise SystemExit(130) from error
    except BrokenPipeError as error:
        # The reader has closed the pipe, as `| head` does: exit silently, and discard what is still buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(141) from error


def _interruptions() -> tuple[type[BaseException], ...]:
    typer = sys.modules.get("typer")  # unless it is imported, its exceptions cannot have been raised
    return (KeyboardInterrupt,) if typer is None else (KeyboardInterrupt, typer.Abort)


def is_stdout_closed() -> bool:
    """Return whether standard output is a pipe whose reader has closed it."""
    import select

    poll = select.poll()
    poll.register(1, 0)
    return any(state & select.POLLERR for _, state in poll.poll(0))


def exit_status(error: Exception) -> int:
    """Return the exit status for an error."""
    if isinstance(error, ExecutionTimeout | TimeoutError):
        return 124
    if isinstance(error, ExecutionError):
        return 1
    if isinstance(error, NotSupportedRemotely):
        return 2
    return 3 if isinstance(error, ClusterError | RemoteError) else 2


def write_record(run: ActionRun, results: TextIO, hidden: HiddenValues | None = None) -> None:
    """Write a run as a record (`synapse_runtime.run_record`), on one line.

    Args:
        run: The run.
        results: The stream.
        hidden: Values that must not appear in it, except in the result; by default the secrets of this process.
    """
    from synapse_runtime.core.remote_exceptions import redact_values
    from synapse_runtime.redaction import HiddenValues as Hidden
    from synapse_runtime.redaction import secret_variables
    from synapse_runtime.run_record import RunRecord

    hidden = hidden or Hidden({}, secrets=secret_variables(os.environ).items())
    with redact_values(hidden):
        record = RunRecord.from_run(run)
    results.write(record.redacted(hidden.of_secrets()).dumps() + "\n")


def show_run(run: ActionRun, results: TextIO | None, *, as_json: bool, debug: bool = True) -> None:
    """Show a run's result, or its error.

    Args:
        run: The run.
        results: The stream for a result as JSON; None if it has been written.
        as_json: Whether to write only the result, as JSON, to `results`.
        debug: Whether to show details of a failure: the action's traceback, the last output of its worker.

    Raises:
        SystemExit: The run failed; has the exit status for the error.
    """
    if run.error is not None:
        if isinstance(run.error.__cause__, BrokenPipeError) and is_stdout_closed():
            raise run.error.__cause__
        show_failure(run.error, debug=debug)
        raise SystemExit(exit_status(run.error))
    if as_json:
        if results is not None:
            results.write(to_json(run.result) + "\n")
    else:
        print_line(f"Result of {run.name} ({run.mode}, {run.duration:.2f} s):")
        print_line(readable(run.result))


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: with borders on a terminal, else as plain aligned columns."""
    rows = [[*map(printable, row)] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Column, Table

        table = Table(*(Column(heading, overflow="fold") for heading in headings))
        for row in rows:
            table.add_row(*row)
        Console(markup=False, emoji=False, highlight=False).print(table)
        return
    from rich.cells import cell_len  # characters of some scripts are two columns wide

    widths = [max(map(cell_len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        print_line("  ".join(cells).rstrip())


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return a result as JSON.

    Models, dataclasses, paths and dates become plain data, arrays become lists, and other objects their `str()`.

    Raises:
        ResultNotSerializable: JSON cannot represent it, such as a list that contains itself.

    Example:
        >>> from pathlib import Path
        >>> to_json({"weights": Path("w.npz"), "loss": float("nan")})
        '{"weights":"w.npz","loss":null}'
    """
    from pydantic_core import to_json as serialize

    try:
        data: bytes = serialize(value, indent=indent, fallback=_plain, bytes_mode="base64", inf_nan_mode="null")
    except Exception as error:
        raise ResultNotSerializable(f"the result cannot be written as JSON: {safe_str(error)}") from error
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", data.decode())


def readable(value: Any) -> str:
    """Return a result for display: as indented JSON, or as its Python representation if JSON cannot represent it."""
    try:
        return to_json(value, indent=2)
    except ResultNotSerializable:
        import pprint

        return pprint.pformat(value)


def _plain(value: Any) -> Any:
    for method in ("tolist", "item"):  # arrays and scalars of numpy, torch and similar libraries
        if callable(getattr(value, method, None)):
            return getattr(value, method)()
    return str(value)


def show_failure(error: Exception, *, debug: bool) -> None:
    """Show the error of a run.

    Args:
        error: The error of a run.
        debug: Whether to show the action's traceback and details, too; otherwise the error is one line.
    """
    cause = error.__cause__
    of_the_action = isinstance(error, ExecutionError) and not isinstance(error, WorkerCrashed | ExecutionTimeout)
    if debug and of_the_action and cause is not None:  # otherwise the cause is internal to Ray and of no help
        print_line("".join(_own_frames(cause)).rstrip(), err=True)
    details = getattr(error, "details", "")
    if debug and details:
        print_line(details, err=True)
    _print_error(error, debug=debug)


def _print_error(error: Exception, *, debug: bool) -> None:
    text = safe_str(error)
    if not debug:
        text = in_one_line(text)
    elif isinstance(error, ExecutionError | ValidationError):  # has a message of the plugin's own
        text = _indented(text)
    print_line(f"error: {text}", err=True, fg="red")


def in_one_line(text: str) -> str:
    r"""Return a message as one line, truncated if it is very long.

    Example:
        >>> in_one_line("train: 1 invalid parameter\n  epochs: Input should be a valid integer\n")
        'train: 1 invalid parameter; epochs: Input should be a valid integer'
    """
    line = "; ".join(stripped for part in text.splitlines() if (stripped := part.strip()))
    return line if len(line) <= _MAX_LINE_LENGTH else f"{line[:_MAX_LINE_LENGTH]}…"


def _own_frames(error: BaseException) -> list[str]:
    """Return a traceback's text without the frames of this package."""
    import traceback

    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
    summary = traceback.TracebackException.from_exception(error)
    seen: set[int] = set()

    def trim(part: traceback.TracebackException | None) -> None:
        if part is None or id(part) in seen:
            return
        seen.add(id(part))
        frames = [frame for frame in part.stack if not frame.filename.startswith(here)]
        part.stack = traceback.StackSummary.from_list(frames)
        trim(part.__cause__)
        trim(part.__context__)

    trim(summary)
    # Others are frames, and what is between the tracebacks of a chain.
    return [part if part.startswith((" ", "\n", "Traceback ")) else _indented(part) for part in summary.format()]


def _indented(message: str) -> str:
    """Indent the further lines of a message of a plugin, as they could look like lines of this command."""
    return re.sub(r"\n(?=\S)", "\n  ", message)


@contextlib.contextmanager
def only_results_on_stdout() -> Iterator[TextIO]:
    """Redirect standard output to standard error, including the output of child processes.

    Yields:
        A stream that still writes to the real standard output.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w", encoding="utf-8") as results:
            yield results
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)

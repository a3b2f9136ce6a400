"""Write docs/parity.md from the results of the contract's tests, or check that the page matches them.

Run `pytest tests/parity --junitxml=results.xml`, then this script with `results.xml` and the files of further runs, if any.
With `--check` it exits with status 1 if the page and the results differ. `make parity` writes the page, `make test`
checks it.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import junit

PAGE = Path(__file__).with_name("parity.md")
MODES = ("local", "task", "job", "remote")

# Each row: its subject, the guarantee, and the modes that it applies to.
ROWS: dict[int, tuple[str, str, tuple[str, ...]]] = {
    1: ("Results", "are returned equal and with the same type: scalars, containers, dataclasses, enums, paths, dates, bytes, numpy arrays, pydantic models; 50 MB, 16 MB from a job", MODES),
    2: ("Params", "are validated once, by the same model; the caller's dict is not changed; all strings and numbers arrive unchanged", MODES),
    3: ("Invalid params", "raise `ValidationError` with the same `.errors()`; the action never starts", MODES),
    4: ("Exceptions", "are the cause of `ExecutionError`: type, arguments, notes, chain, and a traceback that shows the action's own lines; pytest's report is the same", MODES),
    5: ("Exceptions that are hard to pickle", "never become a pickling error: unusual constructors, attributes that cannot be pickled, groups, classes of the test; what cannot be pickled is replaced by its text", MODES),
    6: ("`sys.exit`", "ends the action with an `ExecutionError` and does not end the process", MODES),
    7: ("`assert` in an action", "fails with the same message, including pytest's explanation", MODES),
    8: ("Events", "are the same records in the same order", MODES),
    9: ("Output", "is captured by `capsys`, `capfd`, `caplog` and `recwarn`, and shown only in its own test's report", MODES),
    10: ("The environment", "is the same in `ctx.env` and `os.environ`, and restored afterwards", MODES),
    11: ("The working directory", "is the plugin's, and restored afterwards", MODES),
    12: ("The job id", "is the one that was passed, or a new one", MODES),
    13: ("Where an action is defined", "makes no difference: plugin, installed package, test module, conftest, function, `__main__`", MODES),
    14: ("The kind of action", "makes no difference: `BaseAction`, `@action`, `async`, any class with `execute`, its own `dispatch`", MODES),
    15: ("Timeouts", "stop the action within 2 s, with the stacks where it was blocked; the next call works", MODES),
    16: ("Ctrl-C", "stops the action", MODES),
    17: ("Values that cannot be pickled", "are named in the error, such as `result[\"model\"].lock`, with the same message", MODES),
    18: ("`result_model`", "is checked, and a mismatch is reported in the same way", MODES),
    19: ("Coverage", "measures the same lines and branches: with pytest-cov and `coverage run`, with contexts, coverage plugins and processes that an action starts", MODES),
    20: ("Many actions in a row", "leak nothing; with `isolation=\"fresh\"` a test sees no state of other tests", MODES),
    21: ("Two plugins named `plugin`", "each get their own modules, in one process, in any order; edits between runs take effect", MODES),
    22: ("The environment of the test", "variables that the tests' process has changed since its session began are changed for the action too, deletions included; what was there before is never sent; `TZ` and `TMPDIR` take effect", MODES),
    23: ("Patches", "of `monkeypatch`, `unittest.mock` and pytest-mock hold where the action runs, and only for its call; mocks, and lists or variables that a replacement refers to, have afterwards what the action has done to them; what cannot be sent is named in an error", MODES),
    24: ("`around`", "runs a context manager around the action, in its process; a clock that freezegun or time-machine has stopped or moved is the same for the action", MODES),
    25: ("Seeds", "`random`, numpy and torch start each call in the same state, and are as before after it", MODES),
    27: ("The state of the process", "is as before after each call: import path, logging, warnings filters, hooks, event loop; the import path is that of the test, and variables that only a new process reads take effect in workers", MODES),
    28: ("Threads of an action", "may emit events, output and records: all arrive, in the order of each thread; what fails in a thread or finalizer is reported as pytest reports it; an error of the caller's callback stops the action and is raised", MODES),
    29: ("Every kind of end", "`sys.exit`, `KeyboardInterrupt` and the like, at import, validation, run and result, is an error, and nothing that was emitted before is lost; `pytest.skip`, `xfail` and the like end the test in that way", MODES),
    30: ("A worker crash", "is reported with the exit status or signal, the last output and all events, metrics, records and warnings until then, and the worker is replaced", ("task", "job", "remote")),
    31: ("A crash of the cluster, or the backend", "fails pending calls immediately; if synapse had started it, later calls start a new one", ("task", "job", "remote")),
    32: ("Resources that the cluster does not have", "are rejected immediately, with an error that shows what it has", ("task", "job")),
}  # fmt: skip

INTRODUCTION = """\
# The parity contract

**A mode is a place, not a behaviour.** Each row is a guarantee, and the table shows how many tests check it in each
mode. `docs/make_parity_page.py` generates it from a run of `tests/parity`; CI fails if the page and the run differ. The
numbers count the tests that ran in that mode. A job takes seconds and a call to a worker a millisecond, so in job mode
there are tests for what is specific to jobs (upload, log, a separate process) and one case of what they share with
workers; some tests share one job. In remote mode, tests are left out whose action only a test can import, or whose values JSON
does not have.
"""

NOTES = """\
`–`: the row does not apply; local mode has no worker that could crash. *Planned* rows are not guaranteed yet. Some
tests of a row check several modes at once, since they compare reports; they count for the modes in their name.

## Remaining differences

- A job takes about a second to start, a run through a backend tens of milliseconds. A timeout starts when its action starts.
- In remote mode an exception whose class is neither of Python nor of the plugin is a `RemoteException` with the name of its class.
  Actions and values that [cannot be sent](remote.md#tests) skip the test.
- In local mode the action's output is not in the `ActionRun`, since it is written directly to the test's own output.
- The order between standard output and standard error is lost in task mode, and approximate in a job; within each it is
  kept.
- `pytest --showlocals` shows the arguments of a worker's functions, not their other local variables.
- If a worker on another machine crashes, the error shows Ray's message; the exit status is only known on this machine. What
  its action has emitted in the last 50 ms is lost; on this machine nothing is.
- A worker that does not share your file system works in a copy of the plugin's directory; messages of an action's
  exceptions name that copy. Files that it writes there are not copied back.
"""


def results(paths: list[str]) -> dict[int, dict[str, Counter[str]]]:
    """Count passed and other tests, by row and mode."""
    found = {row: {mode: Counter[str]() for mode in MODES} for row in ROWS}
    for case in junit.cases(paths):
        name = case.get("name", "")
        if not case.get("classname", "").startswith("tests.parity."):
            continue
        match = re.match(r"test_(\d\d)_", name)
        if match is None:
            raise SystemExit(f"{case.get('classname')}::{name} does not start with the number of a row: test_NN_…")
        if any((child.get("message") or "").startswith("remote mode: ") for child in case.iter("skipped")):
            continue  # what JSON cannot carry
        outcome = "passed" if all(child.tag in ("properties", "system-out") for child in case) else "not"
        recorded = [item.get("value") for item in case.iter("property") if item.get("name") == "synapse_mode"]
        words = recorded or re.split(r"[\[\]\-,]", name.partition("[")[2])
        for mode in [mode for mode in MODES if mode in words] or list(ROWS[int(match[1])][2]):
            found[int(match[1])][mode][outcome] += 1
    return found


def page(counts: dict[int, dict[str, Counter[str]]]) -> str:
    """Return the page."""
    lines = ["| # | what | guarantee | local | task | job | remote |", "|---|---|---|---|---|---|---|"]
    for row, (what, guarantee, modes) in ROWS.items():
        cells = [_cell(counts[row][mode], mode in modes, bool(modes)) for mode in MODES]
        lines.append(f"| {row} | {what} | {guarantee} | {' | '.join(cells)} |")
    return f"{INTRODUCTION}\n" + "\n".join(lines) + f"\n\n{NOTES}"


def _cell(count: Counter[str], guaranteed: bool, any_mode: bool) -> str:
    if not any_mode:
        return "*planned*"
    if not guaranteed:
        return "–"
    if count["not"] or not count["passed"]:
        return f"✗ {count['not']} of {count.total()} fail" if count.total() else "✗ no test"
    return f"✓ {count['passed']}"


def main() -> None:
    """Write or check the page."""
    text = page(results([argument for argument in sys.argv[1:] if argument != "--check"]))
    if "--check" not in sys.argv:
        PAGE.write_text(text, encoding="utf-8")
        return
    if "✗" in text:
        raise SystemExit("tests of some rows failed or are missing: see the run's report")
    if text != PAGE.read_text(encoding="utf-8"):
        raise SystemExit(f"{PAGE.name} is out of date with the tests: run `make parity` and commit the page")


if __name__ == "__main__":
    main()

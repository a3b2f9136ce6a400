"""Write docs/parity.md from the results of the contract's tests, or check that it says what they say.

Run `pytest tests/parity --junitxml=results.xml`, then this with `results.xml`, and those of further runs; with `--check`
the status is 1 where the page and the results differ. `make parity` writes it, `make test` checks it.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import junit

PAGE = Path(__file__).with_name("parity.md")
MODES = ("local", "task", "job")

# Each row: what it is about, what is promised, and the modes that it is promised for.
ROWS: dict[int, tuple[str, str, tuple[str, ...]]] = {
    1: ("Results", "come back equal and of the same type: scalars, containers, dataclasses, enums, paths, dates, bytes, numpy arrays, pydantic models; 50 MB, 16 MB from a job", MODES),
    2: ("Params", "are validated once, by the same model; the caller's dict stays as it was; any text and number arrives intact", MODES),
    3: ("Bad params", "raise `ValidationError` with the same `.errors()`; the action never starts", MODES),
    4: ("An exception", "arrives as the cause of `ExecutionError`: type, arguments, notes, chain, and a traceback that shows the action's own lines; pytest's report reads the same", MODES),
    5: ("Awkward exceptions", "never turn into a pickling error: odd constructors, attributes that cannot travel, groups, classes of the test; what cannot travel is replaced by its text", MODES),
    6: ("`sys.exit`", "ends the action with `ExecutionError`, not the process", MODES),
    7: ("`assert` in an action", "fails with the same message, pytest's explanation included", MODES),
    8: ("Events", "are the same records in the same order", MODES),
    9: ("Output", "is seen by `capsys`, `capfd`, `caplog`, `recwarn`, and in the report of its own test only", MODES),
    10: ("The environment", "is the same in `ctx.env` and `os.environ`, and restored after", MODES),
    11: ("The working directory", "is the plugin's, and restored after", MODES),
    12: ("The job id", "is the one that was given, else a fresh one", MODES),
    13: ("Where an action is defined", "does not matter: plugin, installed package, test module, conftest, function, `__main__`", MODES),
    14: ("What an action is", "does not matter: `BaseAction`, `@action`, `async`, any class with `execute`, its own `dispatch`", MODES),
    15: ("A time limit", "ends the action within 2 s, with the stacks at which it was stuck; the next call works", MODES),
    16: ("Ctrl-C", "stops the action", MODES),
    17: ("What cannot travel", "is named: `result[\"model\"].lock`, in the same words", MODES),
    18: ("`result_model`", "is checked, and a mismatch told in the same way", MODES),
    19: ("Coverage", "counts the same lines and branches: under pytest-cov and `coverage run`, with contexts, plugins and processes of an action", MODES),
    20: ("Many actions in a row", "leak nothing; `isolation=\"fresh\"` sees no state of others", MODES),
    21: ("Two plugins named `plugin`", "each get their own modules, in one process, in any order; edits between runs are seen", MODES),
    30: ("A worker that dies", "is told with its exit status or signal and its last output, and replaced", ("task", "job")),
    31: ("A cluster that dies", "fails its pending calls at once; later calls get a new one if it was ours", ("task", "job")),
    32: ("Resources that nobody has", "are refused at once, with what there is", ("task", "job")),
}  # fmt: skip

INTRODUCTION = """\
# The parity contract

**A mode is a place, not a behaviour.** Each row is a promise, and the table says how many tests hold it in each mode. It is
written by `docs/make_parity_page.py` from a run of `tests/parity`; the gate fails when the page and the run differ. A count
is of the tests that ran in that mode. A job costs seconds where a call to a worker costs a millisecond, so jobs run what goes
their own way (upload, log, a process of their own) and one case of what they share with workers; some ride together in one job.
"""

NOTES = """\
`–` where a row means nothing: local mode has no worker to lose. *Planned* rows are not promised yet. Some tests of a row hold
for several modes at once, as they compare reports; they count for the modes in their name.

## Where a mode still shows

- A job takes about a second to start. A time limit counts from the start of its action.
- In local mode the action's output is not in the `ActionRun`, since it goes straight to where the test's own goes.
- The order between standard output and standard error is lost in task mode, and near in a job; within each it is kept.
- `pytest --showlocals` shows the arguments of a worker's functions, not their other local variables.
- A worker on another machine that dies is told in Ray's words; the exit status is known on this machine.
- A worker that does not see this disk works in a copy of the plugin's directory; messages of an action's exceptions name
  that. What it writes there does not come back.
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
            raise SystemExit(f"{case.get('classname')}::{name} names no row of the contract: test_NN_…")
        outcome = "passed" if all(child.tag in ("properties", "system-out") for child in case) else "not"
        told = [item.get("value") for item in case.iter("property") if item.get("name") == "synapse_mode"]
        words = told or re.split(r"[\[\]\-,]", name.partition("[")[2])
        for mode in [mode for mode in MODES if mode in words] or list(ROWS[int(match[1])][2]):
            found[int(match[1])][mode][outcome] += 1
    return found


def page(counts: dict[int, dict[str, Counter[str]]]) -> str:
    """Return the page."""
    lines = ["| # | what | promise | local | task | job |", "|---|---|---|---|---|---|"]
    for row, (what, promise, modes) in ROWS.items():
        cells = [_cell(counts[row][mode], mode in modes, bool(modes)) for mode in MODES]
        lines.append(f"| {row} | {what} | {promise} | {' | '.join(cells)} |")
    return f"{INTRODUCTION}\n" + "\n".join(lines) + f"\n\n{NOTES}"


def _cell(count: Counter[str], promised: bool, any_mode: bool) -> str:
    if not any_mode:
        return "*planned*"
    if not promised:
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
        raise SystemExit("some rows of the contract do not hold: see the run's report")
    if text != PAGE.read_text(encoding="utf-8"):
        raise SystemExit(f"{PAGE.name} does not say what the tests say: run `make parity` and commit it")


if __name__ == "__main__":
    main()

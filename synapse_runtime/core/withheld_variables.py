"""Variables of the process that starts a cluster which Ray's own processes do not get, and its workers get back."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping

_VARIABLE = "SYNAPSE_WITHHELD_VARIABLES"
# Ray's processes leave temporary files behind when they are killed. With `PYTHONWARNINGS=error` they end at the first
# warning, and with another encoding than UTF-8 they cannot read logs; the others make Python print to their output, or
# wait for input after the end of the program.
_NAMES = (
    *("TMPDIR", "PYTHONWARNINGS", "PYTHONUTF8", "PYTHONIOENCODING"),
    *("PYTHONINSPECT", "PYTHONSTARTUP", "PYTHONPROFILEIMPORTTIME", "PYTHONVERBOSE"),
)
_INSTEAD = {"PYTHONUTF8": "1"}


def withhold(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for Ray's processes, in which other processes find what it lacks."""
    withheld = {name: environment.get(name) for name in _NAMES}
    kept = {name: value for name, value in environment.items() if name not in _NAMES}
    return kept | _INSTEAD | {_VARIABLE: json.dumps(withheld)}


def restore_withheld() -> None:
    """Give this process, a worker, the variables that Ray's processes did not get."""
    for name, value in json.loads(os.environ.pop(_VARIABLE, "{}")).items():
        if value:
            os.environ[name] = value
        else:
            os.environ.pop(name, None)
    tempfile.tempdir = None

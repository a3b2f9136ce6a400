"""Temporary directories that end with the process that made them, however it ends."""

from __future__ import annotations

import os
import subprocess
import tempfile
from typing import Final

# Gives a worker of our own cluster the TMPDIR of the process that started it; empty if it had none.
CALLERS_TMPDIR: Final = "SYNAPSE_CALLERS_TMPDIR"

# Deletes a directory when its input closes, which is when the last process ends that holds the other end. A shell, as
# it is small; in the background of one that has ended, so that nobody takes it for a child of the worker.
_DELETE_LATER = 'trap "" HUP INT TERM; exec 3<&0; (cat <&3 >/dev/null; rm -rf -- "$1") & exit 0'


def temporary_directory(prefix: str) -> str:
    """Make a temporary directory, which is deleted when this process has ended, killed or not.

    Args:
        prefix: What its name begins with.
    """
    directory = tempfile.mkdtemp(prefix=prefix)
    deleter = subprocess.Popen(
        ["/bin/sh", "-c", _DELETE_LATER, "sh", directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    assert deleter.stdin is not None
    os.dup(deleter.stdin.fileno())  # stays open as long as this process is there
    deleter.stdin.close()
    deleter.wait()
    return directory

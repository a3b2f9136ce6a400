"""Temporary directories that are deleted when the process that created them exits, even if it is killed."""

from __future__ import annotations

import os
import subprocess
import tempfile

# Deletes a directory when its stdin closes: when the last process that holds the other end exits. A shell because it is
# small; in the background of a shell that has exited, so that it does not count as a child of the worker.
_DELETE_LATER = 'trap "" HUP INT TERM; exec 3<&0; (cat <&3 >/dev/null; rm -rf -- "$1") & exit 0'


def temporary_directory(prefix: str) -> str:
    """Create a temporary directory, which is deleted when this process exits, even if it is killed.

    Args:
        prefix: The prefix of its name.
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
    os.dup(deleter.stdin.fileno())  # stays open until this process exits
    deleter.stdin.close()
    deleter.wait()
    return directory

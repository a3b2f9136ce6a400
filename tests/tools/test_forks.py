"""A fork is like a Python of its own: arguments, environment, directory, outputs, status, time limit and end."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.cli.processes import command_of
from tests.forks import ForkServer, fork_server
from tests.patience import patience, within

SHOW = """
import json, os, sys
print(json.dumps({"arguments": sys.argv, "path": sys.path[:2], "cwd": os.getcwd(), "env": dict(os.environ)}))
print("aside", file=sys.stderr)
sys.exit(int(sys.argv[-1]))
"""


@pytest.fixture(scope="module")
def server() -> ForkServer:
    server = fork_server({})
    server.run(["-c", ""], cwd="/", env=environment(), timeout=patience(60))  # it is there now
    return server


def environment(**more: str) -> dict[str, str]:
    """Return an environment with what Python reads as it starts, and a few variables more."""
    return {name: value for name, value in os.environ.items() if name.startswith("PYTHON")} | more


def test_a_program_gets_what_it_was_given_and_its_outputs_and_status_come_back(server, tmp_path):
    (tmp_path / "show.py").write_text(SHOW)
    env = environment(GIVEN="größer", PYTHONPATH="/first")
    for program, arguments in ((["-c", SHOW], ["-c"]), ([str(tmp_path / "show.py")], [str(tmp_path / "show.py")])):
        done = server.run([*program, "a b", "3"], cwd=tmp_path, env=env, timeout=30)
        assert (done.returncode, done.stderr) == (3, "aside\n")
        shown = json.loads(done.stdout)
        assert shown["arguments"] == [*arguments, "a b", "3"]
        assert shown["env"] == env
        assert shown["cwd"] == str(tmp_path)
        assert shown["path"] == ["" if program[0] == "-c" else str(tmp_path), "/first"]


def test_a_module_is_found_in_the_directory(server, tmp_path):
    (tmp_path / "only_here.py").write_text("import sys\nprint(__name__, sys.argv[1:])\n")
    done = server.run(["-m", "only_here", "x"], cwd=tmp_path, env=environment(), timeout=30)
    assert done.stdout == "__main__ ['x']\n"


def test_forks_know_nothing_of_each_other_and_exit_like_any_interpreter(server, tmp_path):
    program = (
        "import atexit, os, sys; print('seen' in dir(os)); os.seen = 1; atexit.register(print, 'at exit'); "
        "sys.stdout.write('no newline')"
    )
    for _ in range(2):
        done = server.run(["-c", program], cwd=tmp_path, env=environment(), timeout=30)
        assert done.stdout == "False\nno newlineat exit\n"


def test_an_exception_is_shown_as_python_shows_it_and_a_signal_is_told(server, tmp_path):
    done = server.run(["-c", "1 / 0"], cwd=tmp_path, env=environment(), timeout=30)
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
    done = server.run(["-c", "import os; os.kill(os.getpid(), 9)"], cwd=tmp_path, env=environment(), timeout=30)
    assert done.returncode == -9


def test_a_program_that_takes_too_long_is_killed(server, tmp_path):
    program = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(subprocess.TimeoutExpired):
        server.run(["-c", program], cwd=tmp_path, env=environment(), timeout=patience(3))
    pid = int((tmp_path / "pid").read_text())
    assert within(10, lambda: not command_of(pid))


def test_what_python_reads_as_it_starts_is_refused(server, tmp_path):
    with pytest.raises(AssertionError, match="PYTHONHASHSEED is read as Python starts: start it itself"):
        server.run(["-c", ""], cwd=tmp_path, env=environment(PYTHONHASHSEED="1"), timeout=30)

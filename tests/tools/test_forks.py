"""Tests that a fork behaves like a separate Python: arguments, environment, directory, output, status, timeout."""

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
print("to stderr", file=sys.stderr)
sys.exit(int(sys.argv[-1]))
"""


@pytest.fixture(scope="module")
def server() -> ForkServer:
    server = fork_server({})
    server.run(["-c", ""], cwd="/", env=environment(), timeout=patience(60))  # wait until it has started
    return server


def environment(**more: str) -> dict[str, str]:
    """Return an environment with the variables that Python reads at startup, and these."""
    return {name: value for name, value in os.environ.items() if name.startswith("PYTHON")} | more


def test_program_gets_its_arguments_and_returns_output_and_status(server, tmp_path):
    (tmp_path / "show.py").write_text(SHOW)
    env = environment(GIVEN="größer", PYTHONPATH="/first")
    for program, arguments in ((["-c", SHOW], ["-c"]), ([str(tmp_path / "show.py")], [str(tmp_path / "show.py")])):
        done = server.run([*program, "a b", "3"], cwd=tmp_path, env=env, timeout=30)
        assert (done.returncode, done.stderr) == (3, "to stderr\n")
        shown = json.loads(done.stdout)
        assert shown["arguments"] == [*arguments, "a b", "3"]
        assert shown["env"] == env
        assert shown["cwd"] == str(tmp_path)
        assert shown["path"] == ["" if program[0] == "-c" else str(tmp_path), "/first"]


def test_module_is_found_in_the_working_directory(server, tmp_path):
    (tmp_path / "only_here.py").write_text("import sys\nprint(__name__, sys.argv[1:])\n")
    done = server.run(["-m", "only_here", "x"], cwd=tmp_path, env=environment(), timeout=30)
    assert done.stdout == "__main__ ['x']\n"


def test_forks_are_isolated_and_run_exit_handlers(server, tmp_path):
    program = (
        "import atexit, os, sys; print('seen' in dir(os)); os.seen = 1; atexit.register(print, 'at exit'); "
        "sys.stdout.write('no newline')"
    )
    for _ in range(2):
        done = server.run(["-c", program], cwd=tmp_path, env=environment(), timeout=30)
        assert done.stdout == "False\nno newlineat exit\n"


def test_exceptions_and_signals_set_output_and_status(server, tmp_path):
    done = server.run(["-c", "1 / 0"], cwd=tmp_path, env=environment(), timeout=30)
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
    done = server.run(["-c", "import os; os.kill(os.getpid(), 9)"], cwd=tmp_path, env=environment(), timeout=30)
    assert done.returncode == -9


def test_program_is_killed_after_its_timeout(server, tmp_path):
    program = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(subprocess.TimeoutExpired):
        server.run(["-c", program], cwd=tmp_path, env=environment(), timeout=patience(3))
    pid = int((tmp_path / "pid").read_text())
    assert within(10, lambda: not command_of(pid))


def test_variables_read_at_startup_are_rejected(server, tmp_path):
    with pytest.raises(AssertionError, match="PYTHONHASHSEED is read when Python starts: start Python directly"):
        server.run(["-c", ""], cwd=tmp_path, env=environment(PYTHONHASHSEED="1"), timeout=30)

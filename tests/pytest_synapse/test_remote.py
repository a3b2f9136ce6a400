"""Remote mode in pytest sessions: the backend of a run, what is skipped, and a backend that is named."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_runtime.executors.remote.embedded_server import EmbeddedServer, serve_embedded
from tests.patience import patience
from tests.pytest_synapse.conftest import Project, session_environment

ACTIONS = """\
import logging
import os
import time

import numpy

from synapse_runtime.decorators import action


@action
def double(params, context):
    return 2 * params["number"]


@action
def server(params, context):
    return os.environ["SYNAPSE_HOST"]


@action
def ask(params, context):
    client = context.client
    return client.host, client.job(context.job_id).status if "SYNAPSE_JOB_ID" in os.environ else None


@action
def has_client(params, context):
    return context.client is not None


@action
def where(params, context):
    logging.getLogger("demo").warning("here")
    return os.getcwd()


@action
def array(params, context):
    return numpy.arange(3)


@action
def nap(params, context):
    with open(params["path"], "a") as file:
        while True:
            file.write(".")
            file.flush()
            time.sleep(0.05)
"""
CONFIG = """\
code: demo
actions:
  double: {entrypoint: "plugin.actions:double"}
  server: {entrypoint: "plugin.actions:server"}
  ask: {entrypoint: "plugin.actions:ask"}
  has_client: {entrypoint: "plugin.actions:has_client"}
  where: {entrypoint: "plugin.actions:where"}
  array: {entrypoint: "plugin.actions:array"}
  nap: {entrypoint: "plugin.actions:nap"}
"""
MIXED = """\
from synapse_runtime.decorators import action


@action
def of_the_test(params, context):
    return 1


def test_double(synapse_executor):
    assert synapse_executor.execute("double", {"number": 2}) == 4


def test_action_of_the_test(synapse_executor):
    assert synapse_executor.execute(of_the_test) == 1


def test_array(synapse_executor):
    assert list(synapse_executor.execute("array")) == [0, 1, 2]


def test_params(synapse_executor):
    with pytest.raises(Exception):  # must not hide that this mode cannot run the test
        synapse_executor.execute("double", {"number": double})


def double():
    pass
"""


@pytest.fixture
def demo(project: Project) -> Project:
    project.plugin(config=CONFIG, actions=ACTIONS)
    return project


@pytest.fixture(scope="module")
def named() -> Iterator[EmbeddedServer]:
    with serve_embedded() as server:
        yield server


def test_backend_is_started_for_the_run_and_named_in_header_and_summary(demo: Project) -> None:
    demo.test("def test_double(synapse_executor):\n    assert synapse_executor.execute('double', {'number': 2}) == 4\n")
    done = demo.pytest("--synapse-mode=remote", "-v")
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines(
        ["synapse: mode remote; backend: started for this run", "backend: http://127.0.0.1:* (started for this run)"]
    )


def test_what_a_backend_cannot_run_is_skipped_with_the_reason_and_counted(demo: Project) -> None:
    demo.test(MIXED)
    done = demo.pytest("--synapse-mode=local,remote", "-rs")
    done.assert_outcomes(passed=5, skipped=3)
    done.stdout.fnmatch_lines(
        [
            "remote: 3 tests skipped, as a backend cannot run them: -rs shows why",
            "SKIPPED * demo/tests/test_it.py:15: remote mode: test_it.of_the_test cannot be sent to a backend: *",
            "SKIPPED * demo/tests/test_it.py:19: remote mode: the result of array contains a numpy:ndarray, which *",
            "SKIPPED * demo/tests/test_it.py:24: remote mode: double: params?'number'? is a function, which cannot *",
        ]
    )


def test_strict_sessions_fail_instead(demo: Project) -> None:
    demo.ini("synapse_remote_strict = true\n")
    demo.test(MIXED.replace("Exception", "ValueError"))
    done = demo.pytest("--synapse-mode=remote")
    done.assert_outcomes(passed=1, failed=3)
    done.stdout.fnmatch_lines(["E*NotSupportedRemotely: test_it.of_the_test cannot be sent to a backend*"])


def test_processes_of_xdist_share_one_backend(demo: Project) -> None:
    demo.test(
        """\
        @pytest.mark.parametrize("number", range(6))
        def test_server(synapse_executor, synapse_backend, number):
            host = synapse_executor.execute("server")
            assert host == synapse_backend.host
            print("host", host)
        """
    )
    done = demo.pytest("--synapse-mode=remote", "-n", "3", "-rP")
    done.assert_outcomes(passed=6)
    assert len({*re.findall(r"^host (\S+)$", done.stdout.str(), re.MULTILINE)}) == 1


def test_fixture_has_a_client_of_the_backend_in_every_mode(demo: Project) -> None:
    demo.test(
        """\
        def test_jobs(synapse_executor, synapse_backend, synapse_mode):
            run = synapse_executor.run("double", {"number": 1})
            found = [job for job in synapse_backend.client.jobs() if job.id == run.job_id]
            assert [job.status for job in found] == (["SUCCEEDED"] if synapse_mode == "remote" else [])
            assert synapse_backend.token not in repr(synapse_backend)
            assert [agent.name for agent in synapse_backend.client.agents()] == ["local"]
        """
    )
    demo.pytest("--synapse-mode=local,remote").assert_outcomes(passed=2)


def test_client_of_an_actions_context_is_one_of_the_backend(demo: Project) -> None:
    demo.test(
        """\
        def test_client(synapse_executor, synapse_backend, synapse_mode):
            host, status = synapse_executor.execute("ask")
            assert host == synapse_backend.host
            assert status == ("RUNNING" if synapse_mode == "remote" else None)

        def test_without(synapse_executor, synapse_mode):
            assert (synapse_executor.execute("has_client") is False) == (synapse_mode == "local")
        """
    )
    demo.pytest("--synapse-mode=local,remote").assert_outcomes(passed=4)


def test_named_backend_is_used_with_the_token_of_a_file(demo: Project, named: EmbeddedServer) -> None:
    token = demo.write("secret/token", named.token + "\n")
    demo.ini(f"synapse_host = {named.host}\nsynapse_token_file = secret/token\n")
    demo.test("def test_double(synapse_executor):\n    assert synapse_executor.execute('double', {'number': 2}) == 4\n")
    done = demo.pytest("--synapse-mode=remote", "-v")
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines([f"synapse: mode remote; backend: {named.host}", f"backend: {named.host} (option)"])
    other = demo.pytest("--synapse-mode=remote", "--synapse-host=http://127.0.0.1:1", f"--synapse-token-file={token}")
    other.assert_outcomes(failed=1)
    other.stdout.fnmatch_lines(["E*http://127.0.0.1:1 cannot be reached*"])
    assert named.token not in done.stdout.str() + other.stdout.str()


def test_paths_and_coverage_are_those_of_this_machine_if_the_plugin_was_published(
    demo: Project, named: EmbeddedServer
) -> None:
    token = demo.write("secret/token", named.token + "\n")
    demo.test(
        """\
        import logging

        def test_double(synapse_executor):
            assert synapse_executor.execute("double", {"number": 2}) == 4

        def test_where(synapse_executor, caplog):
            assert synapse_executor.execute("where").startswith("/")
            assert caplog.records[0].pathname == __file__.replace("tests/test_it.py", "plugin/actions.py")

        def test_missing(synapse_executor):
            synapse_executor.execute("double", {})
        """
    )
    options = (f"--synapse-host={named.host}", f"--synapse-token-file={token}")
    done = demo.pytest("--synapse-mode=remote", *options, "--cov=plugin", "--cov-report=term-missing")
    done.assert_outcomes(passed=2, failed=1)
    done.stdout.fnmatch_lines(['>       return 2 * params["number"]', "E       KeyError: 'number'"])
    done.stdout.fnmatch_lines(["demo/plugin/actions.py:*: KeyError"])
    local = demo.pytest("--synapse-mode=local", "--cov=plugin", "--cov-report=term-missing")
    measured = [line for line in done.outlines if line.startswith("demo/plugin/actions.py  ")]
    assert measured
    assert measured == [line for line in local.outlines if line.startswith("demo/plugin/actions.py  ")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--synapse-host=http://127.0.0.1:1", "--synapse-token-file=nowhere"], "the token file '*nowhere' cannot be*"),
        (["--synapse-host=https://example.com"], "no credentials for https://example.com: run `synapse login`*"),
        (
            ["--synapse-host=http://example.com"],
            "http://example.com would get the token without encryption: use https*",
        ),
    ],
)
def test_unusable_backend_is_an_error_of_the_test(
    demo: Project, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    if "would get" in message:
        monkeypatch.setenv("SYNAPSE_ACCESS_TOKEN", "syn_x")
    demo.test("def test_double(synapse_executor):\n    synapse_executor.execute('double', {'number': 2})\n")
    done = demo.pytest("--synapse-mode=remote", *options)
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines([message])
    done.stdout.no_fnmatch_line("*session.py*")


def test_host_that_is_not_a_url_is_a_usage_error(demo: Project) -> None:
    done = demo.pytest("--synapse-mode=remote", "--synapse-host=ftp://x")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*--synapse-host: *ftp://x*"])


def test_token_file_without_a_host_is_a_usage_error(demo: Project) -> None:
    done = demo.pytest("--synapse-mode=remote", "--synapse-token-file=token")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*--synapse-token-file: give --synapse-host too, the backend that the token is for"])


def test_nothing_is_started_without_a_test_that_needs_it(demo: Project) -> None:
    demo.test("def test_nothing():\n    pass\n")
    before = _servers()
    demo.pytest("--synapse-mode=remote").assert_outcomes(passed=1)
    assert _servers() <= before


@pytest.mark.parametrize("processes", ["0", "2"])
def test_nothing_is_left_of_a_killed_session(demo: Project, processes: str) -> None:
    ticks = demo.path / "ticks"
    demo.test(f"def test_nap(synapse_executor):\n    synapse_executor.execute('nap', {{'path': {str(ticks)!r}}})\n")
    command = [sys.executable, "-m", "pytest", "--synapse-mode=remote", "-n", processes, "-p", "no:cacheprovider"]
    session = subprocess.Popen(
        command, cwd=demo.path, env=session_environment(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait_until(lambda: ticks.exists() and ticks.stat().st_size > 3, 60)
        started = _servers_of(session.pid)
        assert started
    finally:
        os.kill(session.pid, signal.SIGKILL)
        session.wait()
    _wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), 10)
    size = ticks.stat().st_size
    time.sleep(0.5)
    assert ticks.stat().st_size == size


def _servers() -> set[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"synapse_runtime.server.embedded" in command:
                found.add(int(entry.name))
    return found


def _servers_of(pid: int) -> set[int]:
    return {server for server in _servers() if f"\0{pid}\0" in Path(f"/proc/{server}/cmdline").read_text()}


def _wait_until(condition: object, seconds: float) -> None:
    deadline = time.monotonic() + patience(seconds)
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)

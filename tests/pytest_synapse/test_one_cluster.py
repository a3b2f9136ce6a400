"""One cluster for a run, with any number of pytest-xdist processes; kept for the next run if requested."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.processes import MARK, command_of, processes_with
from tests.forks import fork_server
from tests.patience import patience, within
from tests.pytest_synapse.conftest import Project

ACTIONS = """\
import os
import time
from pathlib import Path

from synapse_runtime.decorators import action

VERSION = 1


@action
def double(params, context):
    return 2 * params["number"]


@action
def version(params, context):
    return VERSION


@action
def nap(params, context):
    Path(params["started"]).touch()
    time.sleep(60)


@action
def resources(params, context):
    import ray

    return ray.cluster_resources()
"""

CONFIG = """\
code: shared
actions:
  double: {entrypoint: "plugin.actions:double"}
  version: {entrypoint: "plugin.actions:version"}
  nap: {entrypoint: "plugin.actions:nap"}
  resources: {entrypoint: "plugin.actions:resources"}
"""


class Run:
    """A pytest session in a separate process; it and its descendants are found by a mark in their environment."""

    def __init__(self, project: Project, temp: Path, state: Path, *arguments: str) -> None:
        self.temp = temp
        self.mark = uuid.uuid4().hex
        self._output = project.path / f"output-{self.mark}"
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
                cwd=project.path,
                env={**os.environ, MARK: self.mark, "TMPDIR": str(temp), "XDG_STATE_HOME": str(state)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        """Its output so far."""
        return self._output.read_text()

    def wait(self) -> int:
        """Wait until it exits and return its exit status.

        Ray takes a minute to give up on a process that was connecting when the cluster crashed.
        """
        return self.process.wait(timeout=patience(240))

    def processes(self, of: str = "") -> list[str]:
        """Return the command lines of its running processes."""
        commands = [command_of(pid) for pid in processes_with(self.mark)]
        return [command for command in commands if of in command]

    def leftovers(self, seconds: float = 10) -> list[str]:
        """Return the processes and files that are left after this many seconds."""
        found: list[str] = []

        def are_gone() -> bool:
            found[:] = [*self.processes(), *map(str, self.temp.iterdir())]
            return not found

        within(seconds, are_gone)
        return found


@pytest.fixture
def shared(project: Project) -> Project:
    project.plugin("demo", CONFIG, ACTIONS)
    return project


@pytest.fixture
def temp() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="s", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
def pytest_in(shared: Project, temp: Path, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Start a session; all sessions of a test share one state directory."""
    runs: list[Run] = []

    def start(*arguments: str) -> Run:
        runs.append(Run(shared, temp, tmp_path / "state", *arguments))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()
    if (tmp_path / "state").exists():  # a run has kept its cluster
        env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
        down = ["-m", "synapse_runtime", "cluster", "down"]
        assert fork_server(env).run(down, cwd=tmp_path, env=env, timeout=patience(60)).returncode == 0


def test_all_workers_share_one_cluster_with_the_requested_resources_and_a_killed_one_loses_only_its_test(
    shared, pytest_in
):
    shared.test(
        """
        import os

        @pytest.mark.parametrize("number", range(12))
        def test_double(synapse_executor, number):
            run = synapse_executor.run("double", {"number": number})
            assert run.unwrap() == 2 * number
            with open("seen.txt", "a") as file:
                file.write(f"{os.environ['PYTEST_XDIST_WORKER']} {run.pid} {run.node}\\n")

        @pytest.mark.synapse(num_gpus=2)
        @pytest.mark.parametrize("number", range(2))
        def test_resources_are_released_after_a_test(synapse_executor, number):
            found = synapse_executor.execute("resources")
            assert (found["CPU"], found["GPU"]) == (3, 2)
        """
    )
    shared.test(
        """
        import os, signal
        from pathlib import Path

        def test_killed(synapse_executor):
            # Once the other tests have started, so that each worker has run some.
            assert synapse_executor.execute("double", {"number": 1}) == 2
            os.kill(os.getpid(), signal.SIGKILL)

        @pytest.mark.parametrize("number", range(4))
        def test_after(synapse_executor, number):
            assert synapse_executor.execute("double", {"number": number}) == 2 * number
        """,
        name="demo/tests/test_last.py",
    )
    run = pytest_in("--synapse-mode=task", "--synapse-num-cpus=3", "--synapse-num-gpus=2", "-n3")
    servers: set[int] = set()
    while run.process.poll() is None:
        servers |= {pid for pid in processes_with(run.mark) if "gcs_server" in command_of(pid)}
        time.sleep(0.05)

    assert run.wait() == 1, run.output
    assert "test_killed" in run.output
    assert "1 failed, 18 passed" in run.output
    assert len(servers) == 1
    seen = [line.split() for line in (shared.path / "seen.txt").read_text().splitlines()]
    assert len({node for _, _, node in seen}) == 1
    workers = {worker for worker, _, _ in seen}
    assert {"gw0", "gw1", "gw2"} <= workers
    # A Ray worker belongs to one xdist process, which may have got a new one after a test with GPUs.
    assert len({(worker, pid) for worker, pid, _ in seen}) == len({pid for _, pid, _ in seen}) >= 3
    assert run.leftovers() == []


def test_no_cluster_is_started_if_no_test_needs_one(shared, pytest_in):
    shared.test(
        """
        import time

        @pytest.mark.synapse(mode="local")
        @pytest.mark.parametrize("number", range(4))
        def test_double(synapse_executor, number):
            assert synapse_executor.execute("double", {"number": number}) == 2 * number
        """
    )
    run = pytest_in("--synapse-mode=task", "-n2")
    seen: list[str] = []
    while run.process.poll() is None:
        seen += run.processes("cluster.daemon")
        time.sleep(0.02)

    assert run.wait() == 0, run.output
    assert seen == []
    assert run.leftovers() == []


def test_cluster_starts_during_collection_and_ends_with_a_session_whose_collection_fails(shared, pytest_in):
    """It does not start before a test is found that needs it, and not if that test may be deselected."""
    shared.test("def test_double(synapse_executor): synapse_executor.execute('double', {'number': 1})\n")
    shared.test(
        """
        import os
        import time
        from pathlib import Path

        def daemons():
            for entry in Path("/proc").glob("[0-9]*"):
                try:
                    if os.environ["SYNAPSE_TEST_MARK"].encode() in (entry / "environ").read_bytes():
                        if b"cluster.daemon" in (entry / "cmdline").read_bytes():
                            yield entry
                except OSError:
                    continue

        print("seen", len(list(daemons())))
        """,
        name="demo/tests/test_later.py",
    )
    broken = shared.test("import nowhere\n", name="demo/tests/test_very_last.py")
    run = pytest_in("--synapse-mode=task", "-s")
    assert run.wait() == pytest.ExitCode.INTERRUPTED, run.output
    assert "seen 1\n" in run.output
    assert "No module named 'nowhere'" in run.output
    assert run.leftovers() == []
    broken.unlink()
    for arguments in (
        ["--synapse-mode=local"],
        ["--synapse-mode=task", "-k", "double"],
        ["--synapse-mode=task", "--co"],
    ):
        run = pytest_in("-s", *arguments)
        assert run.wait() == 0, run.output
        assert "seen 0\n" in run.output
    assert run.leftovers() == []


NAPS = """
    @pytest.mark.parametrize("number", range(2))
    def test_nap(synapse_executor, number):
        synapse_executor.execute("nap", {"started": f"started-{number}"})
    """


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_nothing_is_left_if_the_controller_is_killed(shared, pytest_in, number):
    shared.test(NAPS)
    run = pytest_in("--synapse-mode=task", "-n2")
    started = [shared.path / "demo" / f"started-{number}" for number in range(2)]
    assert within(60, lambda: all(path.exists() for path in started)), run.output
    assert len(run.processes("gcs_server")) == 1

    run.process.send_signal(number)
    run.process.wait(timeout=patience(30))

    assert run.leftovers() == []


def test_executors_created_by_a_test_use_the_cluster_of_the_run_in_every_xdist_worker(shared, pytest_in):
    shared.test(
        """
        from pathlib import Path

        @pytest.mark.parametrize("number", range(8))
        def test_spec(number, tmp_path_factory):
            from synapse_runtime.executors.ray.cluster.session_scope import current_spec

            (Path.cwd() / f"spec-{number}").write_text(current_spec.get().directory)
        """
    )
    run = pytest_in("-n2")

    assert run.wait() == 0
    assert len({path.read_text() for path in shared.path.glob("spec-*")}) == 1
    assert len([*shared.path.glob("spec-*")]) == 8


def test_crashed_cluster_is_replaced_for_all_workers(shared, pytest_in):
    shared.test(
        """
        import os, signal
        from pathlib import Path

        @pytest.mark.parametrize("number", range(8))
        def test_double(synapse_executor, number):
            assert synapse_executor.execute("double", {"number": number}) == 2 * number
            if number == 2:
                for entry in Path("/proc").glob("[0-9]*"):
                    try:
                        mark = os.environ["SYNAPSE_TEST_MARK"].encode() in (entry / "environ").read_bytes()
                        is_server = b"gcs_server" in (entry / "cmdline").read_bytes()
                    except OSError:
                        continue
                    if mark and is_server:
                        os.kill(int(entry.name), signal.SIGKILL)
        """
    )
    run = pytest_in("--synapse-mode=task", "-n2")

    run.wait()

    # Tests that run when it crashes may fail; the others get a new cluster.
    passed = int(run.output.rpartition(" passed")[0].rpartition(" ")[2].rpartition(",")[2])
    assert passed >= 6, run.output
    assert run.leftovers() == []


def test_kept_cluster_is_reused_by_the_next_run_with_the_current_code(shared, pytest_in):
    shared.test(
        """
        def test_version(synapse_executor):
            run = synapse_executor.run("version")
            print("\\nversion", run.unwrap(), "on node", run.node)
        """
    )
    first = pytest_in("--synapse-mode=task", "--synapse-keep-cluster", "-s")
    assert first.wait() == 0, first.output
    assert "cluster: ephemeral, started when first needed" in first.output
    assert len(first.processes("gcs_server")) == 1
    source = shared.path / "demo/plugin/actions.py"
    source.write_text(source.read_text().replace("VERSION = 1", "VERSION = 2"))
    second = pytest_in("--synapse-mode=task,job", "-s")
    assert second.wait() == 0, second.output

    node = first.output.partition("version 1 on node ")[2].partition("\n")[0]
    assert node
    assert "cluster: warm, 127.0.0.1:" in second.output
    assert f"version 2 on node {node}\n" in second.output
    assert second.output.count("(warm, see `synapse cluster status`)\n") == 1
    assert second.output.count("version 2 on node") == 2
    assert second.processes() == []
    assert len(first.processes("gcs_server")) == 1


@pytest.mark.thorough
def test_cluster_kept_by_several_workers_is_reused(shared, pytest_in):
    shared.test(
        """
        @pytest.mark.parametrize("number", range(4))
        def test_double(synapse_executor, number):
            assert synapse_executor.execute("double", {"number": number}) == 2 * number
        """
    )
    first = pytest_in("--synapse-mode=task", "--synapse-keep-cluster", "-n2")
    assert first.wait() == 0, first.output
    assert len(first.processes("gcs_server")) == 1

    second = pytest_in("--synapse-mode=task", "-n2", "-v")
    assert second.wait() == 0, second.output
    assert "cluster: warm" in second.output
    assert second.processes() == []


@pytest.mark.parametrize(("cpus", "mode"), [("3", "task"), ("1", "job")])
def test_auto_starts_one_process_per_cpu_of_the_cluster(shared, pytest_in, cpus, mode):
    shared.test("def test_nothing(): pass\n")
    run = pytest_in(f"--synapse-mode={mode}", "-nauto", f"--synapse-num-cpus={cpus}", "-v")
    assert run.wait() == 0, run.output
    assert f"{cpus} worker" in run.output
    assert run.processes("cluster.daemon") == []


def test_auto_uses_the_environment_variable_of_xdist_if_set(shared, monkeypatch, pytest_in):
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "3")
    shared.test("def test_nothing(): pass\n")
    for mode in ("local", "task"):
        run = pytest_in(f"--synapse-mode={mode}", "-nauto", "--synapse-num-cpus=1")
        assert run.wait() == 0, run.output
        assert "3 workers" in run.output


@pytest.mark.parametrize(
    ("option", "value"),
    [("--synapse-num-cpus", "0"), ("--synapse-num-cpus", "many"), ("--synapse-num-gpus", "-1")],
)
def test_invalid_number_of_cpus_or_gpus_is_a_usage_error(shared, option, value):
    result = shared.pytest(f"{option}={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"argument {option}: expected an integer of at least" in result.stderr.str()
    assert repr(value) in result.stderr.str()


@pytest.mark.parametrize("option", ["--synapse-num-cpus=2", "--synapse-num-gpus=1", "--synapse-keep-cluster"])
def test_options_for_our_own_cluster_conflict_with_an_address(shared, option, monkeypatch):
    name = option.partition("=")[0]
    assert f"{name} applies to a cluster that this run starts, but --synapse-ray-address names another" in (
        shared.usage_error(option, "--synapse-ray-address=10.0.0.1:6379")
    )
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert "but RAY_ADDRESS names another" in shared.usage_error(option)


@pytest.mark.thorough
def test_other_cluster_on_the_machine_is_not_touched(shared, pytest_in, temp):
    from tests.cli.processes import cluster

    shared.test("def test_double(synapse_executor): synapse_executor.execute('double', {'number': 1})\n")
    with cluster(num_cpus=1) as other:
        run = pytest_in("--synapse-mode=task", "-n2")
        assert run.wait() == 0, run.output
        import urllib.request

        headers = {"Authorization": f"Bearer {other['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{other['dashboard']}/api/version", headers=headers)
        with contextlib.closing(urllib.request.urlopen(request, timeout=patience(10))) as answer:
            assert answer.status == 200

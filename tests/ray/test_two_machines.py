"""A cluster on other machines with their own file systems: the plugin is uploaded, and results are the same as locally.

The machines are Linux namespaces (see `machines`). Tests call from the main machine, whose directory `laptop` no other
machine has. The cluster has a `head` without CPUs, a `worker` with two, and a `bare` node with a fake GPU. All three
have an `image` with Python and Ray; the first two also have this runtime in it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import textwrap
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.forks import ForkServer, new_server
from tests.patience import patience
from tests.pytest_synapse.conftest import session_environment
from tests.ray.clusters import PATIENT, ray_start
from tests.ray.machines import NETWORK, Machines, unsupported_reason

ROOT = Path(__file__).parents[2]
PLUGINS = (ROOT / "example_plugin", ROOT / "tests" / "ray" / "remote_plugin")
PACKAGES = ("synapse_runtime", "pytest_synapse")
BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef0123456789abcdef"
OBJECT_STORE = "--object-store-memory=80000000"  # the minimum that Ray accepts

MISSING_RUNTIME = "the cluster's nodes do not have this runtime: install pytest-synapse-harness in their image"
MESSAGE = '"nothing found"'

# Joins a cluster once its head has started. Starting both at once may take longer than Ray waits, on a busy machine.
JOIN = """\
import os, socket, sys, time
while True:
    try:
        socket.create_connection((sys.argv[1], 10001), timeout=1).close()
        break
    except OSError:
        time.sleep(0.2)
os.execv(sys.argv[2], sys.argv[2:])
"""

CALL = """\
import json, sys
from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor
from synapse_runtime.loggers import NullLogger

def executor(**options):
    address = sys.argv[1]
    cls = RayJobsApiExecutor if address.startswith("http") else RayActorExecutor
    return cls(**{"plugin": ".", "ray_address": address, "num_cpus": 1, "logger": NullLogger(), **options})

def report(value):
    print("\\n>>>" + json.dumps(value))

"""


CREDENTIALS = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


class Environment(NamedTuple):
    """The machines, the base directory of their files, and a server for Python programs on the main machine."""

    machines: Machines
    base: Path
    programs: ForkServer

    @property
    def addresses(self) -> dict[str, str]:
        """The cluster's address for each mode, from the main machine."""
        head = self.machines.addresses["head"]
        return {"task": f"ray://{head}:10001", "job": f"http://{head}:8265"}

    def run(self, *arguments: str, plugin: Path, on: str = "", **env: str) -> tuple[int, str]:
        """Run a Python program in a plugin's directory; return its exit status and its whole output."""
        environment = session_environment() | CREDENTIALS | {"TMPDIR": str(self.base / "shared"), **env}
        if on:
            command = [sys.executable, *arguments]
            done = self.machines.run(command, on=on, cwd=plugin, env=environment, timeout=patience(500))
        else:
            done = self.programs.run(arguments, cwd=plugin, env=environment, timeout=patience(500))
        return done.returncode, done.stdout + done.stderr

    def pytest(self, plugin: Path, *arguments: str, on: str = "", **env: str) -> tuple[int, str]:
        """Run a plugin's tests."""
        return self.run("-m", "pytest", "-p", "no:cacheprovider", *arguments, plugin=plugin, on=on, **env)

    def call(self, mode: str, plugin: Path, code: str) -> Any:
        """Run code that uses `executor` and calls `report`; return the reported value."""
        program = CALL + textwrap.dedent(code)
        _, output = self.run("-c", program, self.addresses[mode], plugin=plugin)
        reports = [line for line in output.splitlines() if line.startswith(">>>")]
        assert reports, output
        return json.loads(reports[-1].removeprefix(">>>"))

    def plugin(self, name: str, **files: str) -> Path:
        """Copy the plugin on the main machine and add files; a text that starts with `+` is appended to a file."""
        directory = self.base / "laptop" / name
        shutil.copytree(self.base / "laptop" / "remote_plugin", directory)
        for file, text in files.items():
            path = directory / file.replace("__", ".")
            path.write_text(path.read_text() + text[1:] if text.startswith("+") else text)
        return directory

    def left_on(self, node: str) -> list[str]:
        """Return files that workers have left on a node."""
        found = self.machines.run(["ls", str(self.base / "tmp")], on=node).stdout.split()
        return [name for name in found if name.startswith("synapse-")]


@pytest.fixture(scope="module")
def environment() -> Iterator[Environment]:
    reason = unsupported_reason()
    if reason is not None:
        pytest.skip(reason)
    base = Path(tempfile.mkdtemp(prefix="sy", dir="/tmp"))  # short, for Ray's sockets
    for name in ("image", "laptop", "head", "shared", "tmp", "ray", "log"):
        (base / name).mkdir()
    for package in PACKAGES:
        shutil.copytree(ROOT / package, base / "image" / package, ignore=shutil.ignore_patterns("__pycache__"))
    for plugin in PLUGINS:
        shutil.copytree(plugin, base / "laptop" / plugin.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PLUGINS[0], base / "head" / "example_plugin", ignore=shutil.ignore_patterns("__pycache__"))
    # The editable installation refers to the working copy of the packages, which is hidden on the nodes.
    disks = [base / "tmp", base / "ray", base / "laptop", "/dev/shm", ROOT / "tests", ROOT / "example_plugin"]
    disks += [ROOT / package for package in PACKAGES]
    bare = {
        "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(base / "tmp"),
        "TMPDIR": str(base / "tmp"),
        **CREDENTIALS,
        **PATIENT,
        "RAY_USAGE_STATS_ENABLED": "0",
        # How long Ray Client's server waits for the process that it starts for each client; 30 s by default.
        "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": f"{patience(60):.0f}",
        "RUNTIME_ENV_RETRY_TIMES": "1",  # retrying a failed installation would not help
        "PIP_NO_INDEX": "1",
        "UV_OFFLINE": "1",
    }
    image = {**bare, "PYTHONPATH": str(base / "image")}
    head, worker, third = (f"{NETWORK}.{number}" for number in (2, 3, 4))
    start = ray_start(sys.executable, OBJECT_STORE, ports=range(52365, 52369))
    join = [sys.executable, "-c", JOIN, head, *start, f"--address={head}:6379"]
    serve = ["--head", "--port=6379", "--dashboard-host=0.0.0.0", "--ray-client-server-port=10001"]
    nodes = {
        "head": {
            "command": [*start, *serve, f"--node-ip-address={head}", f"--temp-dir={base / 'ray'}", "--num-cpus=0"],
            "env": image,
            "disks": disks,
        },
        "worker": {
            "command": [*join, f"--node-ip-address={worker}", "--num-cpus=2"],
            "env": image,
            "disks": [*disks, base / "head"],
        },
        "bare": {
            "command": [*join, f"--node-ip-address={third}", "--num-cpus=0", "--num-gpus=1"],
            "env": bare,
            "disks": [*disks, base / "head"],
        },
    }
    machines = Machines(
        {name: {**node, "disks": [str(disk) for disk in node["disks"]]} for name, node in nodes.items()}, base / "log"
    )
    programs = new_server(CREDENTIALS, ray=True, prefix=machines.entering())
    try:
        environment = Environment(machines, base, programs)
        _wait_for_three_nodes(environment)
        _wait_for_ray_client(environment)
        yield environment
    finally:
        programs.close()
        machines.close()
        shutil.rmtree(base)


def _wait_for_three_nodes(environment: Environment) -> None:
    code = f"""
    import time
    from synapse_runtime.errors import ClusterError
    from synapse_runtime.executors.ray.cluster.preflight import node_addresses
    deadline, count = time.monotonic() + {patience(240)}, None
    while count != 3 and time.monotonic() < deadline:
        try:
            count = len(node_addresses(sys.argv[1], {{"Authorization": "Bearer {TOKEN}"}}))
        except ClusterError as error:
            count = str(error)
        time.sleep(0.3)
    report(count)
    """
    count = environment.call("job", environment.base, code)
    if count != 3:
        logs = (f"{path.name}:\n{path.read_text(errors='replace')}" for path in environment.machines.log.iterdir())
        pytest.fail(f"the cluster has {count} of its 3 nodes\n" + "\n".join(logs), pytrace=False)


def _wait_for_ray_client(environment: Environment) -> None:
    """Wait until Ray Client's server has accepted a client: it sometimes rejects the first one after its start."""
    code = """
    from synapse_runtime.errors import ClusterError
    from synapse_runtime.executors.ray.cluster.resolve import connect, find_cluster
    try:
        connect(find_cluster(sys.argv[1]))
        report(None)
    except ClusterError as error:
        report(str(error))
    """
    deadline = time.monotonic() + patience(120)
    while (problem := environment.call("task", environment.base, code)) is not None:
        assert time.monotonic() < deadline, problem


# Jobs share the tested code with workers, so they are only tested before a release.
in_task = pytest.mark.parametrize(
    "mode", ["task", pytest.param("job", marks=pytest.mark.thorough)], indirect=True, scope="module"
)


@pytest.fixture(scope="module", params=["task", "job"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def plugin(environment: Environment) -> Path:
    return environment.base / "laptop" / "remote_plugin"


@pytest.fixture(scope="module")
def calls(environment: Environment, mode: str, plugin: Path) -> dict[str, Any]:
    """Results of calls in one mode, all made by one process, which several tests check."""
    results: dict[str, Any] = environment.call(
        mode,
        plugin,
        f"""
        import traceback, urllib.request
        from ray.util.state import list_actors, list_jobs, list_runtime_envs
        from synapse_runtime.errors import ClusterError
        events, printed = [], {{"stdout": "", "stderr": ""}}
        def show(stream, text):
            printed[stream] += text
        with executor() as it:
            hear = {{"on_event": lambda event: events.append(event.name), "on_output": show}}
            run = it.run("look", {{"leave": "trace.txt"}}, **hear)
            look = {{**run.unwrap(), "where": run.host, "records": [r.pathname for r in run.records],
                    "warnings": [w.filename for w in run.warnings]}}
            failed, missing, hung = it.run("fail").error, it.run("missing").error, it.run("hang", timeout=0.5).error
            crashed = it.run("crash")
            last = traceback.extract_tb(failed.__cause__.__traceback__)[-1]
        last_one = executor()
        found = last_one.execute("look")["found"]
        without_runtime = listed = None
        if sys.argv[1].startswith("http"):
            request = urllib.request.Request(sys.argv[1] + "/api/jobs/", headers={{"Authorization": "Bearer {TOKEN}"}})
            with urllib.request.urlopen(request) as response:
                jobs = response.read().decode()
            others = [function(sys.argv[1], detail=True) for function in (list_actors, list_jobs, list_runtime_envs)]
            listed = [jobs, str(others)]
        else:
            try:
                executor(num_cpus=0, num_gpus=1).execute("look")
            except ClusterError as error:
                without_runtime = str(error)
        last_one.close()  # which deletes its job
        report({{"look": look, "events": events, "printed": printed["stdout"], "found": found,
                "without_runtime": without_runtime, "listed": listed,
                "crashed": [type(crashed.error).__name__, [event.name for event in crashed.logs], crashed.metrics,
                            [record.msg for record in crashed.records], [str(w.message) for w in crashed.warnings],
                            [r.pathname for r in crashed.records] + [w.filename for w in crashed.warnings]],
                "failed": f"{{last.filename}}:{{last.lineno}}", "missing": str(missing), "hung": hung.details}})
        """,
    )
    return results


def test_nodes_do_not_share_the_file_system_of_the_main_machine(environment):
    for node in ("head", "worker", "bare"):
        for directory in (environment.base / "laptop", ROOT / "synapse_runtime", ROOT / "example_plugin"):
            assert list(directory.iterdir()) != []
            assert environment.machines.run(["ls", "-A", str(directory)], on=node).stdout == ""


@pytest.mark.parametrize(
    ("mode", "tests", "passed"),
    [
        ("task", "unseen or predictions", 2),
        pytest.param("task", "", 17, marks=pytest.mark.thorough),
        pytest.param("job", "unseen or predictions", 2, marks=pytest.mark.thorough),
    ],
)
def test_tests_of_the_example_plugin_pass(environment, mode, tests, passed):
    address = environment.addresses[mode]
    options = ["-q", f"--synapse-mode={mode}", f"--synapse-ray-address={address}", "-k", tests]
    status, output = environment.pytest(environment.base / "laptop" / "example_plugin", *options)
    assert status == 0, output
    assert f"{passed} passed" in output


def test_tests_of_the_example_plugin_pass_if_the_head_is_local_and_the_workers_are_not(environment):
    address = f"--synapse-ray-address={environment.machines.addresses['head']}:6379"
    plugin = environment.base / "head" / "example_plugin"
    options = ["-q", "--synapse-mode=task", address, "-k", "train"]
    status, output = environment.pytest(plugin, *options, on="head", PYTHONPATH=str(environment.base / "image"))
    assert status == 0, output
    assert re.search(r"^[1-9]\d* passed", output, re.MULTILINE), output


def test_action_runs_in_a_copy_of_its_plugin_with_its_environment(environment, calls, plugin):
    result = calls["look"]
    assert result["host"] == result["where"] == "worker"
    assert result["cwd"] != str(plugin)
    assert result["cwd"] == str(Path(result["file"]).parents[1])
    assert Path(result["cwd"]).name == "remote_plugin"
    image = str(environment.base / "image")
    assert result["runtime"].startswith(image)
    assert set(result["PYTHONPATH"].split(os.pathsep)) == {image}  # Ray sets it twice for jobs
    assert result["found"] == [
        "config.yaml", "lab", "lab/__init__.py", "lab/actions.py",
        "tests", "tests/conftest.py", "tests/helper_module.py", "tests/test_places.py",
    ]  # fmt: skip
    assert result["env"] == {"FROM_ENV": "env-canary-5d1c", "FROM_RUNTIME_ENV": "runtime-env-canary-88f2"}
    assert result["records"] == result["warnings"] == [str(plugin / "lab" / "actions.py")]


@pytest.mark.parametrize("mode", ["job"], indirect=True, scope="module")
def test_no_listing_shows_values_of_the_environment(calls):
    listed = calls["listed"]
    assert all("_ray_pkg_" in text for text in listed)
    assert not [text for text in listed if "canary" in text]


def test_live_events_and_output_are_received(calls):
    assert calls["events"] == ["looked"]
    assert calls["printed"] == "looked\n"


def test_files_of_a_worker_are_not_visible_to_others_and_are_deleted_with_it(environment, calls, plugin):
    assert "lab/actions.py" in calls["found"]
    assert not [name for name in calls["found"] if "trace" in name]
    assert not (plugin / "trace.txt").exists()
    deadline = time.monotonic() + patience(20)
    while left := environment.left_on("worker"):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_what_an_action_has_emitted_is_received_although_its_worker_has_died(calls, plugin):
    error, logs, metrics, records, warned, files = calls["crashed"]
    assert error == "WorkerCrashed"
    assert (logs, metrics) == (["before the crash"], {"train": {"loss": 0.5}})
    assert (records, warned) == (["before the crash"], ["before the crash"])
    assert files == [str(plugin / "lab" / "actions.py")] * 2


def test_errors_name_the_files_of_the_caller(calls, plugin):
    failed, missing, hung = calls["failed"], calls["missing"], calls["hung"]
    source = plugin / "lab" / "actions.py"
    lines = ["", *map(str.strip, source.read_text().splitlines())]
    assert failed == f"{source}:{lines.index(f'raise LookupError({MESSAGE})')}"
    config = ["", *map(str.strip, (plugin / "config.yaml").read_text().splitlines())]
    line = config.index("entrypoint: lab.actions:Missing")
    assert missing.startswith(f"{plugin / 'config.yaml'}:{line}: action 'missing': {source}: ")
    assert f'File "{source}", line {lines.index("time.sleep(60)")}, in execute' in hung
    assert "synapse-plugin-" not in str((failed, missing, hung))


@in_task
def test_actions_of_tests_and_conftests_run_remotely_and_failures_show_their_source(environment, mode, plugin):
    options = ["-q", "--color=no", f"--synapse-mode={mode}", f"--synapse-ray-address={environment.addresses[mode]}"]
    status, output = environment.pytest(plugin, *options)
    assert status == 1, output
    assert "2 failed, 2 passed" in output
    shown = [line for line in output.splitlines() if line.startswith(">") and f"raise LookupError({MESSAGE})" in line]
    assert len(shown) == 2, output
    assert "lab/actions.py:" in output
    assert "synapse-plugin-" not in output


def test_unchanged_plugin_is_uploaded_once(environment):
    plugin = environment.plugin("uploaded_once")
    code = """
    import re
    uploads = []
    def record_uploads(event, arguments):
        if event == "http.client.send" and isinstance(arguments[1], bytes):
            uploads.extend(re.findall(rb"^PUT /api/packages/gcs/_ray_pkg_([0-9a-f]+)", arguments[1]))
    sys.addaudithook(record_uploads)
    counts = []
    for text in TEXTS:
        open("fresh.txt", "w").write(text)
        with executor() as it:
            it.execute("look")
        counts.append(len(uploads))
    report(counts)
    """
    the_plugin = 1
    assert environment.call("job", plugin, code.replace("TEXTS", "['new content']")) == [1 + the_plugin]
    assert environment.call("job", plugin, code.replace("TEXTS", "['new content', 'changed']")) == [1, 2 + the_plugin]


def test_connection_uploads_a_package_once_and_the_runtime_itself_can_be_uploaded(environment, plugin):
    code = """
    import logging, ray
    from synapse_runtime.executors.ray.runtime_env import upload_with_ray
    from synapse_runtime.executors.ray.archive import PackageBuilder
    messages = []
    class Recorder(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())
    with executor() as it:
        it.execute("look")
    logger = logging.getLogger("ray._private.runtime_env.packaging")
    logger.addHandler(Recorder()); logger.setLevel("INFO")
    package = PackageBuilder(".", prefix="another/").package()
    uris = [upload_with_ray(package) for _ in range(3)]
    counts = [len(set(uris)), sum("Pushing file package" in message for message in messages)]
    with executor(num_cpus=0, num_gpus=1, debug_sdk=True) as it:
        report([counts, it.execute("look")])
    """
    counts, result = environment.call("task", plugin, code)
    assert counts == [1, 1]
    assert result["host"] == "bare"
    assert "py_modules_files" in result["runtime"]


def _wheel(directory: Path, value: str) -> None:
    """Write a wheel of a package `wheel_package`."""
    directory.mkdir()
    info = "wheel_package-1.0.dist-info"
    files = {
        "wheel_package.py": f"VALUE = {value!r}\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: wheel_package\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(directory / "wheel_package-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD")))


def test_wheels_are_installed_even_if_git_ignores_them_and_reinstalled_when_they_change(environment):
    plugin = environment.plugin("with_wheel", __gitignore="wheels/\n", requirements__txt="pydantic\nwheel_package>=1\n")
    _wheel(plugin / "wheels", "installed with pip")
    code = """
    with executor() as it:
        report(it.execute("use_wheel"))
    """
    assert environment.call("task", plugin, code) == {"host": "worker", "value": "installed with pip"}
    shutil.rmtree(plugin / "wheels")
    _wheel(plugin / "wheels", "changed")
    assert environment.call("task", plugin, code) == {"host": "worker", "value": "changed"}


def test_uv_installs_from_the_directory_named_in_the_config_file(environment):
    more = "+\npackage_manager: uv\npackage_manager_options: [--offline]\nwheels_dir: third_party\n"
    plugin = environment.plugin("with_uv", config__yaml=more, requirements__txt="wheel_package>=1\n")
    _wheel(plugin / "third_party", "installed with uv")
    code = """
    with executor() as it:
        report(it.execute("use_wheel"))
    """
    assert environment.call("job", plugin, code) == {"host": "worker", "value": "installed with uv"}


@pytest.mark.parametrize(
    ("mode", "manager"),
    [
        ("task", "pip"),
        *(pytest.param("job", manager, marks=pytest.mark.thorough) for manager in ("pip", "uv")),
    ],
)
def test_failed_installation_raises_an_error_with_the_installers_last_lines(environment, mode, manager):
    plugin = environment.plugin(
        f"impossible_{mode}_{manager}",
        config__yaml=f"+\npackage_manager: {manager}\n",
        requirements__txt="no-such-thing==1.2\n",
    )
    error, took = environment.call(
        mode,
        plugin,
        """
        import time
        from synapse_runtime.errors import ClusterError
        started = time.monotonic()
        try:
            executor().execute("look")
        except ClusterError as error:
            report([str(error), time.monotonic() - started])
        """,
    )
    assert error.startswith(f"could not install the plugin's requirements on the cluster; last lines of {manager}:\n")
    assert "no-such-thing==1.2" in error
    assert len(error.splitlines()) < 15
    assert took < patience(120)


@pytest.mark.parametrize("mode", ["task"], indirect=True, scope="module")
def test_error_for_nodes_without_this_runtime_names_the_fix(calls):
    error = calls["without_runtime"]
    assert error.startswith(MISSING_RUNTIME)
    assert "--debug-sdk" in error


@pytest.mark.thorough
def test_nodes_without_this_runtime_reject_jobs_unless_it_is_uploaded(environment, plugin):
    error, result = environment.call(
        "job",
        plugin,
        """
        from synapse_runtime.errors import ClusterError
        try:
            executor(num_cpus=0, num_gpus=1).execute("look")
        except ClusterError as problem:
            error = str(problem)
        with executor(num_cpus=0, num_gpus=1, debug_sdk=True) as it:
            report([error, it.execute("look")])
        """,
    )
    assert error.startswith(MISSING_RUNTIME)
    assert "--debug-sdk" in error
    assert result["host"] == "bare"
    assert "py_modules_files" in result["runtime"]


MEASURED = """\
import helper_module

from synapse_runtime.decorators import action
from synapse_runtime.errors import ExecutionError


@action
def of_the_test(params, context):
    if params:
        return helper_module.WORD
    return "none"


def test_look(synapse_executor):
    assert synapse_executor.execute("look")["env"]["FROM_ENV"]


def test_fail(synapse_executor):
    assert isinstance(synapse_executor.run("fail").error, ExecutionError)


def test_of_the_test(synapse_executor):
    assert synapse_executor.execute(of_the_test, {}) == "none"
"""


@in_task
def test_coverage_measures_the_callers_files_with_contexts_of_their_tests(environment, mode):
    plugin = environment.plugin(
        f"measured_{mode}",
        **{"tests/test_places__py": MEASURED},
        setup__cfg="[coverage:run]\nbranch = true\nsource = .\nomit = */conftest.py\ndynamic_context = test_function\n",
    )
    reports = {}
    for each, address in (("local", ""), (mode, environment.addresses[mode])):
        arguments = ["-m", "pytest", "-p", "no:cacheprovider", f"--synapse-mode={each}"]
        arguments += [f"--synapse-ray-address={address}"] if address else []
        status, output = environment.run("-m", "coverage", "run", *arguments, plugin=plugin)
        assert status == 0, output
        status, output = environment.run(
            "-m", "coverage", "json", "--show-contexts", "-o", "report.json", plugin=plugin
        )
        assert status == 0, output
        reports[each] = {
            name: (file["executed_lines"], file["missing_lines"], file["executed_branches"], file["contexts"])
            for name, file in json.loads((plugin / "report.json").read_text())["files"].items()
        }
    assert set(reports[mode]) == {"lab/actions.py", "lab/__init__.py", "tests/helper_module.py", "tests/test_places.py"}
    lines, _, _, contexts = reports[mode]["lab/actions.py"]
    source = (plugin / "lab" / "actions.py").read_text().splitlines()
    (printed,) = (number for number, line in enumerate(source, 1) if 'print("looked")' in line)
    assert printed in lines
    assert contexts[str(printed)] == ["test_places.test_look"]
    for name in reports["local"]:
        assert reports[mode][name][:3] == reports["local"][name][:3], name
    assert [path.name for path in plugin.glob(".coverage*")] == [".coverage"]

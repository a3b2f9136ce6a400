"""A cluster on other machines, which do not see our disk: the plugin travels there, and what comes back is the same.

The machines are Linux namespaces (see `machines`). We call from a machine of our own, `laptop`, whose directory is
nowhere else; the cluster has a `head` without CPUs, a `worker` with two, and a `bare` node, with a GPU on paper, that
does not have this runtime. On all three there is an `image`: Python, Ray, and but for the last this runtime.
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

from tests.patience import patience
from tests.pytest_synapse.conftest import session_environment
from tests.ray import machines

ROOT = Path(__file__).parents[2]
PLUGINS = (ROOT / "example_plugin", ROOT / "tests" / "ray" / "traveller")
PACKAGES = ("synapse_runtime", "pytest_synapse")
BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef0123456789abcdef"
OBJECT_STORE = "--object-store-memory=80000000"  # as little as Ray takes

NO_WAY = '"no way on"'

# Joins a cluster when its head is there.
JOIN = """\
import os, socket, sys, time
while True:
    try:
        socket.create_connection((sys.argv[1], 6379), timeout=1).close()
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

def tell(value):
    print("\\n>>>" + json.dumps(value))

"""


class World(NamedTuple):
    """The machines, and where things are on them."""

    stage: machines.Stage
    base: Path

    @property
    def addresses(self) -> dict[str, str]:
        """The cluster's addresses for each mode, from the laptop."""
        head = self.stage.addresses["head"]
        return {"task": f"ray://{head}:10001", "job": f"http://{head}:8265"}

    def run(self, *command: str, plugin: Path, on: str = "", **env: str) -> tuple[int, str]:
        """Run a command in a plugin's directory; return its exit status and all of its output."""
        environment = session_environment()
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "TMPDIR": str(self.base / "shared"), **env}
        done = self.stage.run(command, on=on, cwd=plugin, env=environment, timeout=patience(500))
        return done.returncode, done.stdout + done.stderr

    def pytest(self, plugin: Path, *arguments: str, on: str = "", **env: str) -> tuple[int, str]:
        """Run a plugin's tests."""
        return self.run(
            sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, plugin=plugin, on=on, **env
        )

    def call(self, mode: str, plugin: Path, code: str) -> Any:
        """Run code that uses `executor` and `tell`s something; return that."""
        program = CALL + textwrap.dedent(code)
        _, output = self.run(sys.executable, "-c", program, self.addresses[mode], plugin=plugin)
        told = [line for line in output.splitlines() if line.startswith(">>>")]
        assert told, output
        return json.loads(told[-1].removeprefix(">>>"))

    def plugin(self, name: str, **files: str) -> Path:
        """Put another copy of the traveller on the laptop, with more files; a `+` before a text adds it to a file."""
        directory = self.base / "laptop" / name
        shutil.copytree(self.base / "laptop" / "traveller", directory)
        for file, text in files.items():
            path = directory / file.replace("__", ".")
            path.write_text(path.read_text() + text[1:] if text.startswith("+") else text)
        return directory

    def left_on(self, node: str) -> list[str]:
        """Return what workers have left on a node's disk."""
        found = self.stage.run(["ls", str(self.base / "tmp")], on=node).stdout.split()
        return [name for name in found if name.startswith("synapse-")]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    reason = machines.why_not()
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
    # The editable installation leads to where the packages are developed: not on other machines.
    disks = [base / "tmp", base / "ray", base / "laptop", "/dev/shm", ROOT / "tests", ROOT / "example_plugin"]
    disks += [ROOT / package for package in PACKAGES]
    bare = {
        "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(base / "tmp"),
        "TMPDIR": str(base / "tmp"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        # How long Ray Client's server waits for the process that it starts for each caller; 30 s by default.
        "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": f"{patience(60):.0f}",
        "RUNTIME_ENV_RETRY_TIMES": "1",  # what cannot be installed here cannot be installed a second later either
        "PIP_NO_INDEX": "1",
        "UV_OFFLINE": "1",
    }
    image = {**bare, "PYTHONPATH": str(base / "image")}
    head, worker, third = (f"{machines.NETWORK}.{number}" for number in (2, 3, 4))
    start = [str(BIN / "ray"), "start", "--block", OBJECT_STORE]
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
    stage = machines.Stage(
        {name: {**node, "disks": [str(disk) for disk in node["disks"]]} for name, node in nodes.items()}, base / "log"
    )
    try:
        _wait_for_three_nodes(World(stage, base))
        _wait_for_ray_client(World(stage, base))
        yield World(stage, base)
    finally:
        stage.close()
        shutil.rmtree(base)


def _wait_for_three_nodes(world: World) -> None:
    code = f"""
    import time
    from synapse_runtime.errors import ClusterError
    from synapse_runtime.executors.ray.cluster.preflight import node_addresses
    deadline, there = time.monotonic() + {patience(240)}, None
    while there != 3 and time.monotonic() < deadline:
        try:
            there = len(node_addresses(sys.argv[1], {{"Authorization": "Bearer {TOKEN}"}}))
        except ClusterError as error:
            there = str(error)
        time.sleep(0.3)
    tell(there)
    """
    there = world.call("job", world.base, code)
    if there != 3:
        logs = (f"{path.name}:\n{path.read_text(errors='replace')}" for path in world.stage.log.iterdir())
        pytest.fail(f"the cluster has {there} of its 3 nodes\n" + "\n".join(logs), pytrace=False)


def _wait_for_ray_client(world: World) -> None:
    """Wait until Ray Client's server has taken a caller: the first one after its start it refuses now and then."""
    code = """
    from synapse_runtime.errors import ClusterError
    from synapse_runtime.executors.ray.cluster.resolve import connect, find_cluster
    try:
        connect(find_cluster(sys.argv[1]))
        tell(None)
    except ClusterError as error:
        tell(str(error))
    """
    deadline = time.monotonic() + patience(120)
    while (problem := world.call("task", world.base, code)) is not None:
        assert time.monotonic() < deadline, problem


# What a job does by the same code as a worker is tested as a job before a release.
in_task = pytest.mark.parametrize(
    "mode", ["task", pytest.param("job", marks=pytest.mark.thorough)], indirect=True, scope="module"
)


@pytest.fixture(scope="module", params=["task", "job"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def traveller(world: World) -> Path:
    return world.base / "laptop" / "traveller"


@pytest.fixture(scope="module")
def journey(world: World, mode: str, traveller: Path) -> dict[str, Any]:
    """Tell of calls in one mode, all made by one process: what several tests look at."""
    told: dict[str, Any] = world.call(
        mode,
        traveller,
        """
        import traceback
        heard, printed, found = [], {"stdout": "", "stderr": ""}, []
        def show(stream, text):
            printed[stream] += text
        with executor() as it:
            run = it.run("look")
            look = {**run.unwrap(), "where": run.host, "records": [r.pathname for r in run.records],
                    "warnings": [w.filename for w in run.warnings]}
            it.run("look", on_event=lambda event: heard.append(event.name), on_output=show)
            failed, missing, hung = it.run("fail").error, it.run("missing").error, it.run("hang", timeout=0.5).error
            last = traceback.extract_tb(failed.__cause__.__traceback__)[-1]
        for _ in range(2):
            with executor() as it:
                found.append(it.execute("look", {"leave": "trace.txt"})["found"])
        tell({"look": look, "heard": heard, "printed": printed["stdout"], "found": found,
              "failed": f"{last.filename}:{last.lineno}", "missing": str(missing), "hung": hung.details})
        """,
    )
    return told


def test_the_nodes_do_not_see_the_laptops_disk(world):
    for node in ("head", "worker", "bare"):
        for directory in (world.base / "laptop", ROOT / "synapse_runtime", ROOT / "example_plugin"):
            assert list(directory.iterdir()) != []
            assert world.stage.run(["ls", "-A", str(directory)], on=node).stdout == ""


@pytest.mark.parametrize(
    ("mode", "tests", "passed"),
    [
        ("task", "unseen or predictions", 2),
        pytest.param("task", "", 17, marks=pytest.mark.thorough),
        pytest.param("job", "unseen or predictions", 2, marks=pytest.mark.thorough),
    ],
)
def test_the_example_plugins_tests_are_green(world, mode, tests, passed):
    address = world.addresses[mode]
    options = ["-q", f"--synapse-mode={mode}", f"--synapse-ray-address={address}", "-k", tests]
    status, output = world.pytest(world.base / "laptop" / "example_plugin", *options)
    assert status == 0, output
    assert f"{passed} passed" in output


def test_the_example_plugins_tests_are_green_on_a_cluster_whose_head_is_here_and_whose_workers_are_not(world):
    address = f"--synapse-ray-address={world.stage.addresses['head']}:6379"
    plugin = world.base / "head" / "example_plugin"
    options = ["-q", "--synapse-mode=task", address, "-k", "train"]
    status, output = world.pytest(plugin, *options, on="head", PYTHONPATH=str(world.base / "image"))
    assert status == 0, output
    assert re.search(r"^[1-9]\d* passed", output, re.MULTILINE), output


def test_an_action_finds_itself_in_its_plugin_and_of_the_env_nothing_is_listed(world, journey, traveller):
    answer = journey["look"]
    assert answer["host"] == answer["where"] == "worker"
    assert answer["cwd"] != str(traveller)
    assert answer["cwd"] == str(Path(answer["file"]).parents[1])
    assert Path(answer["cwd"]).name == "traveller"
    assert answer["runtime"].startswith(str(world.base / "image"))
    assert set(answer["PYTHONPATH"].split(os.pathsep)) == {str(world.base / "image")}  # of a job, Ray doubles it
    assert answer["found"] == [
        "config.yaml", "lab", "lab/__init__.py", "lab/actions.py",
        "tests", "tests/beside.py", "tests/conftest.py", "tests/test_places.py",
    ]  # fmt: skip
    assert answer["env"] == {"FROM_ENV": "env-canary-5d1c", "FROM_RUNTIME_ENV": "runtime-env-canary-88f2"}
    assert answer["records"] == answer["warnings"] == [str(traveller / "lab" / "actions.py")]


def test_no_listing_shows_values_of_the_environment(world, traveller):
    listed = world.call(
        "job",
        traveller,
        f"""
        import os, urllib.request
        from ray.util.state import list_actors, list_jobs, list_runtime_envs
        executor().get_result(executor().submit("look"))
        request = urllib.request.Request(sys.argv[1] + "/api/jobs/", headers={{"Authorization": "Bearer {TOKEN}"}})
        with urllib.request.urlopen(request) as answer:
            jobs = answer.read().decode()
        others = [ask(sys.argv[1], detail=True) for ask in (list_actors, list_jobs, list_runtime_envs)]
        tell([jobs, str(others)])
        """,
    )
    assert all("_ray_pkg_" in text for text in listed)
    assert not [text for text in listed if "canary" in text]


def test_a_watcher_hears_what_is_said_and_printed(journey):
    assert journey["heard"] == ["looked"]
    assert journey["printed"] == "looked\n"


def test_a_workers_traces_are_seen_by_no_other_and_vanish_with_it(world, journey, traveller):
    assert len(journey["found"]) == 2
    assert not [name for found in journey["found"] for name in found if "trace" in name]
    assert not (traveller / "trace.txt").exists()
    deadline = time.monotonic() + patience(20)
    while left := world.left_on("worker"):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_errors_name_the_files_of_the_caller(journey, traveller):
    failed, missing, hung = journey["failed"], journey["missing"], journey["hung"]
    source = traveller / "lab" / "actions.py"
    lines = ["", *map(str.strip, source.read_text().splitlines())]
    assert failed == f"{source}:{lines.index(f'raise LookupError({NO_WAY})')}"
    config = ["", *map(str.strip, (traveller / "config.yaml").read_text().splitlines())]
    line = config.index("entrypoint: lab.actions:NotThere")
    assert missing.startswith(f"{traveller / 'config.yaml'}:{line}: action 'missing': {source}: ")
    assert f'File "{source}", line {lines.index("time.sleep(60)")}, in execute' in hung
    assert "synapse-plugin-" not in str((failed, missing, hung))


@in_task
def test_actions_of_tests_and_conftests_travel_and_failures_show_their_source(world, mode, traveller):
    options = ["-q", "--color=no", f"--synapse-mode={mode}", f"--synapse-ray-address={world.addresses[mode]}"]
    status, output = world.pytest(traveller, *options)
    assert status == 1, output
    assert "2 failed, 2 passed" in output
    shown = [line for line in output.splitlines() if line.startswith(">") and f"raise LookupError({NO_WAY})" in line]
    assert len(shown) == 2, output
    assert "lab/actions.py:" in output
    assert "synapse-plugin-" not in output


def test_an_unchanged_plugin_is_sent_once(world):
    plugin = world.plugin("sent_once", fresh__txt="never seen before")
    code = """
    import re
    sent = []
    def listen(event, arguments):
        if event == "http.client.send" and isinstance(arguments[1], bytes):
            sent.extend(re.findall(rb"^PUT /api/packages/gcs/_ray_pkg_([0-9a-f]+)", arguments[1]))
    sys.addaudithook(listen)
    with executor() as it:
        for _ in range(CALLS):
            it.execute("look")
    tell(len(sent))
    """
    the_plugin = 1
    assert world.call("job", plugin, code.replace("CALLS", "2")) == 2 + the_plugin
    assert world.call("job", plugin, code.replace("CALLS", "1")) == 1
    (plugin / "fresh.txt").write_text("changed")
    assert world.call("job", plugin, code.replace("CALLS", "1")) == 1 + the_plugin


def test_a_connection_sends_a_package_once(world, traveller):
    code = """
    import logging, ray
    from synapse_runtime.executors.ray.runtime_env import send_through_ray
    from synapse_runtime.executors.ray.archive import Packer
    seen = []
    class Keep(logging.Handler):
        def emit(self, record):
            seen.append(record.getMessage())
    with executor() as it:
        it.execute("look")
    logger = logging.getLogger("ray._private.runtime_env.packaging")
    logger.addHandler(Keep()); logger.setLevel("INFO")
    package = Packer(".", prefix="another/").package()
    uris = [send_through_ray(package) for _ in range(3)]
    tell([len(set(uris)), sum("Pushing file package" in message for message in seen)])
    """
    assert world.call("task", traveller, code) == [1, 1]


def _wheel(directory: Path, says: str) -> None:
    """Make a wheel of a package `souvenir`."""
    directory.mkdir()
    info = "souvenir-1.0.dist-info"
    files = {
        "souvenir.py": f"SAYS = {says!r}\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: souvenir\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(directory / "souvenir-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD")))


def test_wheels_are_installed_though_git_ignores_them_and_anew_when_they_change(world):
    plugin = world.plugin("with_wheel", __gitignore="wheels/\n", requirements__txt="pydantic\nsouvenir>=1\n")
    _wheel(plugin / "wheels", "made of pip")
    code = """
    with executor() as it:
        tell(it.execute("use_wheel"))
    """
    assert world.call("task", plugin, code) == {"host": "worker", "says": "made of pip"}
    shutil.rmtree(plugin / "wheels")
    _wheel(plugin / "wheels", "made anew")
    assert world.call("task", plugin, code) == {"host": "worker", "says": "made anew"}


def test_uv_installs_too_from_the_directory_that_the_config_file_names(world):
    more = "+\npackage_manager: uv\npackage_manager_options: [--offline]\nwheels_dir: third_party\n"
    plugin = world.plugin("with_uv", config__yaml=more, requirements__txt="souvenir>=1\n")
    _wheel(plugin / "third_party", "made of uv")
    code = """
    with executor() as it:
        tell(it.execute("use_wheel"))
    """
    assert world.call("job", plugin, code) == {"host": "worker", "says": "made of uv"}


@pytest.mark.parametrize(
    ("mode", "manager"),
    [
        ("task", "pip"),
        *(pytest.param("job", manager, marks=pytest.mark.thorough) for manager in ("pip", "uv")),
    ],
)
def test_what_cannot_be_installed_is_told_with_the_installers_last_lines(world, mode, manager):
    plugin = world.plugin(
        f"impossible_{mode}_{manager}",
        config__yaml=f"+\npackage_manager: {manager}\n",
        requirements__txt="no-such-thing==1.2\n",
    )
    error, took = world.call(
        mode,
        plugin,
        """
        import time
        from synapse_runtime.errors import ClusterError
        began = time.monotonic()
        try:
            executor().execute("look")
        except ClusterError as error:
            tell([str(error), time.monotonic() - began])
        """,
    )
    assert error.startswith(
        f"what the plugin requires could not be installed on the cluster; {manager}'s last lines:\n"
    )
    assert "no-such-thing==1.2" in error
    assert len(error.splitlines()) < 15
    assert took < patience(120)


@in_task
def test_nodes_without_this_runtime_are_told_with_what_to_do(world, mode, traveller):
    error = world.call(
        mode,
        traveller,
        """
        from synapse_runtime.errors import ClusterError
        try:
            executor(num_cpus=0, num_gpus=1).execute("look")
        except ClusterError as error:
            tell(str(error))
        """,
    )
    assert error.startswith(
        "the cluster's nodes do not have this runtime: install pytest-synapse-harness in their image"
    )
    assert "--debug-sdk" in error


@in_task
def test_this_runtime_can_travel_itself(world, mode, traveller):
    answer = world.call(
        mode,
        traveller,
        """
        with executor(num_cpus=0, num_gpus=1, debug_sdk=True) as it:
            tell(it.execute("look"))
        """,
    )
    assert answer["host"] == "bare"
    assert "py_modules_files" in answer["runtime"]


MEASURED = """\
import beside

from synapse_runtime.decorators import action
from synapse_runtime.errors import ExecutionError


@action
def of_the_test(params, context):
    if params:
        return beside.WORD
    return "none"


def test_look(synapse_executor):
    assert synapse_executor.execute("look")["env"]["FROM_ENV"]


def test_fail(synapse_executor):
    assert isinstance(synapse_executor.run("fail").error, ExecutionError)


def test_of_the_test(synapse_executor):
    assert synapse_executor.execute(of_the_test, {}) == "none"
"""


@in_task
def test_coverage_counts_the_callers_files_also_by_the_tests_that_ran_them(world, mode):
    plugin = world.plugin(
        f"measured_{mode}",
        **{"tests/test_places__py": MEASURED},
        setup__cfg="[coverage:run]\nbranch = true\nsource = .\nomit = */conftest.py\ndynamic_context = test_function\n",
    )
    told = {}
    for each, address in (("local", ""), (mode, world.addresses[mode])):
        arguments = ["-m", "pytest", "-p", "no:cacheprovider", f"--synapse-mode={each}"]
        arguments += [f"--synapse-ray-address={address}"] if address else []
        status, output = world.run(sys.executable, "-m", "coverage", "run", *arguments, plugin=plugin)
        assert status == 0, output
        status, output = world.run(
            sys.executable, "-m", "coverage", "json", "--show-contexts", "-o", "told.json", plugin=plugin
        )
        assert status == 0, output
        told[each] = {
            name: (file["executed_lines"], file["missing_lines"], file["executed_branches"], file["contexts"])
            for name, file in json.loads((plugin / "told.json").read_text())["files"].items()
        }
    assert set(told[mode]) == {"lab/actions.py", "lab/__init__.py", "tests/beside.py", "tests/test_places.py"}
    lines, _, _, contexts = told[mode]["lab/actions.py"]
    within = (plugin / "lab" / "actions.py").read_text().splitlines()
    (printed,) = (number for number, line in enumerate(within, 1) if 'print("looked")' in line)
    assert printed in lines
    assert contexts[str(printed)] == ["test_places.test_look"]
    for name in told["local"]:
        assert told[mode][name][:3] == told["local"][name][:3], name
    assert [path.name for path in plugin.glob(".coverage*")] == [".coverage"]

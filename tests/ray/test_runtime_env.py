"""What goes along to a cluster that does not see our disk, as Ray's `runtime_env`; and that else nothing does."""

from __future__ import annotations

import inspect
import io
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from synapse_runtime.errors import ConfigError
from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor
from synapse_runtime.executors.ray.archive import Package
from synapse_runtime.executors.ray.runtime_env import RuntimeEnvBuilder, setup_error, setup_seconds
from synapse_runtime.loggers import NullLogger
from synapse_runtime.plugins.plugin import Plugin

ON_THE_NODE = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"


class Sent:
    """Takes packages as a cluster would."""

    def __init__(self) -> None:
        self.packages: list[Package] = []

    def __call__(self, package: Package) -> str:
        self.packages.append(package)
        return package.uri


@pytest.fixture
def plugin(tmp_path: Path):
    """Write a plugin and return what a worker of it is given."""

    def write(config: str = "", **files: str) -> Path:
        (tmp_path / "config.yaml").write_text(f"code: x\n{config}")
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text)
        return tmp_path

    return write


def environment(root: Path, **options: Any) -> dict[str, Any]:
    return RuntimeEnvBuilder(Plugin.load(root), **options).build(Sent())


def test_a_plugin_that_requires_nothing_is_all_that_travels(plugin):
    sent = Sent()
    assert RuntimeEnvBuilder(Plugin.load(plugin())).build(sent) == {"working_dir": sent.packages[0].uri}
    assert len(sent.packages) == 1


def test_what_the_config_file_excludes_stays_here(plugin):
    sent = Sent()
    root = plugin("runtime_env: {excludes: [large.*]}\n", large_bin="much", small_bin="little")
    RuntimeEnvBuilder(Plugin.load(root)).build(sent)
    with zipfile.ZipFile(io.BytesIO(sent.packages[0].data)) as archive:
        assert sorted(archive.namelist()) == ["config.yaml", "small.bin"]


def test_without_a_plugin_nothing_travels():
    assert RuntimeEnvBuilder(None).build(Sent()) == {}


def test_requirements_are_read_where_they_have_come_to_and_not_listed(plugin):
    root = plugin(requirements_txt="--extra-index-url https://token@host/simple\nnumpy\n")
    lines = environment(root)["pip"]["packages"]
    assert lines[0] == f"-r {ON_THE_NODE}/requirements.txt"
    assert lines[1].startswith("# ")
    assert "token" not in str(lines)


def test_an_installation_is_made_anew_when_a_file_that_is_required_changes(plugin):
    root = plugin(requirements_txt="-r more.txt\n", more_txt="-c constraints.txt\n", constraints_txt="")
    first = environment(root)["pip"]
    assert environment(root)["pip"] == first
    (root / "more.txt").write_text("numpy\n")
    assert environment(root)["pip"] != first


def test_wheels_are_installed_and_may_be_of_several_platforms(plugin):
    root = plugin()
    (root / "wheels").mkdir()
    for name in ("a-1.0-py3-none-any", "b-2.0-cp311-cp311-linux_x86_64", "b-2.0-cp311-cp311-macosx_11_0_arm64"):
        (root / "wheels" / f"{name}.whl").write_bytes(name.encode())
    find, *lines, _ = environment(root)["pip"]["packages"]
    assert find == f"--find-links {ON_THE_NODE}/wheels"
    assert lines == [f"{ON_THE_NODE}/wheels/a-1.0-py3-none-any.whl", "b"]


def test_uv_installs_where_the_config_file_says_so(plugin):
    config = "package_manager: uv\npackage_manager_options: [--prerelease=allow]\n"
    made = environment(plugin(config, requirements_txt="numpy\n"))
    assert "pip" not in made
    assert made["uv"]["uv_pip_install_options"] == ["--no-cache", "--prerelease=allow"]


def test_the_config_files_runtime_env_is_joined_with_what_we_know(plugin):
    config = "runtime_env: {pip: [requests], py_modules: ['s3://b/m.zip'], config: {setup_timeout_seconds: 30}}\n"
    made = environment(plugin(config, requirements_txt="numpy\n"), debug_sdk=True)
    requests, ours, *_ = made["pip"]["packages"]
    assert (requests, ours) == ("requests", f"-r {ON_THE_NODE}/requirements.txt")
    assert made["py_modules"][1] == "s3://b/m.zip"
    assert setup_seconds(made) == 90


def test_this_runtime_travels_with_what_it_requires_and_no_extras(plugin):
    sent = Sent()
    made = RuntimeEnvBuilder(Plugin.load(plugin()), debug_sdk=True).build(sent)
    assert made["py_modules"] == [sent.packages[1].uri]
    names = {line.partition(">")[0] for line in made["pip"]["packages"]}
    assert {"cloudpickle", "pydantic", "pyyaml", "rich"} <= names
    assert not {"ray", "pytest-xdist"} & names


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("runtime_env:\n  working_dir: s3://b/x.zip\n", r":3: runtime_env: .* remove working_dir"),
        ("runtime_env:\n  py_modules: [lib]\n", r":3: runtime_env: py_modules: 'lib' is no URI"),
        ("runtime_env:\n  pip: 7\n", r":3: runtime_env: pip must be a list"),
        ("package_manager: uv\nruntime_env:\n  pip: [x]\n", r":4: runtime_env: pip and uv cannot both install"),
        ("runtime_env:\n  conda: 7\n", r":3: runtime_env: conda and pip cannot both install"),
        ("runtime_env:\n  config: {setup_timeout_seconds: 0}\n", r":2: runtime_env: setup_timeout_seconds"),
        ("wheels_dir: ../wheels\n", r":2: wheels_dir: '\.\./wheels' is not below"),
        ("runtime_env:\n  env_vars: 3\n", r":2: runtime_env: env_vars must be a mapping"),
        ("package_manager: conda\n", r":2: package_manager: "),
    ],
)
def test_what_cannot_be_had_is_told_with_file_and_line(plugin, config, told):
    root = plugin(config, requirements_txt="numpy\n")
    with pytest.raises(ConfigError, match=told):
        environment(root)


def test_variables_of_the_runtime_env_are_the_calls_and_those_of_env_win(plugin):
    loaded = Plugin.load(plugin("env: {A: '1'}\nruntime_env: {env_vars: {A: '2', B: '3'}}\n"))
    assert loaded.manifest.env == {"A": "1", "B": "3"}
    assert "env_vars" not in RuntimeEnvBuilder(loaded).build(Sent())


def test_installing_has_rays_time_unless_the_config_file_says_otherwise():
    assert setup_seconds({"working_dir": "gcs://x.zip"}) == 60
    assert setup_seconds({"pip": ["x"]}) == 660
    assert setup_seconds({"uv": ["x"], "config": {"setup_timeout_seconds": -1}}) == math.inf


def test_of_what_ray_says_the_reason_is_told():
    said = (
        "Failed to set up runtime environment.\nTraceback (most recent call last):\n  File x\nOSError: disk is full\n"
    )
    assert str(setup_error(said)) == "the cluster could not prepare a worker: OSError: disk is full"
    assert setup_error("The actor died because its node has died.") is None
    assert "lack 'rich'" in str(setup_error("ModuleNotFoundError: No module named 'rich'"))


@pytest.mark.parametrize("mode", [RayActorExecutor, RayJobsApiExecutor])
def test_on_a_cluster_that_sees_our_disk_nothing_is_copied_or_installed(worker, plugin, mode):
    root = plugin(
        "actions: {where: {entrypoint: 'here:where'}}\nruntime_env: {working_dir: 's3://b/no.zip'}\n",
        requirements_txt="no-such-package-anywhere==1.0\n",
        here_py="import os\nfrom synapse_runtime.decorators import action\n"
        "@action\ndef where(params, context):\n    return os.getcwd()\n",
    )
    worker.run  # noqa: B018 - the cluster of the other tests here
    with mode(plugin=root, logger=NullLogger()) as executor:
        assert executor.execute("where") == str(root)


def test_whoever_passes_an_actor_on_needs_nothing_of_this_package(tmp_path):
    import cloudpickle

    from synapse_runtime.executors.ray.task import actor_class

    (tmp_path / "actor").write_bytes(cloudpickle.dumps(actor_class()))
    code = """
import pickle, sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "synapse_runtime":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nothing())
cls = pickle.load(open(sys.argv[1], "rb"))
print(cls.__name__, "synapse_runtime" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "actor")], capture_output=True, text=True
    )
    assert done.stdout == "ActionWorker False\n", done.stderr


def test_the_private_names_that_we_use_of_ray_are_there():
    from ray._private.runtime_env import packaging
    from ray.job_submission import JobSubmissionClient

    assert list(inspect.signature(packaging.upload_package_to_gcs).parameters) == ["pkg_uri", "pkg_bytes"]
    assert list(inspect.signature(packaging.package_exists).parameters) == ["pkg_uri"]
    assert next(iter(inspect.signature(packaging.pin_runtime_env_uri).parameters)) == "uri"
    assert {"method", "endpoint", "data"} <= set(inspect.signature(JobSubmissionClient._do_request).parameters)

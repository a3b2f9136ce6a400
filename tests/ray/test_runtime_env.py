"""Ray's `runtime_env` for clusters that do not share this file system; on others nothing is uploaded or installed."""

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

NODE_DIRECTORY = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"


class Uploads:
    """Records packages in place of a cluster."""

    def __init__(self) -> None:
        self.packages: list[Package] = []

    def __call__(self, package: Package) -> str:
        self.packages.append(package)
        return package.uri


@pytest.fixture
def plugin(tmp_path: Path):
    """Return a function that writes a plugin and returns its directory."""

    def write(config: str = "", **files: str) -> Path:
        (tmp_path / "config.yaml").write_text(f"code: x\n{config}")
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text)
        return tmp_path

    return write


def environment(root: Path, **options: Any) -> dict[str, Any]:
    return RuntimeEnvBuilder(Plugin.load(root), **options).build(Uploads())


def test_only_the_plugin_is_uploaded_if_it_has_no_requirements(plugin):
    uploads = Uploads()
    assert RuntimeEnvBuilder(Plugin.load(plugin())).build(uploads) == {"working_dir": uploads.packages[0].uri}
    assert len(uploads.packages) == 1


def test_excludes_of_the_config_file_are_not_uploaded(plugin):
    uploads = Uploads()
    root = plugin("runtime_env: {excludes: [large.*]}\n", large_bin="much", small_bin="little")
    RuntimeEnvBuilder(Plugin.load(root)).build(uploads)
    with zipfile.ZipFile(io.BytesIO(uploads.packages[0].data)) as archive:
        assert sorted(archive.namelist()) == ["config.yaml", "small.bin"]


def test_nothing_is_uploaded_without_a_plugin():
    assert RuntimeEnvBuilder(None).build(Uploads()) == {}


def test_requirements_are_read_on_the_node_and_not_listed(plugin):
    root = plugin(requirements_txt="--extra-index-url https://token@host/simple\nnumpy\n")
    lines = environment(root)["pip"]["packages"]
    assert lines[0] == f"-r {NODE_DIRECTORY}/requirements.txt"
    assert lines[1].startswith("# ")
    assert "token" not in str(lines)


def test_files_that_requirements_include_from_elsewhere_are_not_uploaded(plugin, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.txt"
    secret.write_text("canary\n")
    uploads = Uploads()
    root = plugin(requirements_txt=f"-r {secret}\n-r ../{secret.parent.name}/secret.txt\n")
    RuntimeEnvBuilder(Plugin.load(root)).build(uploads)
    with zipfile.ZipFile(io.BytesIO(uploads.packages[0].data)) as archive:
        assert sorted(archive.namelist()) == ["config.yaml", "requirements.txt"]


def test_change_of_a_requirements_file_causes_a_new_installation(plugin):
    root = plugin(requirements_txt="-r more.txt\n", more_txt="-c constraints.txt\n", constraints_txt="")
    first = environment(root)["pip"]
    assert environment(root)["pip"] == first
    (root / "more.txt").write_text("numpy\n")
    assert environment(root)["pip"] != first


def test_wheels_are_installed_and_may_be_for_several_platforms(plugin):
    root = plugin()
    (root / "wheels").mkdir()
    for name in ("a-1.0-py3-none-any", "b-2.0-cp311-cp311-linux_x86_64", "b-2.0-cp311-cp311-macosx_11_0_arm64"):
        (root / "wheels" / f"{name}.whl").write_bytes(name.encode())
    *lines, _ = environment(root)["pip"]["packages"]
    wheels = f"{NODE_DIRECTORY}/wheels"
    assert lines[0] == f"{wheels}/a-1.0-py3-none-any.whl"
    assert {line.partition(" ; ")[0] for line in lines[1:]} == {
        f"{wheels}/b-2.0-cp311-cp311-linux_x86_64.whl",
        f"{wheels}/b-2.0-cp311-cp311-macosx_11_0_arm64.whl",
    }


def test_uv_installs_if_the_config_file_says_so(plugin):
    config = "package_manager: uv\npackage_manager_options: [--prerelease=allow]\n"
    built = environment(plugin(config, requirements_txt="numpy\n"))
    assert "pip" not in built
    assert built["uv"]["uv_pip_install_options"] == ["--no-cache", "--prerelease=allow"]


def test_runtime_env_of_the_config_file_is_merged_with_requirements(plugin):
    config = "runtime_env: {pip: [requests], py_modules: ['s3://b/m.zip'], config: {setup_timeout_seconds: 30}}\n"
    built = environment(plugin(config, requirements_txt="numpy\n"), debug_sdk=True)
    requests, ours, *_ = built["pip"]["packages"]
    assert (requests, ours) == ("requests", f"-r {NODE_DIRECTORY}/requirements.txt")
    assert built["py_modules"][1] == "s3://b/m.zip"
    assert setup_seconds(built) == 90


def test_runtime_is_uploaded_with_its_requirements_but_without_extras(plugin):
    uploads = Uploads()
    built = RuntimeEnvBuilder(Plugin.load(plugin()), debug_sdk=True).build(uploads)
    assert built["py_modules"] == [uploads.packages[1].uri]
    names = {line.partition(">")[0] for line in built["pip"]["packages"]}
    assert {"cloudpickle", "pydantic", "pyyaml", "rich"} <= names
    assert not {"ray", "pytest-xdist"} & names


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("runtime_env:\n  working_dir: s3://b/x.zip\n", r":3: runtime_env: .* remove working_dir"),
        ("runtime_env:\n  py_modules: [lib]\n", r":3: runtime_env: py_modules: 'lib' is not a URI"),
        ("runtime_env:\n  pip: 7\n", r":3: runtime_env: pip must be a list"),
        ("package_manager: uv\nruntime_env:\n  pip: [x]\n", r":4: runtime_env: pip and uv cannot be used together"),
        ("runtime_env:\n  conda: 7\n", r":3: runtime_env: conda and pip cannot be used together"),
        ("runtime_env:\n  config: {setup_timeout_seconds: 0}\n", r":2: runtime_env: setup_timeout_seconds"),
        ("wheels_dir: ../wheels\n", r":2: wheels_dir: '\.\./wheels' is not in"),
        ("runtime_env:\n  env_vars: 3\n", r":2: runtime_env: env_vars must be a mapping"),
        ("package_manager: conda\n", r":2: package_manager: "),
    ],
)
def test_invalid_config_raises_an_error_with_file_and_line(plugin, config, message):
    root = plugin(config, requirements_txt="numpy\n")
    with pytest.raises(ConfigError, match=message):
        environment(root)


def test_variables_of_runtime_env_are_sent_with_calls_and_env_overrides_them(plugin):
    loaded = Plugin.load(plugin("env: {A: '1'}\nruntime_env: {env_vars: {A: '2', B: '3'}}\n"))
    assert loaded.manifest.env == {"A": "1", "B": "3"}
    assert "env_vars" not in RuntimeEnvBuilder(loaded).build(Uploads())


def test_installation_timeout_is_that_of_ray_unless_the_config_file_sets_one():
    assert setup_seconds({"working_dir": "gcs://x.zip"}) == 60
    assert setup_seconds({"pip": ["x"]}) == 660
    assert setup_seconds({"uv": ["x"], "config": {"setup_timeout_seconds": -1}}) == math.inf


def test_setup_error_extracts_the_reason_from_rays_message():
    message = (
        "Failed to set up runtime environment.\nTraceback (most recent call last):\n  File x\nOSError: disk is full\n"
    )
    assert str(setup_error(message)) == "the cluster could not set up a worker: OSError: disk is full"
    assert setup_error("The actor died because its node has died.") is None
    missing = setup_error("ModuleNotFoundError: No module named 'rich'")
    assert str(missing).startswith("'rich', which this runtime requires, is not installed on the cluster's nodes")


@pytest.mark.parametrize("mode", [RayActorExecutor, RayJobsApiExecutor])
def test_nothing_is_copied_or_installed_on_a_cluster_that_shares_the_file_system(worker, plugin, mode):
    root = plugin(
        "actions: {where: {entrypoint: 'here:where'}}\nruntime_env: {working_dir: 's3://b/no.zip'}\n",
        requirements_txt="no-such-package-anywhere==1.0\n",
        here_py="import os\nfrom synapse_runtime.decorators import action\n"
        "@action\ndef where(params, context):\n    return os.getcwd()\n",
    )
    worker.run  # noqa: B018 - the cluster of the other tests here
    with mode(plugin=root, logger=NullLogger()) as executor:
        assert executor.execute("where") == str(root)


def test_actor_class_can_be_unpickled_without_this_package(tmp_path):
    import cloudpickle

    from synapse_runtime.executors.ray.task import actor_class

    (tmp_path / "actor").write_bytes(cloudpickle.dumps(actor_class()))
    code = """
import pickle, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "synapse_runtime":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
cls = pickle.load(open(sys.argv[1], "rb"))
print(cls.__name__, "synapse_runtime" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "actor")], capture_output=True, text=True
    )
    assert done.stdout == "ActionWorker False\n", done.stderr


def test_private_names_of_ray_exist():
    from ray._private.runtime_env import packaging
    from ray.job_submission import JobSubmissionClient

    assert list(inspect.signature(packaging.upload_package_to_gcs).parameters) == ["pkg_uri", "pkg_bytes"]
    assert list(inspect.signature(packaging.package_exists).parameters) == ["pkg_uri"]
    assert next(iter(inspect.signature(packaging.pin_runtime_env_uri).parameters)) == "uri"
    assert {"method", "endpoint", "data"} <= set(inspect.signature(JobSubmissionClient._do_request).parameters)

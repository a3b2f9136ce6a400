"""Runtime environments for clusters that do not share this file system: the plugin, its requirements, this runtime."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.metadata
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import synapse_runtime
from synapse_runtime.errors import ClusterError, ConfigError
from synapse_runtime.executors.ray.archive import Package, PackageBuilder, readable_size
from synapse_runtime.executors.ray.cluster.driver import connected_through_client
from synapse_runtime.plugins import requirements
from synapse_runtime.plugins.manifest import Manifest, line_of
from synapse_runtime.plugins.wheels import requirement_lines

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from synapse_runtime.plugins.plugin import Plugin

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines

_DISTRIBUTION: Final = "pytest-synapse-harness"
# The plugin's directory on the node while Ray installs its requirements; each installer expands it in its own way.
_NODE_DIRECTORY: Final = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
_INSTALLERS: Final = ("pip", "uv", "conda")
# Ray's default timeout for creating a runtime environment, unless the config file's `runtime_env` sets another.
_SETUP_SECONDS: Final = 600.0
_TRANSFER_SECONDS: Final = 60.0
_SHOWN_LINES: Final = 12


class RuntimeEnvBuilder:
    """Builds the runtime environment of workers on such a cluster, for the calls of one plugin.

    Args:
        plugin: The plugin; None if actions are classes and functions only.
        debug_sdk: Whether to upload this runtime too, instead of using the one installed on the cluster's nodes.
    """

    def __init__(self, plugin: Plugin | None, *, debug_sdk: bool = False) -> None:
        self._plugin = plugin if plugin is not None and plugin.config_path is not None else None
        self._debug_sdk = debug_sdk

    @property
    def key(self) -> tuple[str | None, bool]:
        """Identifies the runtime environment: calls with another one cannot share a worker."""
        return (None if self._plugin is None else str(self._plugin.config_path), self._debug_sdk)

    def build(self, send: Callable[[Package], str]) -> dict[str, Any]:
        """Upload what a worker needs, and return Ray's `runtime_env` for it.

        Args:
            send: Uploads a package unless the cluster has it; returns its URI there.

        Raises:
            ConfigError: The plugin is too large, or its config file is invalid; the error names file and line.
        """
        manifest = Manifest() if self._plugin is None else self._plugin.manifest
        environment = copy.deepcopy(manifest.runtime_env)
        excludes = environment.pop("excludes", None) or []
        self._check(environment)
        lines = _runtime_requirements() if self._debug_sdk else []
        if self._plugin is not None:
            root, wheels = self._plugin.root, self._wheels(manifest)
            always = [*_requirement_files(root), self._plugin.config_path.name, *wheels]  # type: ignore[union-attr]
            environment["working_dir"] = send(_package_builder(root, tuple(always), tuple(excludes)).package())
            lines = [*self._required(root, wheels), *lines]
        if self._debug_sdk:
            environment["py_modules"] = [
                send(_runtime_package_builder().package()),
                *(environment.get("py_modules") or ()),
            ]
        self._install(environment, manifest, lines)
        self._validate(environment)
        return environment

    def _check(self, environment: dict[str, Any]) -> None:
        if environment.get("working_dir"):
            raise self._config_error(
                "the plugin's directory is always the working directory: remove working_dir",
                *("runtime_env", "working_dir"),
            )
        for module in environment.get("py_modules") or ():
            if "://" not in str(module):
                raise self._config_error(
                    f"py_modules: {str(module)!r} is not a URI; files in the plugin's directory are uploaded with it",
                    *("runtime_env", "py_modules"),
                )

    def _wheels(self, manifest: Manifest) -> list[str]:
        """Return the wheels to install, relative to the plugin's directory."""
        assert self._plugin is not None
        root = self._plugin.root
        directory = Path(os.path.normpath(root / manifest.wheels_dir))
        if root not in directory.parents and "wheels_dir" in manifest.model_fields_set:
            raise self._config_error(f"{manifest.wheels_dir!r} is not in the plugin's directory", "wheels_dir")
        return sorted(path.relative_to(root).as_posix() for path in directory.glob("*.whl"))

    def _required(self, root: Path, wheels: list[str]) -> list[str]:
        """Return lines for the installer: `requirements.txt` and the wheels, referenced by their paths on the node.

        Ray creates one installation per set of lines; so a comment line contains a hash of the referenced files.
        """
        files = _requirement_files(root)
        lines = requirement_lines(wheels, requirements.specifiers(root / name for name in files), f"{_NODE_DIRECTORY}/")
        if requirements.FILE in files:
            lines.append(f"-r {_NODE_DIRECTORY}/{requirements.FILE}")
        if lines:
            digest = hashlib.sha256()
            for name in (*files, *wheels):
                digest.update(name.encode() + b"\0" + (root / name).read_bytes() + b"\0")
            lines.append(f"# {digest.hexdigest()[:16]}")
        return lines

    def _install(self, environment: dict[str, Any], manifest: Manifest, lines: list[str]) -> None:
        manager = manifest.package_manager
        given = environment.get(manager)
        if isinstance(given, str):
            given = [f"-r {_NODE_DIRECTORY}/{given}"]
        if not isinstance(given, list | dict | None):
            raise self._config_error(f"{manager} must be a list of requirements, not {given!r}", "runtime_env", manager)
        settings = dict(given) if isinstance(given, dict) else {"packages": list(given or ())}
        settings["packages"] = [*settings.get("packages", ()), *lines]
        if not settings["packages"]:
            environment.pop(manager, None)
            return
        other = next((name for name in _INSTALLERS if name != manager and environment.get(name)), None)
        if other is not None and lines:
            raise self._config_error(
                f"{other} and {manager} cannot be used together; requirements.txt, wheels and the requirements of this "
                f"runtime are installed with {manager}, the package_manager",
                *("runtime_env", other),
            )
        if manifest.package_manager_options:
            name = "pip_install_options" if manager == "pip" else "uv_pip_install_options"
            usual = ["--disable-pip-version-check", "--no-cache-dir"] if manager == "pip" else ["--no-cache"]
            settings[name] = [*settings.get(name, usual), *manifest.package_manager_options]
        environment[manager] = settings

    def _validate(self, environment: dict[str, Any]) -> None:
        from ray.runtime_env import RuntimeEnv

        try:
            RuntimeEnv(**environment)
        except (TypeError, ValueError) as error:
            raise self._config_error(str(error).strip().partition("\n")[0], "runtime_env") from error

    def _config_error(self, problem: str, *keys: str) -> ConfigError:
        """Return an error about these keys of the config file; its message starts with the first key."""
        path = None if self._plugin is None else self._plugin.config_path
        line = None if path is None else line_of(path.read_text(encoding="utf-8"), keys)
        return ConfigError(f"{keys[0]}: {problem}", path=path, line=line)


def setup_seconds(environment: dict[str, Any]) -> float:
    """Return how long a cluster may take to start a worker in this runtime environment, installing packages."""
    if not any(environment.get(name) for name in (*_INSTALLERS, "image_uri", "container")):
        return _TRANSFER_SECONDS
    limit = float((environment.get("config") or {}).get("setup_timeout_seconds", _SETUP_SECONDS))
    return math.inf if limit < 0 else limit + _TRANSFER_SECONDS


def setup_error(message: str) -> ClusterError | None:
    """Return the error of a runtime environment that could not be created, extracted from Ray's messages.

    Args:
        message: All messages of Ray about a worker or job that did not start.

    Returns:
        The error, with the installer's last lines; None if the runtime environment is not the cause.
    """
    if re.search(r"No module named '?synapse_runtime\b", message):
        return ClusterError(
            f"the cluster's nodes do not have this runtime: install {_DISTRIBUTION} in their image, or upload it with "
            "the plugin: --debug-sdk, pytest --synapse-debug-sdk, or debug_sdk=True in code"
        )
    missing = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", message)
    if missing and "runtime_env setup failed" not in message and "Failed to set up runtime environment" not in message:
        return ClusterError(
            f"{missing[1]!r}, which this runtime requires, is not installed on the cluster's nodes: install it in "
            "their image"
        )
    if "runtime environment" not in message and "runtime_env" not in message:
        return None
    lines = message.splitlines()
    starts = [number for number, line in enumerate(lines) if re.match(r"Last \d+ lines of std(out|err):", line.strip())]
    if not starts:
        reasons = [line.strip() for line in lines if re.match(r"\s*[\w.]*(Error|Exception|Timeout)\w*: ", line)]
        return ClusterError(f"the cluster could not set up a worker: {reasons[-1] if reasons else lines[0].strip()}")
    output = []
    for line in lines[starts[-1] + 1 :]:
        if line.strip() and not line.startswith("    "):
            break
        output.append(line[4:])
    shown = "\n  ".join([line for line in output if line.strip()][-_SHOWN_LINES:])
    command = re.findall(r"Command '?(\[.*?\]|.*?)'? returned non-zero exit status", message)
    installer = "uv" if command and "'uv'" in command[-1] else "pip"
    return ClusterError(
        f"could not install the plugin's requirements on the cluster; last lines of {installer}:\n  {shown}"
    )


def upload_with_ray(package: Package) -> str:
    """Upload a package over this process's connection as a Ray driver, unless the cluster has it; return its URI.

    Ray does this in `ray.init` for the whole connection, which serves workers of many plugins here; for a single actor
    it accepts only a URI, and has no public API for uploading the package. tests/ray/test_runtime_env.py watches it.
    """
    import ray
    from ray._private.runtime_env.packaging import package_exists, pin_runtime_env_uri, upload_package_to_gcs
    from ray.exceptions import RayError

    def pin(uri: str) -> None:
        from ray._private.runtime_env.packaging import pin_runtime_env_uri

        pin_runtime_env_uri(uri)

    try:
        # Ray deletes packages without references: keep it until the worker refers to it.
        if connected_through_client():  # Ray Client's server does not support this, so a remote task does it
            ray.get(ray.remote(pin).options(num_cpus=0).remote(package.uri), timeout=_TRANSFER_SECONDS)
        else:
            pin_runtime_env_uri(package.uri)
        if not package_exists(package.uri):
            upload_package_to_gcs(package.uri, package.data)
    except (RayError, RuntimeError, OSError) as error:
        size = readable_size(len(package.data))
        raise ClusterError(f"could not upload a package of {size} to the cluster: {error}") from error
    return package.uri


def upload_over_http(client: JobSubmissionClient, package: Package) -> str:
    """Upload a package to a cluster's dashboard, unless the cluster has it; return its URI.

    The client itself uploads directories, which it packs for each job by its own rules; before Ray 2.60, it does not
    upload zip files. tests/ray/test_runtime_env.py watches the name that is used here.
    """
    path = "/api/packages/" + package.uri.replace("://", "/")
    response = client._do_request("GET", path)
    if response.status_code == 404:
        response = client._do_request("PUT", path, data=package.data)
    if response.status_code != 200:
        raise RuntimeError(f"Request failed with status code {response.status_code}: {response.text}")
    return package.uri


def _requirement_files(root: Path) -> list[str]:
    """Return `requirements.txt` and the files that it refers to, relative to the plugin's directory."""
    found: list[str] = []
    waiting = [requirements.FILE]
    while waiting:
        name = os.path.normpath(waiting.pop())
        path = root / name
        if name in found or name.startswith("..") or os.path.isabs(name) or not os.path.isfile(path):
            continue
        found.append(name)
        try:
            lines = requirements.read_lines(path)
        except UnicodeDecodeError:  # the installer reports it
            continue
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}; change its permissions", path=path) from error
        waiting.extend(os.path.join(os.path.dirname(name), str(line.file)) for line in lines if line.is_local_file)
    return found


def _runtime_requirements() -> list[str]:
    """Return the requirements of this runtime, for nodes that do not have it."""
    from packaging.requirements import Requirement

    def plain(lines: list[str]) -> Iterator[str]:
        for line in lines:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                yield str(requirement)

    try:
        return list(plain(importlib.metadata.requires(_DISTRIBUTION) or []))
    except importlib.metadata.PackageNotFoundError:
        return []  # imported from `sys.path` without being installed: its requirements are unknown


# Builders keep their last package, so an unchanged directory is packed once.
@functools.lru_cache(maxsize=4)
def _package_builder(root: Path, always: tuple[str, ...], excludes: tuple[str, ...]) -> PackageBuilder:
    return PackageBuilder(root, always=always, excludes=excludes)


@functools.cache
def _runtime_package_builder() -> PackageBuilder:
    return PackageBuilder(Path(synapse_runtime.__file__).parent, prefix="synapse_runtime/")

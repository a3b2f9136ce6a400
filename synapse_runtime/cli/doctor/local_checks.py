"""Checks of `synapse doctor` on this machine: packages, command, plugin, environment variables, free resources."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from synapse_runtime.cli.doctor.findings import Finding, ok, problem, warning
from synapse_runtime.cli.modes import describe_modes
from synapse_runtime.errors import PluginError
from synapse_runtime.modes import MODES, modes_requiring

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "pytest-synapse-harness"
_FEATURES = {
    "ray": describe_modes(modes_requiring("ray")),
    "remote": describe_modes(modes_requiring("backend")),
    "xdist": "pytest -n",
    "cov": "pytest --cov and coverage of actions",
}
# Always shown; other packages only if there is a problem with them.
_ALWAYS_SHOWN = ("pytest", "pydantic", "ray", "pytest-xdist", "pytest-cov", "coverage")
_GB = 10**9
# For a local cluster, one pytest process and its worker: see `max_test_processes`.
_MEMORY_FOR_TASKS = 2 * _GB
_SHARED_MEMORY_FOR_RESULTS = 0.2 * _GB
_MOST_OF_A_DISK = 0.95  # above this, Ray stores no more objects on a disk


def packages() -> Iterator[Finding]:
    """Check which packages are installed, and that they are new enough."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        own = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        where = Path(__file__).parents[3]
        text = f"runs from {where} but is not installed, so pytest cannot find its plugin"
        yield problem(DISTRIBUTION, text, f"pip install -e {where}")
        return
    yield ok(DISTRIBUTION, own["Version"])
    python, required = platform.python_version(), own["Requires-Python"]
    if SpecifierSet(required).contains(python, prereleases=True):
        yield ok("Python", f"{python}, {sys.executable}")
    else:
        yield problem(
            "Python", f"{python}, but {required} is required", "recreate the environment with a supported Python"
        )
    for text in importlib.metadata.requires(DISTRIBUTION) or ():
        requirement = Requirement(text)
        extra = _extra_of(requirement)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if extra != "all" and applies:
            found = _package(requirement, extra)
            if found.state != "ok" or requirement.name in _ALWAYS_SHOWN:
                yield found
    yield _sdk()


def _extra_of(requirement: Requirement) -> str:
    """Return the extra of this package that a requirement belongs to, or an empty string."""
    match = re.search(r"""extra == ['"]([\w-]+)['"]""", str(requirement.marker or ""))
    return match[1] if match else ""


def _package(requirement: Requirement, extra: str) -> Finding:
    name, required = requirement.name, requirement.specifier
    install = f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install '{name}{required}'"
    version = _version(name)
    if version is None and extra:
        return ok(name, f"not installed; required for {_FEATURES.get(extra, extra)}: {install}")
    if version is None:
        return problem(name, "not installed", install)
    if not required.contains(version, prereleases=True):
        return problem(name, f"{version}, but {required} is required", f"pip install '{name}{required}'")
    missing = _missing_extras(requirement)
    if missing:
        text = f"{version}, but {', '.join(missing)} is not installed; required for {_FEATURES.get(extra, name)}"
        return problem(name, text, install)
    return ok(name, version)


def _missing_extras(requirement: Requirement) -> list[str]:
    """Return the packages required by the extras of a requirement that are not installed."""
    from packaging.requirements import Requirement

    required = map(Requirement, importlib.metadata.requires(requirement.name) or ())
    return sorted(
        {
            other.name
            for other in required
            for extra in requirement.extras
            if other.marker and other.marker.evaluate({"extra": extra}) and not other.marker.evaluate({"extra": ""})
            if _version(other.name) is None
        }
    )


def _sdk() -> Finding:
    version = _version("synapse-sdk")
    if version is None:
        return ok("synapse-sdk", "not installed; required for its steps, pipelines and backend clients")
    return ok("synapse-sdk", f"{version}; plugins that import it use its own classes")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def command() -> Iterator[Finding]:
    """Check which `synapse` the shell would start: synapse-sdk installs a command of the same name."""
    fix = "use `python -m synapse_runtime` instead"
    found = shutil.which("synapse")
    if found is None:
        yield warning("synapse", "no such command on the PATH", fix)
        return
    script = Path(found).read_bytes()[:65536]
    if b"synapse_runtime" not in script:
        owner = "synapse-sdk" if b"synapse_sdk" in script else "another program"
        yield warning("synapse", f"{found} belongs to {owner}", fix)
        return
    # If the path is too long for a shebang line, the script starts a shell, which starts Python in the second line.
    python = re.search(rb"""exec' "(/[^"]+)""", script) or re.search(rb"^#!\s*(/\S+)", script)
    directory = Path(os.fsdecode(python[1])).parent if python else None
    if directory is not None and os.path.realpath(directory) != os.path.realpath(Path(sys.executable).parent):
        yield warning("synapse", f"{found} belongs to another Python, in {directory}", fix)
    else:
        yield ok("synapse", found)


def plugin() -> Iterator[Finding]:
    """Check the plugin that commands and tests find from the current directory."""
    from synapse_runtime.plugins.discovery import CONFIG_NAMES, find_config_above

    untrusted: list[str] = []
    config = find_config_above(Path.cwd(), on_untrusted=untrusted.append)
    for text in untrusted:
        ignored, _, fix = text.partition(". ")
        yield problem("plugin", ignored, fix)
    if config is None:
        names = " or ".join(CONFIG_NAMES[::2])
        yield ok("plugin", f"none here: no {names} of a plugin in this directory or above it")
        return
    from synapse_runtime.plugins.plugin import Plugin

    try:
        found = Plugin.load(config)
    except PluginError as error:
        yield problem("plugin", str(error), f"fix {config.name}")
        return
    names = ", ".join(found.action_names)
    where = f"{found.manifest.code or found.manifest.name}, {config}"
    if names:
        yield ok("plugin", f"{where}; actions: {names}")
    else:
        yield warning("plugin", f"{where}; no actions", f"define them under `actions:` in {config.name}")
    for one in found.manifest.problems:
        yield warning("plugin", str(one), "fix that line; `synapse plugin check` shows all problems")


# Variables that change the behaviour of this package, or of pytest, Ray or coverage, and their meaning.
_VARIABLES = {
    r"SYNAPSE_MODE": "default mode of tests",
    r"SYNAPSE_(HOST|ACCESS_TOKEN|AGENT_ID)|SYNAPSE_PLUGIN_RUN_(USER_TOKEN|TENANT)": "backend of remote mode",
    r"SYNAPSE_LANGUAGE": "language of actions' messages",
    r"RAY_ADDRESS": f"cluster for {describe_modes(modes_requiring('cluster'))}",
    r"(?!RAY_ADDRESS$)RAY_.*": "Ray settings",
    r"COVERAGE_.*|COV_CORE_.*": "coverage measurement of this process",
    r"PYTEST_(ADDOPTS|PLUGINS|DISABLE_PLUGIN_AUTOLOAD|XDIST_AUTO_NUM_WORKERS)": "pytest options and plugins",
    r"PYTHONPATH": "module search path, also for workers",
    r"PYTHONBREAKPOINT": "debugger that breakpoint() starts",
    r"PYTHONWARNINGS": "warning filters",
    r"TMPDIR": "directory for temporary files, and for a cluster if the path is short",
    r"XDG_STATE_HOME": "directory of the warm cluster's state file",
    r"(?i:https?_proxy|all_proxy|no_proxy|grpc_proxy)": "proxies for remote clusters",
    r"REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|SSL_CERT_FILE|SSL_CERT_DIR": "trusted certificates",
}


def variables() -> Iterator[Finding]:
    """Name the environment variables that are set and change behaviour, without their values."""
    for pattern, meaning in _VARIABLES.items():
        names = sorted(name for name, value in os.environ.items() if value and re.fullmatch(pattern, name))
        if names:
            yield ok(", ".join(names), f"set: {meaning}")
    if os.environ.get("SYNAPSE_MODE"):
        known = {name for mode in MODES.values() for name in (mode.name, *mode.aliases)}
        if {word.strip() for word in os.environ["SYNAPSE_MODE"].split(",")} - {*known, "all", ""}:
            yield problem("SYNAPSE_MODE", "unknown mode", f"choose from {', '.join(MODES)}, all")
    if os.environ.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD"):
        yield warning(
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD",
            "pytest does not load plugins automatically",
            "pytest -p pytest_synapse.plugin",
        )
    if re.search(r"-p\s*(=\s*)?no:synapse\b", os.environ.get("PYTEST_ADDOPTS", "")):
        yield warning("PYTEST_ADDOPTS", "disables the synapse pytest plugin", "remove `-p no:synapse`")
    if os.environ.get("PYTHONBREAKPOINT") == "0":
        yield warning("PYTHONBREAKPOINT", "disables breakpoint(), also in actions", "unset PYTHONBREAKPOINT")


def machine() -> Iterator[Finding]:
    """Check that this machine has enough free resources for a local cluster."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield ok("CPUs", str(cpus))
    yield _memory()
    if Path("/dev/shm").is_dir():
        yield _shared_memory()
    yield _temporary_directory()
    for directory in _abandoned():
        yield warning(
            "leftover", f"{directory} was left behind by a cluster that is no longer running", f"rm -rf {directory}"
        )


def _memory() -> Finding:
    free = _free_memory()
    if free is None:
        return ok("memory", "free memory is unknown on this system")
    text = f"{free / _GB:.1f} GB free"
    if free < _MEMORY_FOR_TASKS:
        fix = "close other programs, or use a remote cluster (RAY_ADDRESS)"
        return warning("memory", f"{text}; a cluster and a worker need about {_MEMORY_FOR_TASKS // _GB} GB", fix)
    return ok("memory", text)


def _free_memory(machine: Path = Path("/proc/meminfo"), container: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the free memory in bytes, of this machine or of its container if that is less; None if unknown."""
    free = []
    try:
        available = re.search(r"^MemAvailable:\s*(\d+) kB", machine.read_text(), re.MULTILINE)
        free = [int(available[1]) * 1024] if available else []
        limit, used = (int((container / name).read_text()) for name in ("memory.max", "memory.current"))
        # The file cache counts as used, but is freed on demand.
        cached = re.search(r"^inactive_file (\d+)$", (container / "memory.stat").read_text(), re.MULTILINE)
        free.append(limit - used + (int(cached[1]) if cached else 0))
    except (OSError, ValueError):  # not Linux, no container with cgroup v2, or one without a limit
        pass
    return min(free, default=None)


def _shared_memory() -> Finding:
    free = shutil.disk_usage("/dev/shm").free
    text = f"{free / _GB:.2f} GB free"
    if free < _SHARED_MEMORY_FOR_RESULTS:
        return warning(
            "/dev/shm", f"{text}: Ray stores results there", "use docker run --shm-size=2g, or free up space"
        )
    return ok("/dev/shm", text)


def _temporary_directory() -> Finding:
    from synapse_runtime.executors.ray.cluster.session_scope import MAX_ROOT_LENGTH, new_directory

    root = os.path.dirname(new_directory())
    if len(root) > MAX_ROOT_LENGTH:
        return problem(
            "temporary files",
            f"{root} has {len(root)} characters; Ray's socket paths allow at most {MAX_ROOT_LENGTH}",
            "set TMPDIR to a directory with a shorter path",
        )
    if not os.access(root, os.W_OK | os.X_OK):
        return problem("temporary files", f"{root} is not writable", "set TMPDIR to a writable directory")
    usage = shutil.disk_usage(root)
    text = f"{root}, {usage.free / _GB:.1f} GB free"
    if usage.used > _MOST_OF_A_DISK * (usage.used + usage.free):
        return warning("temporary files", f"{text}: Ray stores no objects on a disk that is this full", "free up space")
    return ok("temporary files", text)


def _abandoned() -> list[Path]:
    from synapse_runtime.executors.ray.cluster.control_socket import abandoned_directories

    roots = {os.path.realpath(root) for root in (tempfile.gettempdir(), "/tmp") if os.path.isdir(root)}
    return [directory for root in sorted(roots) for directory in abandoned_directories(Path(root))]

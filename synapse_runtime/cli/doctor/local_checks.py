"""What `synapse doctor` looks at on this machine: packages, the command, the plugin, variables, room for a cluster."""

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
from synapse_runtime.errors import PluginError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "pytest-synapse-harness"
_FEATURES = {"ray": "task and job mode", "xdist": "pytest -n", "cov": "pytest --cov and coverage of actions"}
# Shown in any case; other packages where something is wrong with them.
_ALWAYS_SHOWN = ("pytest", "pydantic", "ray", "pytest-xdist", "pytest-cov", "coverage")
_GB = 10**9
# A cluster of ours, and one process of pytest with its worker: see `max_test_processes`.
_MEMORY_FOR_TASKS = 2 * _GB
_SHARED_MEMORY_FOR_RESULTS = 0.2 * _GB
_MOST_OF_A_DISK = 0.95  # from there on Ray puts no more objects on it


def packages() -> Iterator[Finding]:
    """Tell what is installed, and whether it is new enough."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        ours = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        where = Path(__file__).parents[2]
        text = f"runs from {where} without being installed: pytest does not find its plugin"
        yield problem(DISTRIBUTION, text, f"pip install -e {where}")
        return
    yield ok(DISTRIBUTION, ours["Version"])
    python, wanted = platform.python_version(), ours["Requires-Python"]
    if SpecifierSet(wanted).contains(python, prereleases=True):
        yield ok("Python", f"{python}, {sys.executable}")
    else:
        yield problem("Python", f"{python}, but {wanted} is needed", "make the environment with another Python")
    for text in importlib.metadata.requires(DISTRIBUTION) or ():
        requirement = Requirement(text)
        extra = _extra_of(requirement)
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if extra != "all" and needed:
            found = _package(requirement, extra)
            if found.state != "ok" or requirement.name in _ALWAYS_SHOWN:
                yield found
    yield _sdk()


def _extra_of(requirement: Requirement) -> str:
    """Return the extra of ours that a requirement is of; empty where it is always needed."""
    match = re.search(r"""extra == ['"]([\w-]+)['"]""", str(requirement.marker or ""))
    return match[1] if match else ""


def _package(requirement: Requirement, extra: str) -> Finding:
    name, wanted = requirement.name, requirement.specifier
    install = f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install '{name}{wanted}'"
    version = _version(name)
    if version is None and extra:
        return ok(name, f"not installed; {_FEATURES.get(extra, extra)} would need it: {install}")
    if version is None:
        return problem(name, "not installed", install)
    if not wanted.contains(version, prereleases=True):
        return problem(name, f"{version}, but {wanted} is needed", f"pip install '{name}{wanted}'")
    lacking = _lacking(requirement)
    if lacking:
        return problem(
            name, f"{version}, without {', '.join(lacking)}, which {_FEATURES.get(extra, name)} needs", install
        )
    return ok(name, version)


def _lacking(requirement: Requirement) -> list[str]:
    """Return the packages that the extras of a requirement ask for, and that are not installed."""
    from packaging.requirements import Requirement

    asked = map(Requirement, importlib.metadata.requires(requirement.name) or ())
    return sorted(
        {
            other.name
            for other in asked
            for extra in requirement.extras
            if other.marker and other.marker.evaluate({"extra": extra}) and not other.marker.evaluate({"extra": ""})
            if _version(other.name) is None
        }
    )


def _sdk() -> Finding:
    version = _version("synapse-sdk")
    if version is None:
        return ok("synapse-sdk", "not installed; its steps, pipelines and backend clients would need it")
    return ok("synapse-sdk", f"{version}; plugins that import it get its own classes")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def command() -> Iterator[Finding]:
    """Tell whose `synapse` the shell would start: synapse-sdk installs a command of the same name."""
    fix = "use `python -m synapse_runtime` in its place"
    found = shutil.which("synapse")
    if found is None:
        yield warning("synapse", "there is no such command on the PATH", fix)
        return
    script = Path(found).read_bytes()[:65536]
    if b"synapse_runtime" not in script:
        whose = "synapse-sdk" if b"synapse_sdk" in script else "another program"
        yield warning("synapse", f"{found} is the command of {whose}", fix)
        return
    # Where the path is too long for a first line, a shell starts Python in the second.
    python = re.search(rb"""exec' "(/[^"]+)""", script) or re.search(rb"^#!\s*(/\S+)", script)
    directory = Path(os.fsdecode(python[1])).parent if python else None
    if directory is not None and os.path.realpath(directory) != os.path.realpath(Path(sys.executable).parent):
        yield warning("synapse", f"{found} belongs to another Python, in {directory}", fix)
    else:
        yield ok("synapse", found)


def plugin() -> Iterator[Finding]:
    """Tell of the plugin that commands and tests find from here."""
    from synapse_runtime.plugins.discovery import CONFIG_NAMES, find_config_above

    config = find_config_above(Path.cwd())
    if config is None:
        names = " or ".join(CONFIG_NAMES[::2])
        yield ok("plugin", f"none here: there is no {names} of a plugin in this directory or above")
        return
    from synapse_runtime.plugins.plugin import Plugin

    try:
        found = Plugin.load(config)
    except PluginError as error:
        yield problem("plugin", str(error), f"mend {config.name}")
        return
    names = ", ".join(found.action_names)
    where = f"{found.manifest.code or found.manifest.name}, {config}"
    if names:
        yield ok("plugin", f"{where}; actions: {names}")
    else:
        yield warning("plugin", f"{where}; it has no actions", f"name them under `actions:` in {config.name}")
    for one in found.manifest.problems:
        yield warning("plugin", str(one), "mend that line; `synapse plugin check` tells all that is wrong")


# Variables that change what we do, or what pytest, Ray or coverage do under us, and how.
_VARIABLES = {
    r"SYNAPSE_MODE": "the mode of tests that name none",
    r"SYNAPSE_LANGUAGE": "the language of actions' messages",
    r"RAY_ADDRESS": "the cluster of task and job mode",
    r"(?!RAY_ADDRESS$)RAY_.*": "settings of Ray",
    r"COVERAGE_.*|COV_CORE_.*": "whether and how this process is measured",
    r"PYTEST_(ADDOPTS|PLUGINS|DISABLE_PLUGIN_AUTOLOAD|XDIST_AUTO_NUM_WORKERS)": "options and plugins of pytest",
    r"PYTHONPATH": "where modules are imported from, by workers too",
    r"PYTHONBREAKPOINT": "what breakpoint() starts",
    r"PYTHONWARNINGS": "which warnings show",
    r"TMPDIR": "where temporary files go, and a cluster's directory if the path is short",
    r"XDG_STATE_HOME": "where the warm cluster is looked for",
    r"(?i:https?_proxy|all_proxy|no_proxy|grpc_proxy)": "the way to clusters elsewhere",
    r"REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|SSL_CERT_FILE|SSL_CERT_DIR": "which certificates are trusted",
}


def variables() -> Iterator[Finding]:
    """Name the variables that are set and change what happens; never their values."""
    for pattern, meaning in _VARIABLES.items():
        names = sorted(name for name, value in os.environ.items() if value and re.fullmatch(pattern, name))
        if names:
            yield ok(", ".join(names), f"set: {meaning}")
    if os.environ.get("SYNAPSE_MODE"):
        from synapse_runtime.runner import MODES

        if {word.strip() for word in os.environ["SYNAPSE_MODE"].split(",")} - {*MODES, "all", ""}:
            yield problem("SYNAPSE_MODE", "names a mode that there is not", f"choose from {', '.join(MODES)}, all")
    if os.environ.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD"):
        yield warning(
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD", "pytest loads no plugins by itself", "pytest -p pytest_synapse.plugin"
        )
    if re.search(r"-p\s*(=\s*)?no:synapse\b", os.environ.get("PYTEST_ADDOPTS", "")):
        yield warning("PYTEST_ADDOPTS", "turns this plugin of pytest off", "take `-p no:synapse` out")
    if os.environ.get("PYTHONBREAKPOINT") == "0":
        yield warning("PYTHONBREAKPOINT", "turns breakpoint() off, in actions too", "unset PYTHONBREAKPOINT")


def machine() -> Iterator[Finding]:
    """Tell whether there is room for a cluster of our own."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield ok("CPUs", str(cpus))
    yield _memory()
    if Path("/dev/shm").is_dir():
        yield _shared_memory()
    yield _room_for_a_cluster()
    for directory in _abandoned():
        yield warning("leftover", f"{directory} is of a cluster that has ended", f"rm -rf {directory}")


def _memory() -> Finding:
    free = _free_memory()
    if free is None:
        return ok("memory", "this system does not tell how much is free")
    text = f"{free / _GB:.1f} GB free"
    if free < _MEMORY_FOR_TASKS:
        fix = "end other programs, or use a cluster elsewhere (RAY_ADDRESS)"
        return warning("memory", f"{text}; a cluster and a worker take about {_MEMORY_FOR_TASKS // _GB} GB", fix)
    return ok("memory", text)


def _free_memory(machine: Path = Path("/proc/meminfo"), container: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the free memory in bytes: of this machine, or what its container leaves; None where nobody tells."""
    free = []
    try:
        told = re.search(r"^MemAvailable:\s*(\d+) kB", machine.read_text(), re.MULTILINE)
        free = [int(told[1]) * 1024] if told else []
        limit, used = (int((container / name).read_text()) for name in ("memory.max", "memory.current"))
        # Files that were read are counted as used, and make room when somebody needs it.
        cached = re.search(r"^inactive_file (\d+)$", (container / "memory.stat").read_text(), re.MULTILINE)
        free.append(limit - used + (int(cached[1]) if cached else 0))
    except (OSError, ValueError):  # no Linux, no container of cgroups' second version, or one without a limit
        pass
    return min(free, default=None)


def _shared_memory() -> Finding:
    free = shutil.disk_usage("/dev/shm").free
    text = f"{free / _GB:.2f} GB free"
    if free < _SHARED_MEMORY_FOR_RESULTS:
        return warning("/dev/shm", f"{text}: Ray keeps results there", "docker run --shm-size=2g, or free some")
    return ok("/dev/shm", text)


def _room_for_a_cluster() -> Finding:
    from synapse_runtime.executors.ray.cluster.session_scope import LONGEST_ROOT, new_directory

    root = os.path.dirname(new_directory())
    if len(root) > LONGEST_ROOT:
        return problem(
            "temporary files",
            f"{root} has {len(root)} characters; Ray's sockets below it have room for {LONGEST_ROOT}",
            "set TMPDIR to a directory with a short name",
        )
    if not os.access(root, os.W_OK | os.X_OK):
        return problem("temporary files", f"{root} cannot be written to", "set TMPDIR to a directory that can be")
    usage = shutil.disk_usage(root)
    text = f"{root}, {usage.free / _GB:.1f} GB free"
    if usage.used > _MOST_OF_A_DISK * (usage.used + usage.free):
        return warning("temporary files", f"{text}: Ray puts no objects on a disk that is so full", "free some")
    return ok("temporary files", text)


def _abandoned() -> list[Path]:
    from synapse_runtime.executors.ray.cluster.control_socket import abandoned_directories

    roots = {os.path.realpath(root) for root in (tempfile.gettempdir(), "/tmp") if os.path.isdir(root)}
    return [directory for root in sorted(roots) for directory in abandoned_directories(Path(root))]

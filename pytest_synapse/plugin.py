"""The pytest plugin: options, marker, and the hooks that put a test into its modes. Nothing else.

Imported in every pytest run of everybody who has it installed, so it imports the standard library and pytest only.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_synapse.fixtures import plugin_env, synapse_executor, synapse_mode, synapse_plugin
from pytest_synapse.modes import MARKER_HELP, MODES, known_mode, marked, modes_of, session_modes
from pytest_synapse.session import SynapseSession, seconds
from synapse_runtime.locate import plugin_above

__all__ = ["plugin_env", "synapse_executor", "synapse_mode", "synapse_plugin"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and their ini forms."""
    group = parser.getgroup("synapse", "tests of Synapse plugin actions")
    group.addoption(
        "--synapse-mode",
        action="append",
        default=None,
        metavar="MODE[,MODE...]",
        help=f"where actions run: {', '.join(MODES)}, several of them, or all; each test runs once in each. "
        "Default: the ini option synapse_mode, the environment variable SYNAPSE_MODE, else local.",
    )
    group.addoption(
        "--synapse-plugin",
        default=None,
        metavar="PATH",
        help="the plugin under test: its directory, config file or module name. Default: the ini option "
        "synapse_plugin, else the nearest config.yaml above each test file.",
    )
    group.addoption(
        "--synapse-ray-address",
        default=None,
        metavar="ADDRESS",
        help="the cluster for task and job mode: host:port, ray://host:port, http(s)://dashboard, or auto. "
        "Default: RAY_ADDRESS, else an ephemeral cluster on this machine.",
    )
    group.addoption(
        "--synapse-timeout",
        default=None,
        type=seconds,
        metavar="SECONDS",
        help="how long an action may take, unless its test's marker says. Default: the ini option, else no limit.",
    )
    parser.addini("synapse_mode", "as --synapse-mode", type="args", default=[])
    parser.addini("synapse_plugin", "as --synapse-plugin, relative to the ini file", default="")
    parser.addini("synapse_timeout", "as --synapse-timeout", default="")
    parser.addini(
        "synapse_strict",
        "in local mode, let params and results be pickled as on the way to a worker (default: true)",
        type="bool",
        default=True,
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Make the plugins above the given paths importable for the conftest files that are read first."""
    arguments = early_config.known_args_namespace.file_or_dir or early_config.getini("testpaths") or ["."]
    for argument in arguments:
        path = Path(argument.partition("::")[0]).absolute()
        _make_plugin_importable(path if path.is_dir() else path.parent)


def pytest_configure(config: pytest.Config) -> None:
    """Check what was given and register the marker."""
    config.addinivalue_line("markers", MARKER_HELP)
    session_modes(config)
    session = config.stash[SynapseSession.KEY] = SynapseSession(config)
    session.timeout()


def pytest_report_header(config: pytest.Config) -> str:
    """Say where actions run, and on which cluster."""
    modes = session_modes(config)
    line = f"synapse: mode {', '.join(modes)}"
    if set(modes) == {"local"}:
        return line
    from synapse_runtime.executors.ray.cluster import describe

    return f"{line}; cluster: {describe(config.getoption('synapse_ray_address'))}"


@pytest.hookimpl(tryfirst=True)
def pytest_collect_directory(path: Path) -> None:
    """Make a plugin importable before the conftest files below its directory are imported."""
    _make_plugin_importable(path)


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makemodule(module_path: Path) -> Iterator[None]:
    """Make the plugin above a test file importable before the file is imported."""
    _make_plugin_importable(module_path.parent)
    return (yield)


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let a test with several modes run once in each."""
    if hasattr(metafunc.config, "workerinput"):  # of xdist, which has no way to tell of a usage error
        try:
            modes_of(metafunc.definition, metafunc.config)
        except pytest.UsageError as error:
            raise pytest.Collector.CollectError(str(error)) from None
    if "synapse_mode" not in metafunc.fixturenames or _parametrized_by_user(metafunc):
        return
    try:
        modes = modes_of(metafunc.definition, metafunc.config)
    except pytest.UsageError:
        return  # told for all tests at once, after collection
    if len(modes) > 1:
        # Of session scope, so that pytest groups the tests by mode.
        metafunc.parametrize("synapse_mode", modes, indirect=True, scope="session")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse wrong markers and modes before any test runs."""
    for item in items:
        marked(item)
        _modes_to_run(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Begin to start an ephemeral cluster while the first tests run, if any test will need one."""
    if (
        session.config.option.collectonly
        or session.config.getoption("setuponly", False)
        or (session.testsfailed and not session.config.option.continue_on_collection_errors)
    ):
        return
    needed = {mode for item in session.items for mode in _modes_to_run(item)}
    if needed <= {"local"}:
        return
    shared = session.config.stash[SynapseSession.KEY]
    shared.jobs_wanted = "job" in needed
    from synapse_runtime.executors.ray.cluster import start_early

    start_early(shared.address, jobs=shared.jobs_wanted)


@pytest.hookimpl(tryfirst=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector, call: pytest.CallInfo[object]) -> None:
    """Let `--pdb` open where the action failed, not where the test asked for the result, if that was here."""
    executor = getattr(node, "funcargs", {}).get("synapse_executor")
    if getattr(executor, "mode", None) != "local" or call.excinfo is None or not node.config.option.usepdb:
        return
    cause = call.excinfo.value.__cause__
    if cause is not None and cause.__traceback__ is not None and call.excinfo.typename == "ExecutionError":
        call.excinfo = pytest.ExceptionInfo.from_exception(cause)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End workers, jobs and the cluster of this run."""
    if SynapseSession.KEY in config.stash:
        config.stash[SynapseSession.KEY].close()


def _modes_to_run(item: pytest.Item) -> tuple[str, ...]:
    if "synapse_mode" not in getattr(item, "fixturenames", ()):
        return ()
    callspec = getattr(item, "callspec", None)
    if callspec is not None and "synapse_mode" in callspec.params:
        return (known_mode(str(callspec.params["synapse_mode"]), f"{item.nodeid}: synapse_mode"),)
    return modes_of(item, item.config)[:1]


def _parametrized_by_user(metafunc: pytest.Metafunc) -> bool:
    for mark in metafunc.definition.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs.get("argnames", ())
        if "synapse_mode" in ([name.strip() for name in names.split(",")] if isinstance(names, str) else names):
            return True
    return False


def _make_plugin_importable(directory: Path) -> None:
    config = plugin_above(directory)
    if config is None:
        return
    root = str(config.parent)
    if sys.path[:1] != [root]:  # first, also where another plugin was before: their modules share names
        with contextlib.suppress(ValueError):
            sys.path.remove(root)
        sys.path.insert(0, root)

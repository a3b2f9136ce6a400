"""The pytest plugin: options, the marker, and the hooks that run each test in its modes. Nothing else.

Every pytest run imports it wherever it is installed, so it imports the standard library and pytest only.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator
from typing import Any

import pytest

from pytest_synapse.compat import allow_function_scoped_fixtures
from pytest_synapse.fixtures import plugin_env, synapse_backend, synapse_executor, synapse_mode, synapse_plugin
from pytest_synapse.modes import (
    CLASS_MODE_KEY,
    MARKER_HELP,
    is_own_fixture,
    is_parametrized_by_user,
    known_mode,
    marker_kwargs,
    modes_of,
    selected_modes,
    session_modes,
)
from pytest_synapse.module_import import ModuleImporter
from pytest_synapse.patch_recording import watch_monkeypatch
from pytest_synapse.run_reporting import ItemRuns
from pytest_synapse.session import SynapseSession, at_least, note_environment, seconds
from synapse_runtime.modes import MODES
from synapse_runtime.sdk_compat import import_hook

__all__ = ["plugin_env", "synapse_backend", "synapse_executor", "synapse_mode", "synapse_plugin"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the command-line and ini options."""
    group = parser.getgroup("synapse", "Synapse plugin actions")
    group.addoption(
        "--synapse-mode",
        action="append",
        default=None,
        metavar="MODE[,MODE...]",
        help=f"Run actions in these modes: {', '.join(MODES)}, or all; each test runs once in each. "
        "Default: the ini option synapse_mode, the environment variable SYNAPSE_MODE, else local.",
    )
    group.addoption(
        "--synapse-plugin",
        default=None,
        metavar="PATH",
        help="Test this plugin: a directory, config file or module name. Default: the ini option "
        "synapse_plugin, else the nearest config.yaml above each test file.",
    )
    group.addoption(
        "--synapse-ray-address",
        default=None,
        metavar="ADDRESS",
        help="Use this cluster in task and job mode: host:port, ray://host:port, http(s)://dashboard, or auto. "
        "Default: RAY_ADDRESS, else the warm cluster of `synapse cluster up`, else an ephemeral one on this machine.",
    )
    group.addoption(
        "--synapse-num-cpus",
        default=None,
        type=at_least(1),
        metavar="N",
        help="Start the ephemeral cluster with N CPUs. Default: as many as this machine has.",
    )
    group.addoption(
        "--synapse-num-gpus",
        default=None,
        type=at_least(0),
        metavar="N",
        help="Start the ephemeral cluster with N GPUs; they need not be real. Default: as many as this machine has.",
    )
    group.addoption(
        "--synapse-keep-cluster",
        action="store_true",
        help="Keep the run's cluster for the next run, until `synapse cluster down` or 30 minutes without use.",
    )
    group.addoption(
        "--synapse-host",
        default=None,
        metavar="URL",
        help="Use this backend in remote mode. Default: the ini option synapse_host, else one that is started for this "
        "run.",
    )
    group.addoption(
        "--synapse-token-file",
        default=None,
        metavar="PATH",
        help="Read its access token from this file. Default: the ini option synapse_token_file, SYNAPSE_ACCESS_TOKEN, "
        "or that of `synapse login`.",
    )
    group.addoption(
        "--synapse-timeout",
        default=None,
        type=seconds,
        metavar="SECONDS",
        help="Stop an action after SECONDS, unless the test's marker sets a timeout. Default: the ini option, else "
        "no limit.",
    )
    group.addoption(
        "--synapse-debug-sdk",
        action="store_true",
        help="Upload this runtime with the plugin to a cluster on other machines, instead of using the one there.",
    )
    group.addoption(
        "--synapse-durations",
        default=None,
        type=at_least(0),
        metavar="N",
        help="Show the N slowest runs of actions in the summary, 0 for all. Default: the ini option, else none.",
    )
    group.addoption(
        "--synapse-mask",
        default=None,
        metavar="NAMES",
        help="Replace the values of these environment variables and params in reports, separated by commas. Those "
        "named like secrets always are.",
    )
    parser.addini("synapse_mode", "Default for --synapse-mode", type="args", default=[])
    parser.addini("synapse_plugin", "Default for --synapse-plugin, relative to the ini file", default="")
    parser.addini("synapse_host", "Default for --synapse-host", default="")
    parser.addini("synapse_token_file", "Default for --synapse-token-file, relative to the ini file", default="")
    parser.addini(
        "synapse_remote_strict",
        "In remote mode, fail a test that a backend cannot run, or whose values JSON cannot carry, instead of skipping "
        "it (default: false)",
        type="bool",
        default=False,
    )
    parser.addini("synapse_timeout", "Default for --synapse-timeout", default="")
    parser.addini("synapse_mask", "Default for --synapse-mask", type="args", default=[])
    parser.addini("synapse_durations", "Default for --synapse-durations", default="")
    parser.addini(
        "synapse_seed",
        "Seed the generators of random, numpy and torch with this number at the beginning of each call (default: that "
        "of pytest-randomly, if it is used)",
        default="",
    )
    parser.addini(
        "synapse_sdk_names",
        "If synapse-sdk is not installed, resolve imports of synapse_sdk to the equivalents in this package "
        "(default: true)",
        type="bool",
        default=True,
    )
    parser.addini(
        "synapse_strict",
        "In local mode, pickle params and results as if they were sent to a worker (default: true)",
        type="bool",
        default=True,
    )


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the hooks that report runs."""
    from pytest_synapse import hooks

    pluginmanager.add_hookspecs(hooks)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Set up each plugin's own modules before the first conftest file is imported.

    By then, `synapse_sdk` must resolve to this package's equivalents or, if they are turned off, to nothing.
    """
    note_environment(early_config)
    watch_monkeypatch()
    if not early_config.getini("synapse_sdk_names") and import_hook.is_installed():
        import_hook.uninstall()
        early_config.add_cleanup(import_hook.install)
    ModuleImporter.start(early_config)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and check the options."""
    config.addinivalue_line("markers", MARKER_HELP)
    session_modes(config)
    session = SynapseSession.of(config)
    session.mask_values()
    if session_modes(config) != ("local",):
        session.watch_patches()


def pytest_report_header(config: pytest.Config) -> str:
    """Show the modes, and the cluster that they use."""
    modes = session_modes(config)
    return "; ".join([f"synapse: mode {', '.join(modes)}", *SynapseSession.of(config).describe(modes)])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the address of the run's shared cluster to each pytest-xdist worker."""
    SynapseSession.of(node.config).configure_xdist_worker(node.workerinput)


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Make `-n auto` start as many processes as the run's cluster and this machine's memory allow."""
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return None
    return SynapseSession.of(config).max_processes(session_modes(config))


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize a test that has several modes, so that it runs once in each."""
    if hasattr(metafunc.config, "workerinput"):  # pytest-xdist workers cannot raise a usage error
        try:
            modes_of(metafunc.definition, metafunc.config)
        except pytest.UsageError as error:
            raise pytest.Collector.CollectError(str(error)) from None
    test = metafunc.definition
    if "synapse_mode" not in metafunc.fixturenames or is_parametrized_by_user(test) or is_own_fixture(test):
        return
    try:
        modes = modes_of(metafunc.definition, metafunc.config)
    except pytest.UsageError:
        return  # reported for all tests at once, after collection
    if len(modes) > 1:
        # Session scope makes pytest group the tests by mode.
        metafunc.parametrize("synapse_mode", modes, indirect=True, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem() -> Generator[None, Any, Any]:
    """Collect a `SynapseTestCase` that has several modes once for each."""
    made = yield
    cases = sys.modules.get("pytest_synapse.unittest_cases")
    if cases is not None and isinstance(made, pytest.Class) and issubclass(made.obj, cases.SynapseTestCase):
        return cases.in_each_mode(made)
    return made


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Import a plugin's tests with its modules; drop tests of a `SynapseTestCase` that are for other modes."""
    importing = ModuleImporter.of(collector.config)
    importing.activate(collector.path)
    report = yield
    importing.keep_test_modules(collector, report)
    if CLASS_MODE_KEY in collector.stash and report.passed:
        mode = collector.stash[CLASS_MODE_KEY]
        report.result = [test for test in report.result if mode in selected_modes(test, test.config)]
    # pytest-xdist workers cannot raise a usage error.
    if report.passed and hasattr(collector.config, "workerinput"):
        try:
            for item in report.result:
                _require_one_mode(item)
        except pytest.UsageError as error:
            report.outcome, report.longrepr, report.result = "failed", str(error), []
    return report


def pytest_itemcollected(item: pytest.Item) -> None:
    """Start an ephemeral cluster in the background during collection, once a test is found that needs one."""
    allow_function_scoped_fixtures(item)
    session = SynapseSession.of(item.config)
    if session.starts_while_collecting and "synapse_mode" in getattr(item, "fixturenames", ()):
        with contextlib.suppress(pytest.UsageError):  # reported for all tests at once, after collection
            session.start_while_collecting(_modes_to_run(item))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Report invalid markers and modes before any test runs; deselect tests that support none of these modes."""
    kept: list[pytest.Item] = []
    unsupported: list[pytest.Item] = []
    has_workers = False
    for item in items:
        kwargs, modes = marker_kwargs(item), _modes_to_run(item)
        is_supported = "supports" not in kwargs or "synapse_mode" not in getattr(item, "fixturenames", ())
        (kept if modes or is_supported else unsupported).append(item)
        has_workers = has_workers or modes not in ((), ("local",)) or kwargs.get("isolation") == "fresh"
        _require_one_mode(item)
    if has_workers:  # before the first fixture is set up, which may patch something
        SynapseSession.of(config).watch_patches()
    if unsupported:
        config.hook.pytest_deselected(items=unsupported)
        items[:] = kept


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Start an ephemeral cluster in the background while the first tests run, if any test needs one."""
    if (
        session.config.option.collectonly
        or session.config.getoption("setuponly", False)
        or (session.testsfailed and not session.config.option.continue_on_collection_errors)
    ):
        return
    needed = {mode for item in session.items for mode in _modes_to_run(item)}
    SynapseSession.of(session.config).start_in_background(needed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add a test's runs to its reports, and redact its secrets in them."""
    runs = item.stash.get(ItemRuns.KEY, None)
    if runs is not None:
        runs.name_properties()
    report = yield
    if runs is not None:
        runs.redact(report)
    if runs is not None and (collected := runs.collect()) is not None:
        vars(report)["synapse_runs"] = collected
    if runs is not None and runs.was_refused and report.skipped:
        vars(report)["synapse_refused"] = True
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_exception_interact(
    node: pytest.Item | pytest.Collector, call: pytest.CallInfo[object], report: pytest.TestReport
) -> None:
    """Make `--pdb` stop where the action failed if it ran in this process, else where the test made the call."""
    runs = node.stash.get(ItemRuns.KEY, None)
    if runs is not None and isinstance(node, pytest.Item) and node.config.getoption("usepdb", False):
        from pytest_synapse.debugging import prepare

        prepare(node, runs.mode, call, report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show the summary of all tests' runs, if there were any."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    runs = [(report.nodeid, report.synapse_runs) for report in reports if hasattr(report, "synapse_runs")]
    refused = sum(hasattr(report, "synapse_refused") for report in reports)
    if (runs or refused) and config.get_verbosity() > -2:
        from pytest_synapse.reporting import summarize

        summarize(terminalreporter, runs, SynapseSession.of(config).slowest(), refused=refused)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop this run's workers, jobs and cluster, and unload the modules of plugins."""
    if SynapseSession.KEY in config.stash:
        config.stash[SynapseSession.KEY].close()
    ModuleImporter.of(config).stop()


def _modes_to_run(item: pytest.Item) -> tuple[str, ...]:
    if "synapse_mode" not in getattr(item, "fixturenames", ()):
        return ()
    callspec = getattr(item, "callspec", None)
    param = None if callspec is None else callspec.params.get("synapse_mode")
    if is_own_fixture(item):  # its params may be anything
        return (param,) if isinstance(param, str) and param in MODES else ()
    if param is not None:
        return (known_mode(str(param), f"{item.nodeid}: synapse_mode"),)
    return modes_of(item, item.config)[:1]


def _require_one_mode(item: pytest.Item) -> None:
    unittest = sys.modules.get("unittest")
    cls = getattr(item, "cls", None)
    if unittest is None or cls is None or not issubclass(cls, unittest.TestCase):
        return
    has_mode = "synapse_mode" in getattr(item, "fixturenames", ()) and not is_own_fixture(item)
    if has_mode and len(modes := modes_of(item, item.config)) > 1:
        raise pytest.UsageError(
            f"{item.nodeid}: pytest runs each test of a unittest.TestCase once, but several modes are selected "
            f"({', '.join(modes)}): derive the class from pytest_synapse.SynapseTestCase, which runs in each of them, "
            "or select one mode"
        )

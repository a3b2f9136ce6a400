"""All checks of `synapse doctor`. A check that fails or hangs is itself a finding, and the other checks still run."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace

from synapse_runtime.cli.doctor import backend_checks, cluster_checks, local_checks
from synapse_runtime.cli.doctor.findings import Check, Finding, problem, without_secrets
from synapse_runtime.errors import PluginError, safe_str

# By topic. Ray is checked after the variables, because importing it sets some.
CHECKS: Mapping[str, Mapping[str, Check]] = {
    "Installed": {"packages": local_checks.packages, "command": local_checks.command},
    "Environment": {"plugin": local_checks.plugin, "variables": local_checks.variables},
    "Cluster": {"Ray": cluster_checks.ray, "cluster": cluster_checks.cluster},
    "Backend": {"login": backend_checks.login},
    "Machine": {"machine": local_checks.machine},
}
# Time limits in seconds. Importing Ray is slow on a slow disk; an unreachable cluster shows soon.
_LIMITS = {"cluster": 6.0}
_LIMIT = 30.0


def run_checks() -> dict[str, list[Finding]]:
    """Run all checks and return their findings by topic, without secrets."""
    return {topic: _without_secrets(_check_topic(topic)) for topic in CHECKS}


def _check_topic(topic: str) -> Iterable[Finding]:
    for name, check in CHECKS[topic].items():
        yield from run_check(name, check, _LIMITS.get(name, _LIMIT))


def _without_secrets(findings: Iterable[Finding]) -> list[Finding]:
    return [replace(one, text=without_secrets(one.text), fix=without_secrets(one.fix)) for one in findings]


def run_check(name: str, check: Check, limit: float = _LIMIT) -> list[Finding]:
    """Run a check and return its findings. A failure or a timeout is a finding, too.

    Args:
        name: The name of what is checked.
        check: The check. If it hangs, its daemon thread keeps running.
        limit: The time limit in seconds.

    Example:
        >>> def broken():
        ...     raise OSError("no such device")
        >>> [finding.text for finding in run_check("disk", broken)]
        ['this check failed: OSError: no such device']
    """
    found: list[Finding] = []

    def collect() -> None:
        try:
            for finding in check():
                found.append(finding)
        except PluginError as error:
            found.append(problem(name, safe_str(error), "see the message"))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the other checks must still run
            text = f"this check failed: {type(error).__name__}: {safe_str(error)}"
            found.append(problem(name, text, "fix the cause, or report this as a bug"))

    thread = threading.Thread(target=collect, name=f"doctor: {name}", daemon=True)
    thread.start()
    thread.join(limit)
    if thread.is_alive():
        return [*found, problem(name, f"no answer within {limit:g} s", "check that what is named above is reachable")]
    return found

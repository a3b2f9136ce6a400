"""All checks of `synapse doctor`, each guarded by itself: that one fails or hangs is a finding, and others go on."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace

from synapse_runtime.cli.doctor import cluster_checks, local_checks
from synapse_runtime.cli.doctor.findings import Check, Finding, problem, without_secrets
from synapse_runtime.errors import PluginError, safe_str

# By topic. Ray comes after the variables, as it sets some itself.
CHECKS: Mapping[str, Mapping[str, Check]] = {
    "Installed": {"packages": local_checks.packages, "command": local_checks.command},
    "Here": {"plugin": local_checks.plugin, "variables": local_checks.variables},
    "Cluster": {"Ray": cluster_checks.ray, "cluster": cluster_checks.cluster},
    "Machine": {"machine": local_checks.machine},
}
# Seconds that a check may take: Ray's import takes long on a slow disk; what does not answer is soon known.
_LIMITS = {"cluster": 6.0}
_LIMIT = 30.0


def examine_all() -> dict[str, list[Finding]]:
    """Return what all checks find, by topic, without secrets."""
    return {topic: _without_secrets(_of_topic(topic)) for topic in CHECKS}


def _of_topic(topic: str) -> Iterable[Finding]:
    for name, check in CHECKS[topic].items():
        yield from examine(name, check, _LIMITS.get(name, _LIMIT))


def _without_secrets(findings: Iterable[Finding]) -> list[Finding]:
    return [replace(one, text=without_secrets(one.text), fix=without_secrets(one.fix)) for one in findings]


def examine(name: str, check: Check, limit: float = _LIMIT) -> list[Finding]:
    """Return what a check finds. That it fails, or does not end, is a finding too.

    Args:
        name: What it looks at.
        check: The check. One that hangs is left alone in its thread.
        limit: Seconds that it may take.

    Example:
        >>> def broken():
        ...     raise OSError("no such device")
        >>> [finding.text for finding in examine("disk", broken)]
        ['this check failed: OSError: no such device']
    """
    found: list[Finding] = []

    def look() -> None:
        try:
            for finding in check():
                found.append(finding)
        except PluginError as error:
            found.append(problem(name, safe_str(error), "see the message"))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever is broken, the other checks go on
            text = f"this check failed: {type(error).__name__}: {safe_str(error)}"
            found.append(problem(name, text, "mend what it names, or report it to the authors of this package"))

    thread = threading.Thread(target=look, name=f"doctor: {name}", daemon=True)
    thread.start()
    thread.join(limit)
    if thread.is_alive():
        return [*found, problem(name, f"no answer within {limit:g} s", "see whether what is named above is there")]
    return found

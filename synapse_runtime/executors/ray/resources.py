"""Resources that a call requests of a cluster: validation, comparison with what the cluster has, and error messages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from synapse_runtime.errors import ClusterError

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines
# How long a call waits by default for resources that other workers hold.
WAIT_SECONDS = 60.0
# Ray's names of the resources that our options request.
_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
# Not custom: those with an option of their own, and one that only Ray uses.
_NOT_CUSTOM = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory", "object_store_memory": None}


def checked_resources(
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    memory: int | str | None = None,
    resources: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Validate requested resources and return them as Ray's options.

    Args:
        num_cpus: Number of CPUs, at least 0.
        num_gpus: Number of GPUs, at least 0: a fraction of one, or a whole number.
        memory: Memory in bytes, or text such as `"2GB"` (2 × 1000³ bytes) or `"512MiB"` (512 × 1024² bytes).
        resources: Custom resources of the cluster's nodes, by name.

    Raises:
        ValueError: An argument is invalid; the error names it.

    Example:
        >>> checked_resources(num_cpus=2, memory="1.5GiB", resources={"accelerator": 1})
        {'num_cpus': 2, 'memory': 1610612736, 'resources': {'accelerator': 1}}
    """
    options: dict[str, Any] = {}
    for name, number in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
        if number is not None:
            options[name] = _number(name, number)
    if memory is not None:
        options["memory"] = _bytes(memory)
    if resources is not None and not isinstance(resources, Mapping):
        raise ValueError(f"resources must be a dict of names and numbers, not {resources!r}")
    if resources:
        options["resources"] = {name: _number(_custom(name), number) for name, number in resources.items()}
    return options


def _custom(name: Any) -> str:
    """Check the name of a custom resource, and return how messages refer to it."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of a resource must be a non-empty string, not {name!r}")
    if name in _NOT_CUSTOM:
        option = _NOT_CUSTOM[name]
        raise ValueError(
            f"resources cannot contain {name!r}" + (f": use {option}" if option else ", which Ray manages itself")
        )
    return f"resources[{name!r}]"


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a non-negative number, not {value!r}")
    if name == "num_gpus" and value > 1 and value % 1:
        raise ValueError(f"num_gpus must be a fraction of one GPU or a whole number, not {value!r}")
    return value


def _bytes(value: Any) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        if isinstance(value, bool):
            raise TypeError
        size = int(TypeAdapter(ByteSize).validate_python(value))
    except (TypeError, ValidationError):
        size = 0
    if size <= 0:
        raise ValueError(f"memory must be a number of bytes, or text such as '2GB' or '512MiB', not {value!r}")
    return size


def requested_by(options: Mapping[str, Any]) -> dict[str, float]:
    """Return the amounts in Ray's options, by Ray's names of resources.

    Example:
        >>> requested_by({"num_cpus": 2, "resources": {"accelerator": 1}})
        {'CPU': 2, 'accelerator': 1}
    """
    return {_NAMES[name]: options[name] for name in _NAMES if name in options} | dict(options.get("resources", {}))


def require_resources(
    options: Mapping[str, Any], nodes: Iterable[Mapping[str, float]], *, is_managed: bool = False
) -> None:
    """Raise `ClusterError` if the cluster can never satisfy the request: Ray would wait for ever.

    A worker runs on one node, so one node must have all of it.

    Args:
        options: What `checked_resources` returned.
        nodes: The resources of each of the cluster's nodes, by Ray's names.
        is_managed: Whether synapse started the cluster, so that the error can suggest starting it with more GPUs.
    """
    requested, nodes = requested_by(options), [*nodes]
    for name, amount in requested.items():
        total = sum(node.get(name, 0) for node in nodes)
        if amount > total:
            hint = ""
            if is_managed and name == "GPU":
                gpus = math.ceil(amount)
                hint = (
                    f"; add --synapse-num-gpus={gpus} (pytest) or run synapse cluster up --gpus={gpus} "
                    "(they need not be real)"
                )
            raise ClusterError(
                f"requested {_option(name, amount)}, but the cluster has {_total(name, total)} "
                f"({readable(_sum(nodes), requested)}){hint}"
            )
    if requested and not any(fits(requested, node) for node in nodes):
        raise ClusterError(
            f"requested {describe(options)}, which a worker needs on one node, but no node of the cluster has that "
            "much: " + "; ".join(_with_counts([readable(node, requested) for node in nodes]))
        )


def resource_timeout_error(
    address: str, options: Mapping[str, Any], free: Mapping[str, float], timeout: float
) -> ClusterError:
    """Return the error of a call that timed out while other workers hold the resources.

    Args:
        address: The cluster's address.
        options: What `checked_resources` returned.
        free: The available resources of all nodes together, by Ray's names.
        timeout: The timeout in seconds.
    """
    return ClusterError(
        f"no worker could be scheduled on {address} within {timeout:g} s: requested {describe(options)}; available on "
        f"all nodes together: {readable(free, requested_by(options))}"
    )


def fits(requested: Mapping[str, float], available: Mapping[str, float]) -> bool:
    """Return whether enough of each requested resource is available; both by Ray's names."""
    return all(amount <= available.get(name, 0) for name, amount in requested.items())


def describe(options: Mapping[str, Any]) -> str:
    """Return the requested resources as the caller wrote them.

    Example:
        >>> describe({"num_gpus": 2, "memory": 2_000_000_000, "resources": {"accelerator": 1}})
        "num_gpus=2, memory=2.0GB, resources={'accelerator': 1}"
    """
    return ", ".join(_option(name, amount) for name, amount in requested_by(options).items())


def readable(resources: Mapping[str, float], requested: Mapping[str, float] | None = None) -> str:
    """Return resources as readable text: CPUs, GPUs, and what else was requested.

    Example:
        >>> readable({"CPU": 2.0, "memory": 8e9, "node:10.0.0.1": 1.0}, {"memory": 1e9})
        'CPU 2, GPU 0, memory 8.0GB'
    """
    names = dict.fromkeys(("CPU", "GPU", *(requested or ())))
    return ", ".join(f"{name} {_format_amount(name, resources.get(name, 0))}" for name in names)


def _option(name: str, amount: float) -> str:
    for option, ray_name in _NAMES.items():
        if name == ray_name:
            return f"{option}={_format_amount(name, amount)}"
    return f"resources={{{name!r}: {amount:g}}}"


def _total(name: str, amount: float) -> str:
    """Return the total of a resource in words, such as `4 CPUs in total` or `no GPUs`.

    Example:
        >>> _total("GPU", 0), _total("GPU", 1), _total("memory", 4e9), _total("tpu", 2)
        ('no GPUs', '1 GPU in total', '4.0GB of memory in total', '2 tpu in total')
    """
    noun = {"CPU": "CPU" if amount == 1 else "CPUs", "GPU": "GPU" if amount == 1 else "GPUs"}.get(name, name)
    if amount == 0:
        return f"no {noun}"
    return f"{_format_amount(name, amount)} {'of ' if name == 'memory' else ''}{noun} in total"


def _format_amount(name: str, amount: float) -> str:
    from pydantic import ByteSize

    return ByteSize(amount).human_readable(decimal=True) if name == "memory" else f"{amount:g}"


def _sum(nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(node.get(name, 0) for node in nodes) for name in {name for node in nodes for name in node}}


def _with_counts(texts: Sequence[str]) -> list[str]:
    """Return each text once, with its count, so that a hundred equal nodes take one line."""
    return [f"{texts.count(text)} × {text}" if texts.count(text) > 1 else text for text in sorted(set(texts))]

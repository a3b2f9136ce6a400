"""What a call asks of a cluster: checked, measured against what the cluster has, and told to people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from synapse_runtime.errors import ClusterError

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help
# How long a call waits for what others hold at the moment, if it is not told.
WAIT_SECONDS = 60.0
# Ray's names of what our options ask for.
_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
# Those that have an option of their own, and one that is Ray's business.
_NOT_CUSTOM = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory", "object_store_memory": None}


def checked_resources(
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    memory: int | str | None = None,
    resources: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return what was asked for as Ray's options.

    Args:
        num_cpus: CPUs, at least 0.
        num_gpus: GPUs, at least 0; a part of one, or whole ones.
        memory: Bytes, or text such as `"2GB"` (2 × 1000³ bytes) or `"512MiB"` (512 × 1024² bytes).
        resources: Custom resources of the cluster's nodes, by name.

    Raises:
        ValueError: Something is of the wrong kind; names it.

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
    """Return how messages call a custom resource, if it can be one."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of a resource must be a text, not {name!r}")
    if name in _NOT_CUSTOM:
        option = _NOT_CUSTOM[name]
        raise ValueError(f"resources cannot hold {name!r}" + (f": use {option}" if option else ", which is Ray's own"))
    return f"resources[{name!r}]"


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number of at least 0, not {value!r}")
    if name == "num_gpus" and value > 1 and value % 1:
        raise ValueError(f"num_gpus must be a part of one GPU or whole ones, not {value!r}")
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
    """Return Ray's options as amounts by Ray's names of resources.

    Example:
        >>> requested_by({"num_cpus": 2, "resources": {"accelerator": 1}})
        {'CPU': 2, 'accelerator': 1}
    """
    return {_NAMES[name]: options[name] for name in _NAMES if name in options} | dict(options.get("resources", {}))


def require_resources(options: Mapping[str, Any], nodes: Iterable[Mapping[str, float]]) -> None:
    """Raise `ClusterError` where the cluster can never give what was asked for: nobody would ever answer.

    A worker is on one node, so one node must have it all.

    Args:
        options: What `checked_resources` returned.
        nodes: What each of the cluster's nodes has, by Ray's names.
    """
    asked, nodes = requested_by(options), [*nodes]
    for name, amount in asked.items():
        total = sum(node.get(name, 0) for node in nodes)
        if amount > total:
            raise ClusterError(
                f"asked for {_option(name, amount)}, but the cluster has {_amount(name, total)} in all "
                f"({readable(_sum(nodes), asked)})"
            )
    if asked and not any(fits(asked, node) for node in nodes):
        raise ClusterError(
            f"asked for {describe(options)}, which a worker needs on one node, but no node of the cluster has that: "
            + "; ".join(_counted([readable(node, asked) for node in nodes]))
        )


def no_room(address: str, options: Mapping[str, Any], free: Mapping[str, float], waited: float) -> ClusterError:
    """Return the error of a wait for resources that others hold.

    Args:
        address: The cluster's.
        options: What `checked_resources` returned.
        free: What the cluster has free, all nodes together, by Ray's names.
        waited: How long, in seconds.
    """
    return ClusterError(
        f"the cluster at {address} gave no worker within {waited:g} s: asked for {describe(options)}; free, on "
        f"all nodes together, is {readable(free, requested_by(options))}"
    )


def fits(asked: Mapping[str, float], there: Mapping[str, float]) -> bool:
    """Tell whether there is as much as was asked for of each; both by Ray's names."""
    return all(amount <= there.get(name, 0) for name, amount in asked.items())


def describe(options: Mapping[str, Any]) -> str:
    """Return what was asked for, as the caller wrote it.

    Example:
        >>> describe({"num_gpus": 2, "memory": 2_000_000_000, "resources": {"accelerator": 1}})
        "num_gpus=2, memory=2.0GB, resources={'accelerator': 1}"
    """
    return ", ".join(_option(name, amount) for name, amount in requested_by(options).items())


def readable(resources: Mapping[str, float], asked: Mapping[str, float] | None = None) -> str:
    """Return resources as text for people: CPUs and GPUs, and whatever else was asked for.

    Example:
        >>> readable({"CPU": 2.0, "memory": 8e9, "node:10.0.0.1": 1.0}, {"memory": 1e9})
        'CPU 2, GPU 0, memory 8.0GB'
    """
    names = dict.fromkeys(("CPU", "GPU", *(asked or ())))
    return ", ".join(f"{name} {_plain(name, resources.get(name, 0))}" for name in names)


def _option(name: str, amount: float) -> str:
    for option, ray_name in _NAMES.items():
        if name == ray_name:
            return f"{option}={_plain(name, amount)}"
    return f"resources={{{name!r}: {amount:g}}}"


def _amount(name: str, amount: float) -> str:
    return f"{_plain(name, amount)} {name}"


def _plain(name: str, amount: float) -> str:
    from pydantic import ByteSize

    return ByteSize(amount).human_readable(decimal=True) if name == "memory" else f"{amount:g}"


def _sum(nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(node.get(name, 0) for node in nodes) for name in {name for node in nodes for name in node}}


def _counted(texts: Sequence[str]) -> list[str]:
    """Return each text once, with how often it is there: a hundred nodes of one kind are one line."""
    return [f"{texts.count(text)} × {text}" if texts.count(text) > 1 else text for text in sorted(set(texts))]

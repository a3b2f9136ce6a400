"""Random values of options, ini options and marker arguments: each is accepted, or a usage error that names its source.

The values are random but the same in each run.
"""

from __future__ import annotations

import random

import pytest

from pytest_synapse.modes import _check
from tests.cli.test_hostile_input import Hostile

OPTIONS = ("mode", "plugin", "ray-address", "num-cpus", "num-gpus", "timeout", "durations", "mask")
INI_OPTIONS = ("mode", "plugin", "timeout", "durations", "mask")
ARGUMENTS = ("mode", "env", "timeout", "num_cpus", "num_gpus", "memory", "resources", "isolation", "unknown")
VALUES = ["local", "task,job", "all", "local,", ",", "fresh", "2GB", "1.5", "-1", "nan", "inf", "1e12", "²", "٣", "1_0"]


def random_text(hostile: Hostile) -> str:
    return hostile.random.choice([hostile.text(), hostile.random.choice(VALUES)]).replace("\0", "")


@pytest.mark.parametrize("seeds", [range(start, start + 10) for start in range(0, 60, 10)], ids=str)
def test_session_is_configured_or_ends_with_a_usage_error(pytester: pytest.Pytester, seeds: range) -> None:
    for seed in seeds:
        hostile = Hostile(seed)
        ini, arguments = "[pytest]\n", ["-pno:asyncio"]
        for name in hostile.random.sample(INI_OPTIONS, 2):
            value = "".join(random_text(hostile).split("\n")[:1]).strip()
            ini += f"synapse_{name} = {value}\n" if value.isprintable() else ""
        for name in hostile.random.sample(OPTIONS, 2):
            arguments.append(f"--synapse-{name}={random_text(hostile)}")
        pytester.makeini(ini)
        problem = "synapse"
        try:
            pytester.parseconfigure(*arguments)._ensure_unconfigure()
        except pytest.UsageError as error:
            problem = str(error)
        assert "synapse" in problem, f"seed {seed}: {arguments}\n{ini}"


@pytest.mark.parametrize("seeds", [range(start, start + 50) for start in range(0, 150, 50)], ids=str)
def test_marker_is_accepted_or_a_usage_error_that_names_the_test(seeds: range) -> None:
    for seed in seeds:
        hostile = Hostile(seed)
        for _ in range(10):
            value = hostile.random.choice([hostile.value(), random_text(hostile), random.Random(seed), (), 10**400])
            mark = pytest.mark.synapse(**{hostile.random.choice(ARGUMENTS): value}).mark
            problem = "the test"
            try:
                _check(mark, "the test")
            except pytest.UsageError as error:
                problem = str(error)
            assert problem.startswith("the test"), f"seed {seed}: {mark}"

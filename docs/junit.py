"""The results of test runs, as pytest's `--junitxml` writes them."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree


def cases(paths: Iterable[str]) -> list[ElementTree.Element]:
    """Return the results of all tests; of one that several runs have, that of the last.

    Args:
        paths: The files of the runs, in order.
    """
    found = {}
    for path in paths:
        for case in ElementTree.parse(path).iter("testcase"):
            found[case.get("classname"), case.get("name")] = case
    return [*found.values()]

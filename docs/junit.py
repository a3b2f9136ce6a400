"""Read the files that pytest's `--junitxml` writes."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree


def cases(paths: Iterable[str]) -> list[ElementTree.Element]:
    """Return the results of all tests. If several files contain a test, the last one counts.

    Args:
        paths: The JUnit files, in order.
    """
    found = {}
    for path in paths:
        for case in ElementTree.parse(path).iter("testcase"):
            found[case.get("classname"), case.get("name")] = case
    return [*found.values()]

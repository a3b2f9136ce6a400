"""Choose among the wheels of one project by markers, so that no index is asked for a project that has wheels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

from packaging.specifiers import SpecifierSet
from packaging.tags import Tag
from packaging.utils import BuildTag, InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

# What must hold on a node, as a disjunction of conjunctions of comparisons such as `sys_platform == "linux"`.
_Comparison: TypeAlias = tuple[str, str, str]
_Condition: TypeAlias = list[tuple[_Comparison, ...]]

_NEGATED = {"==": "!=", ">=": "<"}


class _Wheel(NamedTuple):
    path: str
    version: Version
    build: BuildTag
    tags: frozenset[Tag]

    @property
    def age(self) -> list[int]:
        """Sorts wheels for several versions of a platform: the oldest also works on the newer ones."""
        return [int(number) for tag in sorted(self.tags, key=str) for number in re.findall(r"\d+", tag.platform)]

    @property
    def preference(self) -> tuple[Version, int, bool, BuildTag]:
        """Sorts wheels of one project: newer versions, then those for fewer Pythons and platforms, are better."""
        python = max(_specificity(tag) for tag in self.tags)
        return self.version, python, any(tag.platform != "any" for tag in self.tags), self.build


def requirement_lines(paths: Iterable[str], wanted: Mapping[str, SpecifierSet], prefix: str) -> list[str]:
    """Return one line of a requirements file for each wheel that some node may need.

    If a project has several wheels, for other platforms, Pythons or versions, each line has a marker so that the
    installer takes exactly one of them: the newest that fits. Requirements by name could be answered by an index, with
    another package of that name.

    Args:
        paths: The wheels, as paths.
        wanted: The versions that the plugin's requirements allow, by normalized project name.
        prefix: Put before each path.

    Example:
        >>> wheels = ["a-1.0-py3-none-win_amd64.whl", "a-1.0-py3-none-any.whl"]
        >>> print(*requirement_lines(wheels, {}, "dist/"), sep=chr(10))
        dist/a-1.0-py3-none-win_amd64.whl ; sys_platform == "win32" and platform_machine == "AMD64"
        dist/a-1.0-py3-none-any.whl ; (sys_platform != "win32" or platform_machine != "AMD64")
    """
    projects: dict[str, list[_Wheel]] = {}
    lines = []
    for path in paths:
        try:
            name, version, build, tags = parse_wheel_filename(path.rpartition("/")[2])
        except InvalidWheelFilename:
            lines.append(prefix + path)  # the installer reports it
            continue
        projects.setdefault(name, []).append(_Wheel(path, version, build, tags))
    for project, wheels in projects.items():
        allowed = wanted.get(project, SpecifierSet())
        fitting = [wheel for wheel in wheels if allowed.contains(wheel.version, prereleases=True)] or wheels
        oldest_first = sorted(fitting, key=lambda wheel: wheel.age)
        best_first = sorted(oldest_first, key=lambda wheel: wheel.preference, reverse=True)
        lines.extend(prefix + line for line in _lines(best_first))
    return lines


def _lines(wheels: list[_Wheel]) -> list[str]:
    """Return a line for each wheel of a project, the best first; the markers exclude each other and are complete."""
    usable: list[tuple[_Wheel, _Condition]] = []
    for wheel in wheels:
        known = [alternative for _, condition in usable for alternative in condition]
        condition = [alternative for alternative in _condition(wheel.tags) if alternative not in known]
        if condition:
            usable.append((wheel, condition))
        if () in condition:  # fits everywhere: worse ones are never used
            break
    if not usable:  # the installer reports that none can be used
        return [wheels[0].path]
    lines = []
    better: list[str] = []  # what a node is where no better wheel fits
    for place, (wheel, condition) in enumerate(usable):
        # The last has no condition of its own, so that the installer reports it where none fits.
        own = _marker(condition) if place < len(usable) - 1 else ""
        marker = " and ".join(([own] if own else []) + better)
        lines.append(f"{wheel.path} ; {marker}" if marker else wheel.path)
        better.extend(_negation(condition))
    return lines


def _condition(tags: frozenset[Tag]) -> _Condition:
    found: _Condition = []
    for tag in sorted(tags, key=str):
        python, platform = _python(tag), _platform(tag)
        if python is not None and platform is not None and (*python, *platform) not in found:
            found.append((*python, *platform))
    return [()] if () in found else found


def _python(tag: Tag) -> tuple[_Comparison, ...] | None:
    """Return what the Python must be; None if Ray does not support it."""
    kind, number = tag.interpreter[:2], tag.interpreter[2:]
    if tag.interpreter == "py3":
        return ()
    if kind not in ("py", "cp") or not number.startswith("3") or tag.abi.endswith("t"):
        return None
    is_minimum = kind == "py" or tag.abi == "abi3"
    return (("python_version", ">=" if is_minimum else "==", f"3.{number[1:] or 0}"),)


def _platform(tag: Tag) -> tuple[_Comparison, ...] | None:
    """Return what the platform must be; None if Ray does not support it."""
    platform = tag.platform
    if platform == "any":
        return ()
    for start, system in (("manylinux", "linux"), ("linux", "linux"), ("macosx", "darwin")):
        if platform.startswith(start):
            machines = ("x86_64", "aarch64", "arm64", "universal2", "i686", "ppc64le", "s390x", "armv7l")
            machine = next((one for one in machines if platform.endswith(one)), None)
            if machine is None:
                return None
            is_system: _Comparison = ("sys_platform", "==", system)
            return (is_system,) if machine == "universal2" else (is_system, ("platform_machine", "==", machine))
    windows = {"win32": "x86", "win_amd64": "AMD64", "win_arm64": "ARM64"}
    if platform in windows:
        return ("sys_platform", "==", "win32"), ("platform_machine", "==", windows[platform])
    return None


def _specificity(tag: Tag) -> int:
    """Return how few Pythons a tag supports."""
    return 0 if tag.interpreter.startswith("py") else 1 if tag.abi == "abi3" else 2


def _marker(condition: _Condition) -> str:
    """Return the marker of a condition that is not always true."""
    alternatives = [" and ".join(_shown(one) for one in comparisons) for comparisons in condition]
    return alternatives[0] if len(alternatives) == 1 else " or ".join(alternatives).join("()")


def _negation(condition: _Condition) -> list[str]:
    return [
        " or ".join(f'{name} {_NEGATED[comparison]} "{value}"' for name, comparison, value in comparisons).join("()")
        for comparisons in condition
    ]


def _shown(comparison: _Comparison) -> str:
    name, operator, value = comparison
    return f'{name} {operator} "{value}"'

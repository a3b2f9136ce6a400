"""Read a plugin's requirements files; check them and its wheels against what is installed here.

A requirements file may come from anywhere, so it must not be a way to read other files: only files below the plugin's
directory or its repository are read, and no line is shown of those that it includes.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from synapse_runtime.errors import ConfigError, Problem
from synapse_runtime.plugins.discovery import repository_of

FILE = "requirements.txt"
_MAX_BYTES = 1_000_000
_COMMENT = re.compile(r"(?:^|\s)#.*$")
_OPTIONS = re.compile(r"\s--?[a-z][a-z-]*.*$")  # of a single requirement, such as --hash
_DIRECT_REFERENCE = re.compile(r"[\w.-]+(?:\[[^\]]*\])?\s*@")  # such as `name @ https://…`
_OTHER_FILE = re.compile(r"(?P<option>-r|--requirement|-c|--constraint)[ =]*(?P<name>\S+)")


class Line(NamedTuple):
    """A line of a requirements file.

    Attributes:
        number: Its number, from 1; of the first one if a backslash joins several.
        text: Its text without comments.
        file: The file or URL that it includes, as written; None if it includes none.
        is_constraint: Whether that file has constraints.
    """

    number: int
    text: str
    file: str | None = None
    is_constraint: bool = False

    @property
    def is_requirement(self) -> bool:
        """Whether this is a requirement; other options than those for files are up to the installer."""
        return not self.text.startswith("-")

    @property
    def is_local_file(self) -> bool:
        """Whether it includes a file; the installer fetches URLs itself."""
        return self.file is not None and ("://" not in self.file or self.file.lower().startswith("file:"))


def read_lines(path: Path) -> list[Line]:
    """Read a requirements file, without those that it includes; blank lines and comments are left out.

    Raises:
        OSError: The file cannot be read.
        UnicodeDecodeError: It is not UTF-8.
        ConfigError: It is larger than 1 MB.
    """
    found = []
    joined, first = "", 0
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"the file is larger than {_MAX_BYTES:,} bytes; split or shorten it", path=path)
    for number, line in enumerate(content.decode("utf-8-sig").splitlines(), 1):
        first = first if joined else number
        joined += line
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        text = _COMMENT.sub("", joined).strip()
        joined = ""
        other = _OTHER_FILE.fullmatch(text)
        if other:
            found.append(Line(first, text, other["name"], other["option"] in ("-c", "--constraint")))
        elif text:
            found.append(Line(first, text))
    return found


def specifiers(paths: Iterable[Path]) -> dict[str, SpecifierSet]:
    """Return the versions that requirements files allow, by normalized project name; invalid lines are left out."""
    found: dict[str, SpecifierSet] = {}
    for path in paths:
        with contextlib.suppress(UnicodeDecodeError):
            for line in read_lines(path):
                with contextlib.suppress(InvalidRequirement):
                    requirement = Requirement(_OPTIONS.sub("", line.text))
                    if requirement.marker is None or requirement.marker.evaluate():
                        name = canonicalize_name(requirement.name)
                        found[name] = found.get(name, SpecifierSet()) & requirement.specifier
    return found


def check_file(path: Path) -> tuple[int, list[Problem]]:
    """Check a plugin's requirements file and those that it includes.

    Files outside the plugin's directory and its repository are not read.

    Args:
        path: The file, in the plugin's directory.

    Returns:
        The number of requirements, and the problems found.
    """
    top = repository_of(path.parent)
    if not _is_below(path, top):
        return 0, [Problem(_outside("the file is a link to one", top), path)]
    problems: list[Problem] = []
    count = 0
    waiting, known = [path], {os.path.realpath(path)}
    while waiting:
        current = waiting.pop(0)
        for line in _checked_lines(current, problems):
            if line.is_local_file:
                name = str(line.file)
                file = current.parent / name
                if "://" in name or not _is_below(file, top):
                    problems.append(Problem(_outside(f"file {name!r} is", top), current, line.number))
                elif not os.path.isfile(file):  # unlike `Path.is_file`, also if the name is too long
                    text = f"file {name!r} does not exist; add it or remove this line"
                    problems.append(Problem(text, current, line.number))
                elif not line.is_constraint and os.path.realpath(file) not in known:
                    known.add(os.path.realpath(file))
                    waiting.append(file)
            elif line.is_requirement:
                count += 1
                problems.extend(check_line(line.text, current, line.number, is_included=current != path))
    return count, problems


def check_line(text: str, path: Path, line: int | None, *, is_included: bool = False) -> Iterator[Problem]:
    """Yield the problems of one requirement.

    Args:
        text: The requirement.
        path: The file that contains it.
        line: Its line in that file.
        is_included: Whether another requirements file includes that file, which may be one of another kind. The
            problems do not show its lines.
    """
    text = _OPTIONS.sub("", text)
    if _is_url_or_path(text):
        if "://" not in text and not os.path.exists(path.parent / text.partition("[")[0]):
            shown = "the file" if is_included else f"file {text!r}"
            yield Problem(f"{shown} does not exist; add it or remove this line", path, line)
        return
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        reason = str(error).partition("\n")[0]
        shown = f"{text!r} is" if "://" not in text else "this is"  # a URL may contain a password
        if is_included:
            yield Problem("this is not a valid requirement; expected one such as 'numpy>=2'", path, line)
        else:
            yield Problem(f"{shown} not a valid requirement: {reason}", path, line)
        return
    if requirement.marker is not None and not requirement.marker.evaluate():
        return
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        shown = "this requirement" if is_included else requirement.name
        yield Problem(f"{shown} is not installed; install it", path, line, "warning")
        return
    if not requirement.specifier.contains(installed, prereleases=True):
        what = f"{requirement.name} {installed} is installed, but {requirement.specifier} is required"
        yield Problem(f"{what}; install a matching version", path, line, "warning")


def check_wheels(directory: Path) -> tuple[int, list[Problem]]:
    """Check a directory of wheels.

    Returns:
        The number of wheels, and the problems found.
    """
    problems = []
    here = frozenset(sys_tags())
    wheels = sorted(directory.glob("*.whl"))
    fits: dict[str, bool] = {}
    for wheel in wheels:
        try:
            project, _, _, tags = parse_wheel_filename(wheel.name)
        except InvalidWheelFilename as error:
            problems.append(Problem(f"not a valid wheel file name: {error}; rebuild the wheel", wheel))
            continue
        fits[project] = fits.get(project, False) or not here.isdisjoint(tags)
    for name in (name for name, fit in fits.items() if not fit):
        text = f"no wheel of {name} supports this Python and platform; it cannot be installed here"
        problems.append(Problem(text, directory, None, "warning"))
    return len(wheels), problems


def specifier(text: str) -> SpecifierSet | None:
    """Parse a specifier such as `>=3.10,<3.13`, or a single version; return None if the text is neither."""
    for form in (text, f"=={text}.*", f"=={text}"):
        try:
            return SpecifierSet(form)
        except InvalidSpecifier:
            continue
    return None


def _checked_lines(path: Path, problems: list[Problem]) -> list[Line]:
    try:
        return read_lines(path)
    except ConfigError as error:
        problems.extend(error.problems)
    except UnicodeDecodeError as error:
        problems.append(Problem(f"not UTF-8: {error.reason} at byte {error.start}; save the file as UTF-8", path))
    except OSError as error:
        problems.append(Problem(f"cannot be read: {error.strerror}; change its permissions or remove it", path))
    return []


def _is_below(path: Path, top: Path) -> bool:
    """Return whether a file is below a directory, whatever links lead to it."""
    try:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(top))
    except ValueError:  # a null character
        return False


def _outside(what: str, top: Path) -> str:
    return f"{what} outside {top} and is not read; move it there or remove this line"


def _is_url_or_path(text: str) -> bool:
    """Return whether pip takes a requirement as a URL or a path."""
    return not _DIRECT_REFERENCE.match(text) and (
        "://" in text or "/" in text or text.startswith(".") or text.endswith(".whl")
    )

"""Tests for the choice among wheels: on each node, the installer takes exactly one of them."""

from __future__ import annotations

import random
import subprocess
import sys
import zipfile
from itertools import product
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.specifiers import SpecifierSet

from synapse_runtime.plugins.wheels import requirement_lines

NODES = [
    {"python_version": python, "sys_platform": platform, "platform_machine": machine}
    for python, (platform, machine) in product(
        ("3.10", "3.11", "3.12"),
        (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64")),
    )
]


def chosen(wheels: list[str], node: dict[str, str], wanted: dict[str, SpecifierSet] | None = None) -> list[str]:
    """Return the wheels that an installer takes on a node."""
    found = []
    for line in requirement_lines(wheels, wanted or {}, ""):
        path, _, marker = line.partition(" ; ")
        if not marker or Marker(marker).evaluate(node):
            found.append(path)
    return found


def node(python: str, platform: str = "linux", machine: str = "x86_64") -> dict[str, str]:
    return {"python_version": python, "sys_platform": platform, "platform_machine": machine}


def test_single_wheel_is_required_everywhere():
    assert requirement_lines(["w/a-1.0-cp311-cp311-linux_x86_64.whl"], {}, "$DIR/") == [
        "$DIR/w/a-1.0-cp311-cp311-linux_x86_64.whl"
    ]


@pytest.mark.parametrize(
    ("wheels", "where", "expected"),
    [
        (["cp311-cp311-manylinux_2_17_x86_64", "cp312-cp312-manylinux_2_17_x86_64"], node("3.11"), 0),
        (["cp311-cp311-manylinux_2_17_x86_64", "cp312-cp312-manylinux_2_17_x86_64"], node("3.12"), 1),
        (["cp38-abi3-manylinux2014_x86_64", "cp312-cp312-manylinux2014_x86_64"], node("3.11"), 0),
        (["cp38-abi3-manylinux2014_x86_64", "cp312-cp312-manylinux2014_x86_64"], node("3.12"), 1),
        (["py3-none-any", "cp311-cp311-linux_aarch64"], node("3.11"), 0),
        (["py3-none-any", "cp311-cp311-linux_aarch64"], node("3.11", machine="aarch64"), 1),
        (["py2.py3-none-any", "cp311-cp311-win_amd64"], node("3.11", "win32", "AMD64"), 1),
        (["cp311-cp311-macosx_11_0_universal2", "cp311-cp311-linux_x86_64"], node("3.11", "darwin", "arm64"), 0),
        (["cp311-cp311-manylinux_2_28_x86_64", "cp311-cp311-manylinux_2_17_x86_64"], node("3.11"), 1),
        (["cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64", "cp312-cp312-win32"], node("3.11"), 0),
        (["pp310-pypy310_pp73-linux_x86_64", "cp311-cp311-linux_x86_64"], node("3.11"), 1),
        (["cp313-cp313t-linux_x86_64", "cp313-cp313-linux_x86_64"], node("3.13"), 1),
    ],
)
def test_wheel_that_fits_the_node_is_taken(wheels, where, expected):
    names = [f"acme-1.0-{tags}.whl" for tags in wheels]
    assert chosen(names, where) == [names[expected]]
    assert chosen(names[::-1], where) == [names[expected]]


def test_newest_version_is_taken_that_the_requirements_allow():
    wheels = [f"acme-{version}-py3-none-any.whl" for version in ("1.0", "2.0", "1.10")]
    assert chosen(wheels, node("3.11")) == ["acme-2.0-py3-none-any.whl"]
    assert chosen(wheels, node("3.11"), {"acme": SpecifierSet("<2")}) == ["acme-1.10-py3-none-any.whl"]


def test_exactly_one_wheel_of_each_project_is_taken_on_each_node():
    tags = [
        *("py3-none-any", "cp38-abi3-manylinux2014_x86_64", "cp310-abi3-macosx_11_0_arm64"),
        *("cp311-cp311-manylinux_2_17_x86_64", "cp311-cp311-win_amd64", "cp312-cp312-manylinux_2_17_aarch64"),
        *("cp312-cp312-macosx_10_9_universal2", "cp310-cp310-manylinux_2_28_x86_64", "py310-none-win_amd64"),
    ]
    dice = random.Random(15)
    for _ in range(200):
        names = {
            f"{project}-{dice.choice(['1.0', '1.1'])}-{tag}.whl"
            for project in ("one", "two")
            for tag in dice.sample(tags, dice.randint(1, 5))
        }
        for where in NODES:
            taken = chosen(sorted(names), where)
            assert sorted({wheel.partition("-")[0] for wheel in names}) == sorted(w.partition("-")[0] for w in taken)


def write_wheel(directory: Path, tag: str) -> None:
    """Write a wheel whose module has its tag."""
    info = "acme_private-1.0.dist-info"
    with zipfile.ZipFile(directory / f"acme_private-1.0-{tag}.whl", "w") as archive:
        archive.writestr("acme_private.py", f"TAG = {tag!r}\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: acme-private\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize(
    "command",
    [("-m", "pip", "install", "--no-deps", "--target"), ("-m", "uv", "pip", "install", "--no-deps", "--target")],
    ids=["pip", "uv"],
)
def test_installers_take_it_without_asking_an_index(command, tmp_path, monkeypatch):
    here = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    for tag in (f"{here}-{here}-linux_x86_64", f"{here}-{here}-linux_aarch64", "cp38-cp38-linux_x86_64"):
        write_wheel(tmp_path, tag)
    monkeypatch.setenv("WHEELS", str(tmp_path))
    wheels = sorted(path.name for path in tmp_path.glob("*.whl"))
    (tmp_path / "lines.txt").write_text("\n".join(requirement_lines(wheels, {}, "${WHEELS}/")))
    options = ["--no-index"] if command[1] == "pip" else ["--no-index", "--quiet"]
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path / "out"), *options, "-r", str(tmp_path / "lines.txt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    machine = {"x86_64": "x86_64", "aarch64": "aarch64"}[__import__("platform").machine()]
    assert (tmp_path / "out" / "acme_private.py").read_text() == f"TAG = '{here}-{here}-linux_{machine}'\n"

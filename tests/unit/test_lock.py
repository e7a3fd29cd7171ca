"""What make installs is what was tested: a version of everything, for every Python."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "constraints.txt").read_text().splitlines()
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


def wanted() -> list[Requirement]:
    """What pyproject.toml asks for, with the extra ``dev`` and those that it names."""
    toml: Any = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = toml.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: list(map(Requirement, each)) for name, each in project["optional-dependencies"].items()}
    (own,) = (each for each in extras["dev"] if each.name == project["name"])
    made = [*map(Requirement, project["dependencies"]), *extras["dev"]]
    made += [each for name in own.extras for each in extras[name]]
    return [each for each in made if each.name != project["name"]]


def locked(python: str) -> dict[str, list[str]]:
    """Versions by name for a Python on Linux."""
    machine = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    found: dict[str, list[str]] = {}
    for line in map(Requirement, LINES):
        if line.marker is None or line.marker.evaluate({**machine, "platform_machine": "x86_64"}):
            (pin,) = line.specifier
            found.setdefault(canonicalize_name(line.name), []).append(pin.version)
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_everything_asked_for_is_locked_within_its_range(python: str) -> None:
    versions = locked(python)
    for each in wanted():
        (version,) = versions.get(canonicalize_name(each.name), ["none"])
        assert version != "none" and version in each.specifier, f"{each}: {version}; make lock"


@pytest.mark.parametrize("python", PYTHONS)
def test_a_name_has_one_version(python: str) -> None:
    assert not {name: versions for name, versions in locked(python).items() if len(versions) > 1}


def test_a_line_is_a_name_and_a_version_from_anywhere() -> None:
    assert LINES
    assert not [line for line in LINES if not re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+( ; [^:@]+)?", line)]

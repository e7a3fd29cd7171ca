"""Tars by their names, and archives that must be unpacked before they can be read in place."""

from __future__ import annotations

from pathlib import Path

COMMANDS = {"gz": "gunzip", "bz2": "bunzip2", "xz": "unxz", "zst": "unzstd", "lz4": "unlz4"}
SHORT = {"tgz": "gz", "taz": "gz", "tbz": "bz2", "tbz2": "bz2", "txz": "xz", "tzst": "zst"}
MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zst", b"\x04\x22\x4d\x18": "lz4"}


def is_tar(path: Path) -> bool:
    return path.suffix.lower() == ".tar" and not path.is_dir()


def packed_as(path: Path) -> str:
    """What an archive is, by its name, and what to do with it; empty where it is none, or a tar as it should be."""
    stem, _, ending = path.name.lower().rpartition(".")
    if ending in SHORT or ending in COMMANDS and stem.endswith(".tar"):
        command = COMMANDS[SHORT.get(ending, ending)]
        return f"a compressed tar, in which nothing can be read in place; decompress it first: {command} '{path.name}'"
    return "an archive of another kind than tar; unpack it first" if ending in ("zip", "rar", "7z") else ""


def compressed(path: Path) -> str:
    """The ending that the content of a file called .tar should have, were it not called so; empty where it is a tar."""
    with path.open("rb") as file:
        begin = file.read(8)
    return next((ending for magic, ending in MAGIC.items() if begin.startswith(magic)), "")

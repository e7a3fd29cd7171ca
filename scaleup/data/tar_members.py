"""The members of a tar as WebDataset divides them into samples, and what is wrong with names or with the tar."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path, PurePosixPath

from scaleup.data.folders import Failure, failure, printable

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


Members = dict[str, tarfile.TarInfo]  # by ending


def group_members(path: Path) -> tuple[dict[str, Members], list[tuple[str, str]]]:
    """Members of a tar by key and ending, as WebDataset divides names, and what is wrong with names or with the tar."""
    groups: dict[str, Members] = {}
    wrong: list[tuple[str, str]] = []
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.size < 0 or member.offset < end:  # else this could go round for ever
                    raise ValueError("a header that points backwards")
                end = member.offset_data + (-(-member.size // 512) * 512 if member.isreg() else 0)
                end = tar.offset if member.issparse() else end  # whose size is that of the file it stands for
                _place(member, groups, wrong)
        if not end:
            wrong.append(("", "holds no files"))
        elif not _ends(path, end):
            wrong.append(("", f"cut off or damaged at byte {end}; nothing after it is used"))
    except (tarfile.TarError, OSError, ValueError, EOFError, RecursionError) as error:
        wrong.append(("", _how_compressed(path) or f"not a readable tar after byte {end}: {error}"))
    for key in {key for key, _ in wrong}:
        groups.pop(key, None)
    return groups, wrong


def _how_compressed(path: Path) -> str:
    if not (ending := compressed(path)):
        return ""
    new = f"{path.name}.{ending}"
    how = f"mv '{path.name}' '{new}'; {COMMANDS[ending]} '{new}'"
    return f"is compressed, whatever its name says; decompress it first: {how}"


def _place(member: tarfile.TarInfo, groups: dict[str, Members], wrong: list[tuple[str, str]]) -> None:
    if member.isdir():
        return
    match = re.fullmatch(r"((?:.*/|)[^./][^./]*)[.]([^/]*)", member.name, re.DOTALL)
    parts = PurePosixPath(member.name).parts
    if ".." in parts or member.name.startswith("/"):
        wrong.append((member.name, "its name leaves the tar"))
    elif not member.isreg():
        wrong.append((member.name, "is no file but a link or a device"))
    elif printable(member.name) != member.name:
        wrong.append((member.name, "its name is no text in UTF-8"))
    elif not match:
        wrong.append((member.name, "its name is not KEY.ENDING"))
    elif member.issparse():
        wrong.append((match[1], f".{match[2]} is sparse, stored without its zeros; make the tar without --sparse"))
    elif match[2].lower() in (group := groups.setdefault(match[1], {})):
        wrong.append((match[1], f"has two members .{match[2]}"))
    else:
        group[match[2].lower()] = member


def _ends(path: Path, end: int) -> bool:
    """Whether a tar whose last member ends at byte ``end`` goes on with zeros alone, as many as its end has."""
    with path.open("rb") as file:
        file.seek(end)
        rest = 0
        while piece := file.read(2**20):
            if piece.strip(b"\0"):
                return False
            rest += len(piece)
    return rest >= 1024


def failed_as(file: str, key: str, reason: str) -> Failure:
    """The entry of an index's failures for a sample, or for the tar itself (no key)."""
    return failure(f"{file}: {key}" if key else file, reason)

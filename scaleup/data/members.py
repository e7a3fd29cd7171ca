"""The members of a tar, grouped into samples."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path, PurePosixPath

from scaleup.data.storage import Failure, failure, printable

COMMANDS = {"gz": "gunzip", "bz2": "bunzip2", "xz": "unxz", "zst": "unzstd", "lz4": "unlz4"}
SHORT = {"tgz": "gz", "taz": "gz", "tbz": "bz2", "tbz2": "bz2", "txz": "xz", "tzst": "zst"}
MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zst", b"\x04\x22\x4d\x18": "lz4"}

Headers = dict[str, tarfile.TarInfo]  # of the members of one sample, by ending


def is_tar(path: Path) -> bool:
    return path.suffix.lower() == ".tar" and not path.is_dir()


def packed_as(path: Path) -> str:
    """A sentence on an archive that cannot be used in place, by its name; empty for other files and plain tars."""
    stem, _, ending = path.name.lower().rpartition(".")
    if ending in SHORT or ending in COMMANDS and stem.endswith(".tar"):
        command = COMMANDS[SHORT.get(ending, ending)]
        return f"a compressed tar, which cannot be read in place; decompress it first: {command} '{path.name}'"
    return "an archive that is not a tar; unpack it first" if ending in ("zip", "rar", "7z") else ""


def group_members(path: Path) -> tuple[dict[str, Headers], list[Failure]]:
    """Members of a tar by key and extension (as WebDataset splits names), and failures of names or of the tar."""
    samples: dict[str, Headers] = {}
    wrong: list[tuple[str, str]] = []  # (key, reason); the key is empty for the tar itself
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.size < 0 or member.offset < end:  # else this could loop for ever
                    raise ValueError("a header that points backwards")
                end = member.offset_data + (-(-member.size // 512) * 512 if member.isreg() else 0)
                end = tar.offset if member.issparse() else end  # a sparse member has its unpacked size
                if not member.isdir():
                    _place(member, samples, wrong)
        if not end:
            wrong.append(("", "has no files"))
        elif not _ends(path, end):
            wrong.append(("", f"cut off or damaged at byte {end}; nothing after it is used"))
    except (tarfile.TarError, OSError, ValueError, EOFError, RecursionError) as error:
        wrong.append(("", _explain_compressed(path) or f"not a readable tar after byte {end}: {error}"))
    for key, _ in wrong:
        samples.pop(key, None)
    return samples, [member_failure(path, key, reason) for key, reason in wrong]


def _place(member: tarfile.TarInfo, samples: dict[str, Headers], wrong: list[tuple[str, str]]) -> None:
    match = re.fullmatch(r"((?:.*/|)[^./][^./]*)[.]([^/]*)", member.name, re.DOTALL)
    if ".." in PurePosixPath(member.name).parts or member.name.startswith("/"):
        wrong.append((member.name, "its name is outside the tar"))
    elif not member.isreg():
        wrong.append((member.name, "is not a file but a link or a device"))
    elif printable(member.name) != member.name:
        wrong.append((member.name, "its name is not text in UTF-8"))
    elif not match:
        wrong.append((member.name, "its name is not KEY.ENDING"))
    elif member.issparse():
        wrong.append((match[1], f".{match[2]} is sparse, stored without its zeros; make the tar without --sparse"))
    elif match[2].lower() in (headers := samples.setdefault(match[1], {})):
        wrong.append((match[1], f"has two members .{match[2]}"))
    else:
        headers[match[2].lower()] = member


def _ends(path: Path, end: int) -> bool:
    """Whether a tar whose last member ends at byte ``end`` has the zeros that mark its end, and nothing else."""
    with path.open("rb") as file:
        file.seek(end)
        rest = 0
        while piece := file.read(2**20):
            if piece.strip(b"\0"):
                return False
            rest += len(piece)
    return rest >= 1024


def _explain_compressed(path: Path) -> str:
    """A sentence on a compressed file that is called .tar; empty if it is not compressed."""
    with path.open("rb") as file:
        begin = file.read(8)
    for magic, ending in MAGIC.items():
        if begin.startswith(magic):
            new = f"{path.name}.{ending}"
            how = f"mv '{path.name}' '{new}'; {COMMANDS[ending]} '{new}'"
            return f"is compressed, although its name ends in .tar; decompress it first: {how}"
    return ""


def member_failure(tar: Path, key: str, reason: str) -> Failure:
    """A sample that cannot be used, or the tar itself (no key)."""
    return failure(f"{tar.name}: {key}" if key else tar.name, reason)

"""All that a folder holds, links followed, every folder once; what is left out comes with a reason."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OF_SYSTEMS = (  # what machines put beside people's files
    *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"),
    *("thumbs.db", "desktop.ini"),
)


@dataclass(frozen=True)
class Found:
    """A file, or a file or folder that is left out and why."""

    path: Path
    reason: str = ""


def hidden(name: str) -> bool:
    """Whether a file or folder is hidden by its name, or is the system's own."""
    return name.startswith(".") or name.lower() in OF_SYSTEMS


def walk(root: Path) -> Iterator[Found]:
    """Files at any depth below ``root``, which may itself be hidden. Folders that lie there come before linked ones."""
    inside, linked, seen = [root], deque[Path](), set[str]()
    while inside or linked:
        folder = inside.pop() if inside else linked.popleft()
        real = os.path.realpath(folder)
        if real in seen:
            yield Found(folder, "links to a folder that is listed already")
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield Found(folder, f"cannot be read: {error.strerror}")
            continue
        if folder != root and _is_shards({entry.name for entry in found}):
            yield Found(folder, "is a directory of shards")
            continue
        for entry in found:
            path = folder / entry.name
            reason = left_out(entry)
            if reason:
                yield Found(path, reason)
            elif entry.is_file():
                yield Found(path)
            elif entry.is_symlink():
                linked.append(path)
            else:
                inside.append(path)


def _is_shards(names: set[str]) -> bool:
    return "index.json" in names and any(name.endswith(".tar") for name in names)


def left_out(entry: os.DirEntry[str]) -> str:
    """Why an entry of a folder is neither a file to read nor a folder to enter; empty where it is one."""
    if hidden(entry.name):
        return "is hidden"
    if entry.is_file(follow_symlinks=False):
        return ""
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        return broken(Path(entry.path), error)
    if stat.S_ISDIR(mode) and entry.is_symlink() and _leads_back(entry.path):
        return "links to a folder that it lies in"
    return "" if stat.S_ISDIR(mode) or stat.S_ISREG(mode) else NO_FILE


NO_FILE = "is no file but a pipe, a socket or a device"


def broken(path: Path, error: OSError) -> str:
    """Why what an error is about cannot be read."""
    if not path.is_symlink():
        return f"cannot be read: {error.strerror}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"links to '{path.readlink()}', which is not there"
    return f"is a link that cannot be followed: {error.strerror}"


def _leads_back(link: str) -> bool:
    target, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))  # noqa: PTH120
    return os.path.commonpath([target, here]) == target

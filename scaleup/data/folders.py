"""All that a folder holds, links followed, every folder once; and what is left out, with a reason."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

Failure = dict[str, str]  # source, reason


def failure(source: object, reason: str) -> Failure:
    """The entry of an index; a name that is no text is written with escapes, so that it can be printed."""
    return {"source": printable(str(source)), "reason": printable(reason)}


def printable(text: str) -> str:
    """Text with escapes for bytes of a name that are none."""
    return text.encode("utf-8", "backslashreplace").decode()


def count_by_reason(failures: Iterable[Failure]) -> list[str]:
    """A line for each kind of reason, the most frequent first: one that has it, and how many more."""
    kinds: dict[str, list[Failure]] = {}
    for each in failures:
        kinds.setdefault(_kind(each["reason"]), []).append(each)
    ordered = sorted(kinds.values(), key=len, reverse=True)
    return [f"{each[0]['source']}: {each[0]['reason']}{_more(len(each) - 1)}" for each in ordered]


def _kind(reason: str) -> str:
    """A reason without what is of one file: names in quotes, numbers, what stands after a colon."""
    return re.sub(r"'[^']*'|\S*\d\S*", "*", reason.partition(":")[0])


def _more(count: int) -> str:
    return f" (and {count} more like it)" if count else ""


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
        return is_broken_link(Path(entry.path), error)
    if stat.S_ISDIR(mode) and entry.is_symlink() and _leads_back(entry.path):
        return "links to a folder that it lies in"
    return "" if stat.S_ISDIR(mode) or stat.S_ISREG(mode) else NO_FILE


NO_FILE = "is no file but a pipe, a socket or a device"


def is_broken_link(path: Path, error: OSError) -> str:
    """Why what an error is about cannot be read."""
    if not path.is_symlink():
        return f"cannot be read: {error.strerror}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"links to '{path.readlink()}', which is not there"
    return f"is a link that cannot be followed: {error.strerror}"


def _leads_back(link: str) -> bool:
    target, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))  # noqa: PTH120
    return os.path.commonpath([target, here]) == target

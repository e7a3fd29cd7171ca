"""Reads files of folders and of addresses that fsspec knows (https://, s3://)."""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from scaleup.common.errors import UserError

MAX_OPEN = 64  # open files; only a few shards are read at a time
TRIES = 3  # tries of a request, before a sample counts as unreadable
PAUSE = 0.2  # seconds between two tries
NO_FILE = "is not a file but a pipe, a socket or a device"
OF_SYSTEMS = (  # files and folders that operating systems add
    *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"),
    *("thumbs.db", "desktop.ini"),
)


class Directory:
    """Files of this machine. Each process opens a file at its first read, so it can be forked and pickled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: dict[str, BinaryIO] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_open": {}}

    def whole(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def part(self, name: str, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``, fewer at the end of the file; OSError."""
        if name not in self._open:
            if len(self._open) == MAX_OPEN:
                self._open.pop(next(iter(self._open))).close()
            self._open[name] = (self.path / name).open("rb")
        return os.pread(self._open[name].fileno(), size, offset)  # no file position, so forks may share the file

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """The file on this machine; FileNotFoundError."""
        if not (self.path / name).is_file():
            raise FileNotFoundError(name)
        yield self.path / name


class Remote:
    """Files at an address. Every read is one request for only its bytes; OSError after a few tries."""

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/")

    def whole(self, name: str) -> bytes:
        return self._request(name, "cat_file")

    def part(self, name: str, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; UserError if the server sends the whole file instead."""
        data = self._request(name, "cat_file", start=offset, end=offset + size)
        if len(data) > size:
            raise UserError(f"'{self.path}/{name}' comes whole: its server does not send ranges of bytes")
        return data

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A temporary copy of the file on this machine."""
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(directory) / name
            self._request(name, "get_file", lpath=str(copy))
            yield copy

    def _request(self, name: str, method: str, **options: Any) -> Any:
        for tries_left in reversed(range(TRIES)):
            try:
                files, address = fsspec.core.url_to_fs(f"{self.path}/{name}")  # in each process
                return getattr(files, method)(address, **options)
            except FileNotFoundError:
                raise
            except (ImportError, ValueError) as error:  # the protocol is unknown, or its package is not installed
                raise OSError(f"{error}") from None
            except Exception as error:  # every protocol has its own errors
                if not tries_left:
                    raise OSError(f"{type(error).__name__} {error}") from None
                time.sleep(PAUSE)
        raise AssertionError


Storage = Directory | Remote


def storage(path: str | Path) -> Storage:
    """The reader for the files of ``path``."""
    return Remote(str(path)) if "://" in str(path) else Directory(Path(path))


@dataclass(frozen=True)
class Failure:
    """A file or a sample that cannot be used."""

    source: str  # its path, or its key in its shards
    reason: str


def failure(source: object, reason: str) -> Failure:
    """A Failure; bytes of its name that are not text are escaped, so that it can be printed."""
    return Failure(printable(str(source)), printable(reason))


def printable(text: str) -> str:
    """A file name as printable text: bytes that are not text are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def count_by_reason(failures: Iterable[Failure]) -> list[str]:
    """A line for each kind of reason, the most frequent first: an example, and the number of others."""
    kinds: dict[str, list[Failure]] = {}
    for failure in failures:
        # Names in quotes, numbers, and text after a colon belong to one file, so they do not count.
        kind = re.sub(r"'[^']*'|\S*\d\S*", "*", failure.reason.partition(":")[0])
        kinds.setdefault(kind, []).append(failure)
    lines = []
    for alike in sorted(kinds.values(), key=len, reverse=True):
        more = f" (and {len(alike) - 1} more like it)" if len(alike) > 1 else ""
        lines.append(f"{alike[0].source}: {alike[0].reason}{more}")
    return lines


@dataclass(frozen=True, slots=True)
class Item:
    """A file and its class, or why it cannot be a sample. Millions of them are in memory: a Path takes three times as
    much as its text."""

    file: str
    label: str = ""
    reason: str = ""

    @property
    def path(self) -> Path:
        return Path(self.file)


def hidden(name: str) -> bool:
    """Whether a file or folder is hidden by its name, or is the system's own."""
    return name.startswith(".") or name.lower() in OF_SYSTEMS


def walk(root: Path) -> Iterator[Item]:
    """Files at any depth below ``root``, and files that are left out, with the reason.

    Every folder is entered once, and real folders come before links to folders. ``root`` itself may be hidden.
    """
    folders, linked, entered = [root], deque[Path](), set[str]()
    while folders or linked:
        folder = folders.pop() if folders else linked.popleft()
        real = os.path.realpath(folder)
        if real in entered:
            yield Item(str(folder), reason="links to a folder that is listed already")
            continue
        entered.add(real)
        try:
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            yield Item(str(folder), reason=f"cannot be read: {error.strerror}")
            continue
        names = {entry.name for entry in entries}
        if folder != root and "index.json" in names and any(name.endswith(".tar") for name in names):
            yield Item(str(folder), reason="is a directory of shards")
            continue
        for entry in entries:
            path, reason = folder / entry.name, _left_out(entry)
            if reason or entry.is_file():
                yield Item(str(path), reason=reason)
            else:
                (linked if entry.is_symlink() else folders).append(path)


def _left_out(entry: os.DirEntry[str]) -> str:
    """Why an entry of a folder is left out; empty if it is a file to read or a folder to enter."""
    if hidden(entry.name):
        return "is hidden"
    if entry.is_file(follow_symlinks=False):
        return ""
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        return explain_unreadable(Path(entry.path), error)
    if stat.S_ISDIR(mode) and entry.is_symlink():
        target, here = os.path.realpath(entry.path), os.path.realpath(os.path.dirname(entry.path))  # noqa: PTH120
        if os.path.commonpath([target, here]) == target:
            return "links to a folder that contains it"
    return "" if stat.S_ISDIR(mode) or stat.S_ISREG(mode) else NO_FILE


def explain_unreadable(path: Path, error: OSError) -> str:
    """Why a path cannot be read."""
    if not path.is_symlink():
        return f"cannot be read: {error.strerror}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"links to '{path.readlink()}', which does not exist"
    return f"is a link that cannot be followed: {error.strerror}"

"""Images and videos as people name them: files, folders, patterns, addresses, a stream on stdin."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

from scaleup.data.decode import EXTENSIONS, BadSample
from scaleup.data.storage import OF_SYSTEMS, Item, count_by_reason, failure, hidden, storage, walk
from scaleup.errors import UserError

STDIN = "-"
KINDS = {ending: modality for modality, endings in EXTENSIONS.items() for ending in endings}


def expanded(sources: Sequence[str]) -> list[str]:
    """Files, addresses and ``-`` as they are; folders (with all below them) and patterns as what they hold.

    What is hidden is passed over unless it is named; linked folders are entered, once each; stderr says what is left
    out of a folder. A link to nothing is a file, which cannot be read.

    Raises:
        UserError: a folder or pattern holds no image and no video, or a file is not there.
    """
    names: list[str] = []
    for source in sources:
        matches = [source] if source == STDIN or "://" in source else _matches(source)
        if not matches:
            raise UserError(f"{source!r} holds no image and no video; known are files ending in {', '.join(KINDS)}")
        names += matches
    return names


def _matches(source: str) -> list[str]:
    path = Path(source)
    if path.is_dir():
        return _in_folder(path)
    if path.exists() or path.is_symlink():
        return [_as_file(source)]
    if not glob.has_magic(source):
        raise UserError(f"there is no file {source!r}; allowed are files, folders, patterns, addresses, and -")
    before, everywhere, _ = source.partition("**")
    if everywhere and before[-1:] in ("", "/"):
        bases = [Path(base) for base in glob.glob(before or ".")]  # noqa: PTH207  Path.glob wants a root
        below = [name for base in bases if base.is_dir() for name in _files(walk(base))]
        return [name for name in below if _like(Path(name).parts, path.parts)]
    passed = {*OF_SYSTEMS} - {*source.lower().split("/")}  # a dot at the beginning glob heeds itself
    names = [name for name in glob.glob(source) if kind(name)]  # noqa: PTH207  as above
    return sorted(_as_file(name) for name in names if passed.isdisjoint(name.lower().split("/")))


def _in_folder(path: Path) -> list[str]:
    items = list(walk(path))
    names = _files(items)
    left_out = [item for item in items if item.reason and _as_file(str(item.path)) not in names]
    for line in count_by_reason(failure(item.path, item.reason) for item in left_out):
        print(f"left out: {line}", file=sys.stderr)
    return names


def _files(items: Iterable[Item]) -> list[str]:
    """Files that are images or videos by their names; links to nothing too, so that reading them says so."""
    paths = [item.path for item in items if not item.reason or item.path.is_symlink() and not hidden(item.path.name)]
    return sorted(_as_file(str(path)) for path in paths if kind(path.name))


def _like(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path is like a pattern, in which ``**`` stands for any number of folders."""
    if not parts or not pattern:
        return not parts and not pattern
    if pattern[0] == "**":
        return any(_like(parts[skipped:], pattern[1:] or ["*"]) for skipped in range(len(parts)))
    return fnmatchcase(parts[0], pattern[0]) and _like(parts[1:], pattern[1:])


def _as_file(name: str) -> str:
    """So that FFmpeg does not take what stands before a colon for a protocol."""
    return f"./{name}" if ":" in name.partition("/")[0] else name


def kind(name: str) -> str | None:
    """By how a file's name ends; of an address, before what is asked of it (``?key=value``)."""
    path = urlsplit(name).path if "://" in name else name
    return KINDS.get(path.rsplit(".", 1)[-1].lower())


def content(name: str) -> bytes:
    """All of a file, here or at an address; raises BadSample."""
    where, _, file = name.rpartition("/")
    try:
        return storage(where).whole(file) if "://" in name else Path(name).read_bytes()
    except FileNotFoundError:
        raise BadSample("there is no such file") from None
    except OSError as error:
        raise BadSample(f"cannot be read: {error}") from None

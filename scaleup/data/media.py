"""The sources of ``predict``: files, folders, patterns, addresses, or a stream on stdin."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

from scaleup.common.errors import UserError
from scaleup.data.decode import EXTENSIONS, BadSample
from scaleup.data.storage import OF_SYSTEMS, Item, count_by_reason, failure, hidden, storage, walk

STDIN = "-"
KINDS = {ending: modality for modality, endings in EXTENSIONS.items() for ending in endings}


def expanded(sources: Sequence[str]) -> list[str]:
    """The files of ``sources``. Folders (with all subfolders) and patterns are expanded; files, addresses and ``-``
    stay.

    Hidden files are skipped unless they are named. Each linked folder is entered once. Files of a folder that are left
    out are printed on stderr. A broken link counts as a file, which cannot be read.

    Raises:
        UserError: a folder or pattern has no image and no video, or a file does not exist.
    """
    names: list[str] = []
    for source in sources:
        matches = [source] if source == STDIN or "://" in source else _matches(source)
        if not matches:
            raise UserError(f"{source!r} has no image and no video; allowed are files ending in {', '.join(KINDS)}")
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
    passed = {*OF_SYSTEMS} - {*source.lower().split("/")}  # glob itself skips names that begin with a dot
    names = [name for name in glob.glob(source) if kind(name)]  # noqa: PTH207  as above
    return sorted(_as_file(name) for name in names if passed.isdisjoint(name.lower().split("/")))


def _in_folder(path: Path) -> list[str]:
    items = list(walk(path))
    names = _files(items)
    used = set(names)
    left_out = [item for item in items if item.reason and _as_file(item.file) not in used]
    for line in count_by_reason(failure(item.path, item.reason) for item in left_out):
        print(f"left out: {line}", file=sys.stderr)
    return names


def _files(items: Iterable[Item]) -> list[str]:
    """Files that are images or videos by their names, and broken links, whose reading fails with the reason."""
    paths = [item.path for item in items if not item.reason or item.path.is_symlink() and not hidden(item.path.name)]
    return sorted(_as_file(str(path)) for path in paths if kind(path.name))


def _like(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a pattern, in which ``**`` stands for any number of folders."""
    if not parts or not pattern:
        return not parts and not pattern
    if pattern[0] == "**":
        return any(_like(parts[skipped:], pattern[1:] or ["*"]) for skipped in range(len(parts)))
    return fnmatchcase(parts[0], pattern[0]) and _like(parts[1:], pattern[1:])


def _as_file(name: str) -> str:
    """A name for FFmpeg, which would read text before a colon as a protocol."""
    return f"./{name}" if ":" in name.partition("/")[0] else name


def kind(name: str) -> str | None:
    """Image or video, by the extension; in an address, the extension before ``?key=value``."""
    path = urlsplit(name).path if "://" in name else name
    return KINDS.get(path.rsplit(".", 1)[-1].lower())


def content(name: str) -> bytes:
    """The bytes of a file, on this machine or at an address; raises BadSample."""
    where, _, file = name.rpartition("/")
    try:
        return storage(where).whole(file) if "://" in name else Path(name).read_bytes()
    except FileNotFoundError:
        raise BadSample("there is no such file") from None
    except OSError as error:
        raise BadSample(f"cannot be read: {error}") from None

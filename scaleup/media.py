"""Images and videos as people name them: files, folders, patterns, addresses, a stream on stdin."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from scaleup.data.decode import EXTENSIONS, BadSample
from scaleup.data.storage import storage
from scaleup.errors import UserError

STDIN = "-"
KINDS = {ending: modality for modality, endings in EXTENSIONS.items() for ending in endings}


def expanded(sources: Sequence[str]) -> list[str]:
    """Files, addresses and ``-`` as they are; folders (with all below them) and patterns as what they hold.

    Raises:
        UserError: a folder or pattern holds no image and no video, or a file is not there.
    """
    found: list[str] = []
    for source in sources:
        inside = [source] if source == STDIN or "://" in source else _matches(source)
        if not inside:
            raise UserError(f"{source!r} holds no image and no video; known are files ending in {', '.join(KINDS)}")
        found += inside
    return found


def _matches(source: str) -> list[str]:
    path = Path(source)
    if path.is_dir():
        return sorted(str(each) for each in path.rglob("*") if kind(str(each)) and each.is_file())
    if path.exists():
        return [source]
    if not glob.has_magic(source):
        raise UserError(f"there is no file {source!r}; allowed are files, folders, patterns, addresses, and -")
    return sorted(each for each in glob.glob(source, recursive=True) if kind(each))  # noqa: PTH207  Path.glob wants a root


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

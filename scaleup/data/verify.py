"""Everything that can be wrong with a shard directory, found without trusting its index."""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from scaleup.data.decode import EXTENSIONS, BadSample, check
from scaleup.data.shards import file_sha256, read_index


def verify(path: str | Path, advance: Callable[[], None] = lambda: None) -> list[str]:
    """Check sizes, sha256, member headers and offsets, labels, unique keys, and that everything decodes.

    ``advance`` is called after every shard.

    Returns:
        One sentence a problem, naming the shard and the sample; empty if all is well.

    Raises:
        UserError: there is no readable index of this format.
    """
    path, index = Path(path), read_index(path)
    try:
        problems = [problem for shard in index["shards"] for problem in _shard(path, shard, index, advance)]
        keys = Counter(entry["key"] for shard in index["shards"] for entry in shard["samples"])
        problems += [f"index.json: key '{key}' occurs {times} times" for key, times in keys.items() if times > 1]
        if index["count"] != keys.total():
            problems.append(f"index.json: count is {index['count']}, but {keys.total()} samples are listed")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [f"index.json: damaged, {type(error).__name__} {error}"]
    return problems


def _shard(path: Path, shard: dict[str, Any], index: dict[str, Any], advance: Callable[[], None]) -> Iterator[str]:
    tar = path / Path(shard["file"]).name
    if not tar.is_file():
        yield f"{tar.name}: missing"
        return
    if tar.stat().st_size != shard["bytes"]:
        yield f"{tar.name}: {tar.stat().st_size} bytes, not {shard['bytes']}"
    if file_sha256(tar) != shard["sha256"]:
        yield f"{tar.name}: its sha256 is not the index's"
    yield from _unlisted(tar, shard)
    with tar.open("rb") as file:
        for entry in shard["samples"]:
            for problem in _sample(file, entry, index):
                yield f"{tar.name}: sample '{entry['key']}': {problem}"
    advance()


def _unlisted(tar: Path, shard: dict[str, Any]) -> Iterator[str]:
    """Members that a sequential reader would meet and the index does not know."""
    listed = {f"{entry['key']}.{extension}" for entry in shard["samples"] for extension in entry["members"]}
    try:
        with tarfile.open(tar) as archive:
            yield from (
                f"{tar.name}: '{name}' is not in the index" for name in archive.getnames() if name not in listed
            )
    except tarfile.TarError as error:
        yield f"{tar.name}: {error}"


def _sample(file: BinaryIO, entry: dict[str, Any], index: dict[str, Any]) -> Iterator[str]:
    for name, names in index["classes"].items():
        number = entry["labels"].get(name)
        if not isinstance(number, int) or not 0 <= number < len(names):
            yield f"label '{name}' is {number}, but there are {len(names)} classes"
    for extension, (offset, size, crc) in entry["members"].items():
        data = os.pread(file.fileno(), size, offset)
        if _header(file, offset) != (f"{entry['key']}.{extension}", size):
            yield f".{extension} has no matching tar header at byte {offset - 512}"
        elif len(data) != size:
            yield f".{extension} is cut off"
        elif zlib.crc32(data) != crc:
            yield f".{extension} has other bytes than were written"
        yield from _content(extension, data, entry, index["modality"])


def _header(file: BinaryIO, offset: int) -> tuple[str, int] | None:
    """Name and size in the tar header before ``offset``."""
    try:
        header = tarfile.TarInfo.frombuf(os.pread(file.fileno(), 512, max(0, offset - 512)), "utf-8", "replace")
    except tarfile.HeaderError:
        return None
    return header.name, header.size


def _content(extension: str, data: bytes, entry: dict[str, Any], modality: str) -> Iterator[str]:
    try:
        if extension in EXTENSIONS[modality]:
            check(data, modality)
        elif json.loads(data)["labels"] != entry["labels"]:
            yield "its .json has other labels than the index"
    except BadSample as error:
        yield str(error)
    except (ValueError, KeyError, TypeError):
        yield "its .json is not one of ours"

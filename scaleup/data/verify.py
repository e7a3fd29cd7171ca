"""Everything that can be wrong with a shard directory, found without trusting its index."""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from scaleup.common.processes import parallel
from scaleup.data.decode import BadSample, check
from scaleup.data.playback import Noted, unnoted
from scaleup.data.shards import MEDIA, file_sha256, read_index
from scaleup.data.storage import storage
from scaleup.data.tar_members import Members, failed_as, group_members
from scaleup.errors import UserError


def verify(
    path: str | Path,
    advance: Callable[[], None] = lambda: None,
    processes: int | None = None,
    noted: Noted = unnoted,
) -> list[str]:
    """Check sizes, sha256, member headers and offsets, labels, unique keys, and that everything decodes.

    At an address every tar is brought here for as long as it is checked. ``advance`` is called after every shard,
    ``noted`` with a sentence for every sample that can be used but is odd.

    Returns:
        One sentence a problem, naming the shard and the sample; empty if all is well.

    Raises:
        UserError: there is no readable index of this format.
    """
    index = read_index(path, changed=True)
    try:
        rest = {name: value for name, value in index.items() if name != "shards"}
        problems = _changed(path)
        for found, notes in parallel(partial(_shard, path, rest), index["shards"], processes):
            problems += found
            for note in notes:
                noted(note)
            advance()
        keys = Counter(entry["key"] for shard in index["shards"] for entry in shard["samples"])
        problems += [f"index.json: key '{key}' occurs {times} times" for key, times in keys.items() if times > 1]
        if index["count"] != keys.total():
            problems.append(f"index.json: count is {index['count']}, but {keys.total()} samples are listed")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [*_changed(path), f"index.json: damaged, {type(error).__name__} {error}"]
    return problems


def _changed(path: str | Path) -> list[str]:
    try:
        read_index(path)
    except UserError as error:
        return [f"index.json: {error}"]
    return []


def _shard(path: str | Path, index: dict[str, Any], shard: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The problems of one shard, and what else is odd; ``index`` is all but the list of shards."""
    notes: list[str] = []
    return list(_problems(path, shard, index, notes.append)), notes


def _problems(path: str | Path, shard: dict[str, Any], index: dict[str, Any], noted: Noted) -> Iterator[str]:
    if Path(shard["file"]).name != shard["file"]:
        yield f"index.json: '{shard['file']}' is not the name of a file beside it"
        return
    try:
        with storage(path).local(shard["file"]) as tar:
            yield from _differences(tar, shard, index, noted)
    except FileNotFoundError:
        yield f"{shard['file']}: missing"
    except OSError as error:
        yield f"{shard['file']}: cannot be read: {error}"


def _differences(tar: Path, shard: dict[str, Any], index: dict[str, Any], noted: Noted) -> Iterator[str]:
    """What the tar has other than the index says."""
    if tar.stat().st_size != shard["bytes"]:
        yield f"{tar.name}: {tar.stat().st_size} bytes, not {shard['bytes']}"
    if file_sha256(tar) != shard["sha256"]:
        yield f"{tar.name}: its sha256 is not the index's"
    groups, wrong = group_members(tar)
    known = {failure["source"] for failure in index["failures"]}
    named = (failed_as(tar.name, key, reason) for key, reason in wrong)
    yield from (f"{each['source']}: {each['reason']}" for each in named if each["source"] not in known)
    yield from _unlisted(tar.name, shard, groups, known)
    with tar.open("rb") as file:
        for entry in shard["samples"]:
            odd: list[str] = []
            where = f"{tar.name}: sample '{entry['key']}'"
            for problem in _sample(file, entry, groups.get(entry["key"], {}), index, odd.append):
                yield f"{where}: {problem}"
            for note in odd:
                noted(f"{where}: {note}")


def _unlisted(tar: str, shard: dict[str, Any], groups: dict[str, Members], known: set[str]) -> Iterator[str]:
    """Members that a sequential reader would meet and the index does not know."""
    listed = {(entry["key"], extension) for entry in shard["samples"] for extension in entry["members"]}
    found = {(key, ending) for key, members in groups.items() for ending in members if f"{tar}: {key}" not in known}
    yield from (f"{tar}: '{key}.{ending}' is not in the index" for key, ending in sorted(found - listed))


def _sample(
    file: BinaryIO, entry: dict[str, Any], members: Members, index: dict[str, Any], noted: Noted
) -> Iterator[str]:
    for name, names in index["classes"].items():
        number = entry["labels"].get(name)
        if not isinstance(number, int) or not 0 <= number < len(names):
            yield f"label '{name}' is {number}, but there are {len(names)} classes"
    for extension, (offset, size, crc) in entry["members"].items():
        data = os.pread(file.fileno(), size, offset)
        member = members.get(extension)
        if member is None or (member.offset_data, member.size) != (offset, size):
            yield f".{extension} has no matching tar header at byte {offset - 512}"
        elif len(data) != size:
            yield f".{extension} is cut off"
        elif zlib.crc32(data) != crc:
            yield f".{extension} has other bytes than were written"
        yield from _content(extension, data, entry, index, noted)


def _check(data: bytes, modality: str, noted: Noted) -> None:
    if modality == "taps":
        from scaleup.data import token_records  # takes seconds, which files do not need

        token_records.check(data)
    else:
        check(data, modality, noted)


def _content(extension: str, data: bytes, entry: dict[str, Any], index: dict[str, Any], noted: Noted) -> Iterator[str]:
    try:
        if extension in MEDIA[index["modality"]]:
            _check(data, index["modality"], noted)
        elif not index.get("in_place") and json.loads(data)["labels"] != entry["labels"]:
            yield "its .json has other labels than the index"
    except BadSample as error:
        yield str(error)
    except (ValueError, KeyError, TypeError):
        yield "its .json is not one of ours"

"""Checks a shard directory completely, without trusting its index."""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from scaleup.common.errors import UserError
from scaleup.common.processes import parallel
from scaleup.common.timing import progress
from scaleup.data.decode import BadSample, check
from scaleup.data.doubles import Doubles
from scaleup.data.index import (
    CHANGED,
    COLUMNS,
    DAMAGE,
    FORMAT,
    MEDIA,
    Index,
    SampleEntry,
    TarEntry,
    explain_damage,
    file_sha256,
    read_index,
)
from scaleup.data.labels import ONE, explain_label
from scaleup.data.members import Headers, group_members
from scaleup.data.playback import Noted
from scaleup.data.storage import Failure, storage
from scaleup.data.table import Table


@dataclass
class Verified:
    """The result of :func:`verify`."""

    samples: int  # number of samples in the index
    problems: list[str]  # a sentence for each problem, with the shard and the sample; empty if all is well
    notes: list[str]  # a sentence for each sample that is unusual but usable
    failures: list[Failure]  # files that were left out when the shards were made


def verify(path: str | Path, processes: int | None = None) -> Verified:
    """Check sizes, sha256, member headers and offsets, labels, unique keys, and that everything decodes.

    From an address, each tar is downloaded while it is checked.

    Raises:
        UserError: there is no readable index of this format.
    """
    content, changed = read_index(path)
    problems, notes = [f"index.json: '{path}/index.json' is damaged: {CHANGED}"] if changed else [], list[str]()
    try:
        index = Index.of(content)
        task, keys = partial(_check_tar, path, replace(index, shards=[])), Doubles()
        table = Table.of(path, content) if content["format"] == FORMAT else None
        tars = index.shards if table is None else _tars(table, problems)
        with progress(f"checking {Path(path).name}", len(index.shards)) as advance:
            for of_tar, notes_of_tar in parallel(task, _counted(tars, keys), processes):
                problems += of_tar
                notes += notes_of_tar
                advance()
        problems += _twice(index.shards if table is None else _tars(table, []), keys.suspects())
        if index.count != len(keys):
            problems.append(f"index.json: count is {index.count}, but {len(keys)} samples are listed")
    except UserError as error:
        problems.append(str(error))
    except DAMAGE as error:
        problems.append(f"index.json: damaged, {explain_damage(error)}")
    count = content.get("count")
    if count == 0 and not problems:
        problems = [f"'{path}' has no samples, so nothing can be trained or tested on it"]
    return Verified(count if isinstance(count, int) else 0, problems, notes, _left_out(content))


def _tars(table: Table, problems: list[str]) -> Iterator[TarEntry]:
    """The entries of all tars; those whose rows are damaged beyond reading have no samples."""
    for number, tar in enumerate(table.index.shards):
        try:
            table.check(number)
        except DAMAGE as error:
            problems.append(f"{COLUMNS}: {error}")
        try:
            yield table.entry(number)
        except DAMAGE:
            yield tar


def _counted(tars: Iterable[TarEntry], keys: Doubles) -> Iterator[TarEntry]:
    for tar in tars:
        keys.add(sample.key for sample in tar.samples)
        yield tar


def _twice(tars: Iterable[TarEntry], suspects: set[int]) -> list[str]:
    """A sentence for every key that occurs more than once, whose hash is one of ``suspects``."""
    if not suspects:
        return []
    keys = Counter(sample.key for tar in tars for sample in tar.samples if hash(sample.key) in suspects)
    return [f"index.json: key '{key}' occurs {times} times" for key, times in keys.items() if times > 1]


def _left_out(content: dict[str, Any]) -> list[Failure]:
    """The failures that an index names, damaged or not."""
    try:
        return [Failure(**failure) for failure in content["failures"]]
    except DAMAGE:
        return []


def _check_tar(path: str | Path, index: Index, tar: TarEntry) -> tuple[list[str], list[str]]:
    """The problems of one tar, and its notes; ``index`` has no tars."""
    notes: list[str] = []
    if Path(tar.file).name != tar.file:
        return [f"index.json: '{tar.file}' is not the name of a file in its folder"], notes
    problems: list[str] = []
    try:
        with storage(path).local(tar.file) as file:
            problems.extend(_differences(file, tar, index, notes))
    except FileNotFoundError:
        problems.append(f"{tar.file}: missing")
    except OSError as error:
        problems.append(f"{tar.file}: cannot be read: {error}")
    return problems, notes


def _differences(path: Path, tar: TarEntry, index: Index, notes: list[str]) -> Iterator[str]:
    """The differences between a tar and the index."""
    if path.stat().st_size != tar.bytes:
        yield f"{tar.file}: {path.stat().st_size} bytes, not {tar.bytes}"
    if file_sha256(path) != tar.sha256:
        yield f"{tar.file}: its sha256 is not that of the index"
    samples, failures = group_members(path)
    left_out = {failure.source for failure in index.failures}
    yield from (f"{failure.source}: {failure.reason}" for failure in failures if failure.source not in left_out)
    yield from _unlisted(tar, samples, left_out)
    with path.open("rb") as file:
        for entry in tar.samples:
            odd: list[str] = []
            where = f"{tar.file}: sample '{entry.key}'"
            problems = _check_sample(file, entry, samples.get(entry.key, {}), index, odd.append)
            yield from (f"{where}: {problem}" for problem in problems)
            notes += [f"{where}: {note}" for note in odd]


def _unlisted(tar: TarEntry, samples: dict[str, Headers], left_out: set[str]) -> Iterator[str]:
    """Members of the tar that are not in the index."""
    listed = {(entry.key, ending) for entry in tar.samples for ending in entry.members}
    usable = {key: headers for key, headers in samples.items() if f"{tar.file}: {key}" not in left_out}
    unlisted = {(key, ending) for key, headers in usable.items() for ending in headers} - listed
    yield from (f"{tar.file}: '{key}.{ending}' is not in the index" for key, ending in sorted(unlisted))


def _check_sample(file: BinaryIO, entry: SampleEntry, headers: Headers, index: Index, noted: Noted) -> Iterator[str]:
    for name, names in index.classes.items():
        if fault := explain_label(entry.labels.get(name), index.kinds.get(name, ONE), len(names)):
            yield f"label '{name}' {fault}"
    for ending, (offset, size, crc) in entry.members.items():
        header = headers.get(ending)
        if header is None or (header.offset_data, header.size) != (offset, size):
            yield f".{ending} has no matching tar header at byte {offset - 512}"
            continue
        data = os.pread(file.fileno(), size, offset)
        if len(data) != size:
            yield f".{ending} is cut off"
        elif zlib.crc32(data) != crc:
            yield f".{ending} has changed since it was written"
        try:
            _check_content(ending, data, entry, index, noted)
        except BadSample as error:
            yield str(error)


def _check_content(ending: str, data: bytes, entry: SampleEntry, index: Index, noted: Noted) -> None:
    """BadSample if the content of a member is wrong."""
    if ending not in MEDIA[index.modality]:
        try:
            if not index.in_place and json.loads(data)["labels"] != entry.labels:
                raise BadSample("its .json has other labels than the index")
        except (ValueError, KeyError, TypeError):
            raise BadSample("its .json is not one of ours") from None
    elif index.modality == "taps":
        from scaleup.data import token_records  # takes seconds, and is only needed for token caches

        token_records.check(data)
    else:
        check(data, index.modality, noted)

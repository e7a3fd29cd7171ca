"""Packs samples or a list of files into shards, in parallel. An interrupted call goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from scaleup.common.errors import UserError
from scaleup.common.files import clear_directory, new_directory, partial_directory, read_json, refuse_existing
from scaleup.common.processes import parallel
from scaleup.data.decode import EXTENSIONS, BadSample
from scaleup.data.encode import Encoding, encoded
from scaleup.data.index import (
    COLUMNS,
    DAMAGE,
    Index,
    Note,
    SampleEntry,
    TarEntry,
    file_sha256,
    write_index,
    write_part,
)
from scaleup.data.labels import ONE, Labelling, explain_label
from scaleup.data.shards import Sample, Shards
from scaleup.data.sources import Listing
from scaleup.data.storage import Failure, Item, failure

MTIME = 2 * 10**9  # nanoseconds; some file systems store modification times only to two seconds
C = TypeVar("C", bound=Sized)


def write_shards(
    samples: Iterable[Sample],
    out: str | Path,
    modality: str,
    classes: Mapping[str, list[str]],
    per_shard: int = 1000,
    overwrite: bool = False,
    kinds: Mapping[str, str] | None = None,
) -> Shards:
    """Write ``samples`` to the shard directory ``out``, which appears when it is complete. Bytes depend only on them.

    Args:
        kinds: labels that are lists (``several``) or numbers (``number``, with the classes ``labels.QUANTITY``).

    Raises:
        UserError: ``out`` exists and ``overwrite`` is not set, or it cannot be written.
    """
    keys: set[str] = set()
    kinds = dict(kinds or {})
    with new_directory(out, overwrite) as temporary:
        tars: list[TarEntry] = []
        for number, chunk in groupby(enumerate(samples), lambda numbered: numbered[0] // per_shard):
            checked = (_check(sample, modality, classes, kinds, keys) for _, sample in chunk)
            tars.append(write_shard(temporary / f"{number:06d}.tar", checked))
        write_index(temporary, Index(modality, dict(classes), len(keys), [], tars, kinds))
    return Shards.open(out)


def _check(
    sample: Sample, modality: str, classes: Mapping[str, list[str]], kinds: Mapping[str, str], keys: set[str]
) -> Sample:
    """``sample``, if it is valid; its key is added to ``keys``."""
    if not sample.key or "." in sample.key or sample.key in keys:
        raise UserError(f"sample key {sample.key!r} is empty, has a dot or occurs twice")
    endings = EXTENSIONS[modality]
    if sample.extension not in endings:
        raise UserError(f"sample '{sample.key}' is a .{sample.extension}; {modality}: {', '.join(endings)}")
    counts = {name: len(names) for name, names in classes.items()}
    if sample.labels.keys() != counts.keys():
        raise UserError(f"sample '{sample.key}' has labels {sample.labels}; class counts are {counts}")
    for name, label in sample.labels.items():
        if fault := explain_label(label, kinds.get(name, ONE), counts[name]):
            raise UserError(f"label '{name}' of sample '{sample.key}' {fault}")
    keys.add(sample.key)
    return sample


def write_shard(path: Path, samples: Iterable[Sample]) -> TarEntry:
    """Write one tar and return its entry of the index. The offsets of members are read from the written file."""
    entries: dict[str, SampleEntry] = {}
    crcs: dict[str, int] = {}
    import webdataset  # takes seconds, and is not needed to read

    with path.open("wb") as file, webdataset.TarWriter(file, user="", group="", mtime=0, encoder=False) as writer:
        for sample in samples:
            labels = json.dumps({"labels": dict(sample.labels)}).encode()
            writer.write({"__key__": sample.key, sample.extension: sample.media, "json": labels})
            entries[sample.key] = SampleEntry(sample.key, dict(sample.labels), {})
            crcs[f"{sample.key}.{sample.extension}"] = zlib.crc32(sample.media)
            crcs[f"{sample.key}.json"] = zlib.crc32(labels)
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.rpartition(".")
            entries[key].members[extension] = [member.offset_data, member.size, crcs[member.name]]
    return TarEntry(path.name, path.stat().st_size, file_sha256(path), list(entries.values()))


class GrowingShards(Generic[C]):
    """A shard directory that is written tar by tar. Tars that an earlier run finished are checked and kept.

    Every finished tar has its own index file, such as ``000000.json``.

    Args:
        chunks: for each tar, the items that it is written from.
        name: name of the dataset, for messages.
    """

    def __init__(self, directory: Path, chunks: Sequence[C], name: str = "") -> None:
        directory.mkdir(exist_ok=True)
        self.directory, self.chunks = directory, chunks
        self.parts = {number: part for number in range(len(chunks)) if (part := self._read_finished(number))}
        if self.parts:
            shards = f"shards of '{name}'" if name else "shards"
            print(f"going on: {len(self.parts)} of {len(chunks)} {shards} are finished", file=sys.stderr)

    def _read_finished(self, number: int) -> Index | None:
        """The index of tar ``number``, or None if the tar is not finished or has changed."""
        try:
            part = self._read(number)
            if file_sha256(self.directory / f"{number:06d}.tar") == part.shards[0].sha256:
                return _without_samples(part)
            print(f"shard {number:06d}.tar has changed since it was written; it is made again", file=sys.stderr)
        except (OSError, UserError, *DAMAGE):
            pass
        return None

    def _read(self, number: int) -> Index:
        return Index.of(read_json(self.directory / f"{number:06d}.json"))

    @property
    def done(self) -> int:
        """Number of finished items."""
        return sum(len(self.chunks[number]) for number in self.parts)

    @property
    def unfinished(self) -> dict[int, C]:
        """The unfinished chunks, by the numbers of their tars."""
        return {number: chunk for number, chunk in enumerate(self.chunks) if number not in self.parts}

    @property
    def failures(self) -> list[Failure]:
        """The failures of all finished tars."""
        return [failure for number in sorted(self.parts) for failure in self.parts[number].failures]

    def write(self, number: int, results: Iterable[Sample | Failure | Note]) -> None:
        """Write tar ``number``, and then its index."""
        others = list[Failure | Note]()

        def samples() -> Iterator[Sample]:
            for result in results:
                if isinstance(result, Sample):
                    yield result
                else:
                    others.append(result)

        tar = write_shard(self.directory / f"{number:06d}.tar", samples())
        failures = [other for other in others if isinstance(other, Failure)]
        notes = [other for other in others if isinstance(other, Note)]
        part = Index("", {}, len(tar.samples), failures, [tar], notes=notes)
        write_part(self.directory / f"{number:06d}.json", part)
        self.parts[number] = _without_samples(part)

    def conclude(self, index: Index) -> None:
        """Add the indexes of all tars to ``index`` and write it. All tars must be finished."""
        parts = [self.parts[number] for number in range(len(self.chunks))]
        index.count += sum(part.count for part in parts)
        index.failures += self.failures
        index.notes += [note for part in parts for note in part.notes]
        write_index(self.directory, index, (self._read(number).shards[0] for number in self._full))

    def tidy(self) -> None:
        """Remove the indexes of tars, and tars without samples. After this the directory cannot grow on."""
        clear_directory(self.directory, {"plan", "index.json", COLUMNS, *(f"{n:06d}.tar" for n in self._full)})

    @property
    def _full(self) -> list[int]:
        return [number for number, part in sorted(self.parts.items()) if part.count]


def _without_samples(part: Index) -> Index:
    """The index of one tar, to stay in memory."""
    return replace(part, shards=[replace(tar, samples=[]) for tar in part.shards])


Read = tuple[str, bytes, list[str]] | str  # extension, bytes and notes of a file; or the reason why it is left out


def pack(
    listing: Listing,
    out: str | Path,
    encoding: Encoding | None = None,
    seed: int = 0,
    per_shard: int = 1000,
    overwrite: bool = False,
    processes: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Shards:
    """Write the files of ``listing`` to the shard directory ``out``, with label ``label``.

    The order of samples is random, from ``seed``, so that neighbours have different classes. The bytes depend only on
    the files, the options and the seed. Every file is decoded completely; files that cannot be decoded are left out and
    listed in the index's failures. Until it is complete, the directory is called ``.OUT.partial``; if the same call is
    made again, finished tars are checked and kept. ``advance`` is called with the number of finished files.

    Raises:
        UserError: ``out`` exists and ``overwrite`` is not set, no file can be read, or another process packs the same.
    """
    out, encoding = Path(out), encoding or Encoding()
    refuse_existing(out, overwrite)
    items = listing.items
    left_out = [failure(item.file, item.reason) for item in items if item.reason]
    usable = np.fromiter((number for number, item in enumerate(items) if not item.reason), np.int64)
    order = np.random.default_rng(seed).permutation(len(usable))
    chunks = [order[begin : begin + per_shard] for begin in range(0, len(order), per_shard)]
    read = partial(_read, listing.read, listing.modality, encoding)
    labelling = listing.labelling
    with partial_directory(
        out, _plan((items[n] for n in usable), labelling, encoding, seed, per_shard, listing.version)
    ) as directory:
        shards = GrowingShards(directory, chunks)
        advance(len(left_out) + shards.done)
        unread = shards.unfinished
        tasks = (items[usable[number]] for chunk in unread.values() for number in chunk)
        with closing(parallel(read, tasks, processes)) as results:
            for tar, chunk in unread.items():
                shards.write(tar, _results([(n, items[usable[n]]) for n in chunk], results, labelling, advance))
        if not any(part.count for part in shards.parts.values()):
            failures = left_out + shards.failures
            shutil.rmtree(directory)
            raise UserError(f"none of the {len(failures)} files can be read; the first: {failures[0].reason}")
        shards.conclude(Index(listing.modality, {"label": labelling.classes}, 0, left_out, [], labelling.kinds))
        refuse_existing(out, overwrite)  # before it is tidied, so that a call that may overwrite goes on from here
        shards.tidy()
    return Shards.open(out)


def _results(
    items: Sequence[tuple[int, Item]], results: Iterator[Read], labelling: Labelling, advance: Callable[[int], None]
) -> Iterator[Sample | Failure | Note]:
    """The samples, failures and notes of a tar. ``results`` are the read files of numbered ``items``."""
    for (number, item), result in zip(items, islice(results, len(items)), strict=True):
        if isinstance(result, str):
            yield failure(item.path, result)
        else:
            extension, data, notes = result
            yield from (Note(item.file, note) for note in notes)
            # The number makes it unique, the stem readable. It has no character with a meaning for tar or WebDataset.
            key = f"{number:07d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', item.path.stem)[:60]}"
            yield Sample(key, extension, data, {"label": labelling.value(item.label)})
        advance(1)


def _plan(
    items: Iterable[Item], labelling: Labelling, encoding: Encoding, seed: int, per_shard: int, version: str
) -> str:
    """A hash of everything that the bytes of the shards depend on."""
    settings = [asdict(encoding), seed, per_shard, labelling.classes, *labelling.kinds.values()]
    digest = hashlib.sha256(json.dumps(settings).encode() + version.encode())
    for item in items:
        named = f"Item(path={item.path!r}, label={item.label!r}, reason='')"  # as when items had a path: a plan stays
        try:
            file = item.path.stat()
            digest.update(f"{named} {file.st_size} {file.st_mtime_ns // MTIME}\n".encode())
        except (OSError, ValueError):
            digest.update(f"{named}\n".encode())
    return digest.hexdigest()


def _read(read: Callable[[Path], tuple[str, bytes]], modality: str, encoding: Encoding, item: Item) -> Read:
    try:
        extension, data = read(item.path)
        if not data:
            return "is empty: 0 bytes"
        if extension not in EXTENSIONS[modality]:
            return f"is a .{extension}; allowed are {', '.join(EXTENSIONS[modality])}"
        notes: list[str] = []
        return *encoded(data, extension, modality, encoding, notes.append), notes
    except BadSample as error:
        return str(error)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        return getattr(error, "strerror", None) or str(error)

"""A list of files to a shard directory: in parallel, ordered by a seed, going on where it was cut off."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from scaleup.common.files import refuse_existing, swap_in
from scaleup.common.processes import parallel
from scaleup.data.decode import BadSample
from scaleup.data.encode import Encoding, encoded
from scaleup.data.folders import NO_FILE, Failure, failure
from scaleup.data.shards import Sample, Shards, index_of, write_index, write_json, write_shard
from scaleup.data.sources import Item, Listing, extension_of
from scaleup.data.unfinished import clear_partial, partial_directory, read_finished
from scaleup.errors import UserError

Task = tuple[int, Item, str, Encoding]  # its number in the listing, modality
Read = tuple[str, bytes, list[str]] | str  # ending, bytes and what is odd about it, or why it cannot be a sample
MTIME = 2 * 10**9  # nanoseconds; some file systems keep no finer time of writing


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

    Samples are spread over the shards in an order drawn from ``seed``, so that neighbours are of different classes; the
    bytes depend on the files, the options and the seed alone. Every file is decoded in full; what cannot be is left
    out and named in the index's failures. Until all of it is there it grows in ``.OUT.partial`` beside ``out``; what
    is finished in there is verified and kept when the same call is made again. ``advance`` is called with the number
    of files done.

    Raises:
        UserError: ``out`` exists and ``overwrite`` is not set, no file can be read, or another process packs the same.
    """
    out, encoding = Path(out), encoding or Encoding()
    refuse_existing(out, overwrite)
    items = [item for item in listing.items if not item.reason]
    left_out = [failure(item.path, item.reason) for item in listing.items if item.reason]
    order = np.random.default_rng(seed).permutation(len(items)).tolist()
    tasks = [(number, items[number], listing.modality, encoding) for number in order]
    chunks = [tasks[begin : begin + per_shard] for begin in range(0, len(tasks), per_shard)]
    numbers = {name: number for number, name in enumerate(listing.classes)}
    with partial_directory(out, _plan(items, listing.classes, encoding, seed, per_shard)) as partial:
        parts = {number: part for number in range(len(chunks)) if (part := read_finished(partial, number))}
        if parts:
            print(f"going on: {len(parts)} of {len(chunks)} shards are finished", file=sys.stderr)
        advance(len(left_out) + sum(len(chunks[number]) for number in parts))
        left = [number for number in range(len(chunks)) if number not in parts]
        with closing(parallel(_read, (task for number in left for task in chunks[number]), processes)) as results:
            for number in left:
                parts[number] = _packed(partial, number, chunks[number], results, numbers, advance)
        _conclude(partial, [parts[number] for number in range(len(chunks))], listing, left_out)
        swap_in(partial, out)
    return Shards.open(out)


def _packed(
    partial: Path, number: int, tasks: list[Task], results: Iterator[Read], numbers: dict[str, int], advance: Callable
) -> dict[str, Any]:
    """Write shard ``number`` and what is to be known of it; this file's being there says that the shard is finished."""
    failures: list[Failure] = []
    notes: list[dict[str, str]] = []

    def samples() -> Iterator[Sample]:
        for (order, item, _, _), result in zip(tasks, islice(results, len(tasks)), strict=True):
            if isinstance(result, str):
                failures.append(failure(item.path, result))
            else:
                extension, media, odd = result
                notes.extend({"source": str(item.path), "note": note} for note in odd)
                yield Sample(_key(order, item.path), extension, media, {"label": numbers[item.label]})
            advance(1)

    entry = write_shard(partial / f"{number:06d}.tar", samples())
    part = {"shard": entry, "failures": failures, "notes": notes}
    write_json(partial / f"{number:06d}.json", part)
    return part


def _conclude(partial: Path, parts: list[dict[str, Any]], listing: Listing, left_out: list[Failure]) -> None:
    """Write the index, and remove everything but it and the tars that have samples."""
    failures = left_out + [each for part in parts for each in part["failures"]]
    notes = [note for part in parts for note in part.get("notes", [])]
    shards = [part["shard"] for part in parts if part["shard"]["samples"]]
    if not shards:
        shutil.rmtree(partial)
        raise UserError(f"none of the {len(failures)} files can be read; the first: {failures[0]['reason']}")
    kept = {shard["file"] for shard in shards}
    write_index(partial, index_of(listing.modality, {"label": listing.classes}, shards, failures, notes))
    clear_partial(partial, kept | {"index.json"})


def _plan(items: list[Item], classes: list[str], encoding: Encoding, seed: int, per_shard: int) -> str:
    """A hash of everything that the bytes of the shards depend on."""
    digest = hashlib.sha256(json.dumps([asdict(encoding), seed, per_shard, classes]).encode())
    for item in items:
        try:
            found = item.path.stat()
            digest.update(f"{item} {found.st_size} {found.st_mtime_ns // MTIME}\n".encode())
        except (OSError, ValueError):
            digest.update(f"{item}\n".encode())
    return digest.hexdigest()


def _read(task: Task) -> Read:
    _, item, modality, encoding = task
    try:
        if not (stat.S_ISREG(mode := item.path.stat().st_mode) or stat.S_ISDIR(mode)):
            return NO_FILE  # to open it might never end
        if not (data := item.path.read_bytes()):
            return "is empty: 0 bytes"
        notes: list[str] = []
        return *encoded(data, extension_of(item.path), modality, encoding, notes.append), notes
    except BadSample as error:
        return str(error)
    except (OSError, ValueError) as error:  # ValueError: a path that cannot be one
        return getattr(error, "strerror", None) or str(error)


def _key(order: int, path: Path) -> str:
    """Unique by its number, readable by its stem, and without what tar and WebDataset give a meaning to."""
    return f"{order:07d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', path.stem)[:60]}"

"""How large a cache is, before anything of it is made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from scaleup.common.units import said
from scaleup.data.shards import Shards
from scaleup.data.token_records import lowered, record
from scaleup.data.unfinished import partial_name
from scaleup.errors import UserError
from scaleup.model.tubevit import TubeViT

SHARD = 2**29  # bytes of a tar, about, which is what a kill loses at most
SPARE = 0.05  # of the free disk, which stays free
BLOCK, END = 512, 10240  # what members of a tar, their headers, and the whole of it are multiples of
ENTRY = 160  # bytes of a record in the index, about


def blank_record(model: TubeViT, modality: str, depths: list[int], precision: str) -> bytes:
    """A record of one view of one sample, z0 and h at every depth, all of them 0: as all records are laid out."""
    count = model.count_tokens(1 if modality == "image" else model.preprocess.frames)
    names = ["z0", *(f"h{depth}" for depth in depths)]
    blank = {name: torch.zeros(1, count, model.tokenizer.embed_dim) for name in names}
    kept = lowered(blank, precision)
    return record({name: tensor[0] for name, tensor in kept.items()})


def samples_of_a_tar(record: int, views: int) -> int:
    return max(1, SHARD // (record * views))


def cache_bytes(shards: Shards, record: int, views: int) -> int:
    """Bytes on the disk of a dataset whose records have ``record`` bytes: tars to the byte, the index roughly."""
    label = json.dumps({"labels": {name: int(numbers[0]) for name, numbers in shards.labels.items()}})
    sample = views * (2 * BLOCK + _up(record, BLOCK) + _up(len(label), BLOCK))
    each = samples_of_a_tar(record, views)
    counts = [each] * (len(shards) // each) + [len(shards) % each] * (len(shards) % each > 0)
    index = len(shards) * views * ENTRY + sum(len(key) + 3 for key in shards.keys)
    return sum(_up(count * sample + 2 * BLOCK, END) for count in counts) + index


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def refuse_too_large(size: int, out: Path, limit: int | None) -> None:
    """UserError where the limit or the free disk does not allow so many bytes at ``out``; what stands there half
    written counts as done."""
    if limit is not None and size > limit:
        raise UserError(f"the cache takes {said(size)}, more than --limit allows, {said(limit)}")
    there = next(parent for parent in out.resolve().parents if parent.exists())
    left = size - sum(tar.stat().st_size for tar in partial_name(out).glob("*/*.tar"))
    free = shutil.disk_usage(there).free
    if left > free * (1 - SPARE):
        raise UserError(
            f"the cache takes {said(size)}, and of the {said(free)} that are free on the disk of '{out}' {SPARE:.0%} "
            "must stay free; choose fewer views, fewer depths, or precision int8"
        )

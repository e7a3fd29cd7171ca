"""How large a token cache will be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from scaleup.common.errors import UserError
from scaleup.common.files import partial_name
from scaleup.common.text import format_bytes
from scaleup.data.shards import Shards
from scaleup.data.token_records import quantise, record
from scaleup.model.tubevit import TubeViT

SHARD = 2**29  # bytes of a tar, roughly; a killed process loses at most one
SPARE = 0.05  # share of the free disk that stays free
BLOCK, END = 512, 10240  # sizes of members, headers and whole tars are multiples of these
ENTRY = 120  # bytes of a record in the index beside its key, roughly


def blank_record(model: TubeViT, modality: str, depths: list[int], precision: str) -> bytes:
    """A record of one view of one sample with zeros: z0 and h at every depth. All records have this layout."""
    count = model.count_tokens(1 if modality == "image" else model.preprocess.frames)
    names = ["z0", *(f"h{depth}" for depth in depths)]
    blank = {name: torch.zeros(1, count, model.tokenizer.embed_dim) for name in names}
    kept = quantise(blank, precision)
    return record({name: tensor[0] for name, tensor in kept.items()})


def samples_of_a_tar(record: int, views: int) -> int:
    return max(1, SHARD // (record * views))


def cache_bytes(shards: Shards, record: int, views: int) -> int:
    """Bytes on the disk of a dataset with records of ``record`` bytes: exact for tars (unless a label is a list of many
    classes, or a key has more than 80 characters), roughly for the index."""
    label = json.dumps({"labels": shards.labels_of(0)})
    sample = views * (2 * BLOCK + _up(record, BLOCK) + _up(len(label), BLOCK))
    length = samples_of_a_tar(record, views)
    full, rest = divmod(len(shards), length)
    tars = full * _up(length * sample + 2 * BLOCK, END) + (_up(rest * sample + 2 * BLOCK, END) if rest else 0)
    return tars + views * (len(shards) * ENTRY + len(shards.keys.values))


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def refuse_too_large(size: int, out: Path, limit: int | None) -> None:
    """Raise UserError if the limit or the free disk is too small for ``size`` bytes at ``out``.

    Bytes that an interrupted call has written are not needed again.
    """
    if limit is not None and size > limit:
        raise UserError(f"the cache takes {format_bytes(size)}, more than --limit allows, {format_bytes(limit)}")
    disk = next(parent for parent in out.resolve().parents if parent.exists())
    rest = size - sum(tar.stat().st_size for tar in partial_name(out).glob("*/*.tar"))
    free = shutil.disk_usage(disk).free
    if rest > free * (1 - SPARE):
        raise UserError(
            f"the cache takes {format_bytes(size)}, and of the {format_bytes(free)} that are free on the disk "
            f"of '{out}' {SPARE:.0%} must stay free; choose fewer views, fewer depths, or precision int8"
        )

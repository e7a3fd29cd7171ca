"""Taps of a trunk in shards: one record for each view of a sample, z0 and h at every depth, in safetensors' layout.

All records of a dataset are alike in size and layout, so that a batch of them is one array of bytes, and a tensor of
the batch a slice of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from scaleup.config import schema
from scaleup.data.batches import Batch
from scaleup.data.decode import BadSample
from scaleup.data.loader import Joined, TrainSteps, check_heads, train_steps
from scaleup.data.shards import Shards
from scaleup.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}  # what tokens are kept in
KINDS = {"F32": torch.float32, "BF16": torch.bfloat16, "I8": torch.int8}  # as safetensors calls them
LARGEST = 127  # of int8, either way


def quantise(tokens: Mapping[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Tokens (B, N, D) by name, in the precision in which they are kept; of int8 with a scale for each token beside
    them: ``NAME.scale`` (B, N, 1), float32."""
    if precision != "int8":
        return {name: each.to(DTYPES[precision]) for name, each in tokens.items()}
    scales = {f"{name}.scale": each.abs().amax(-1, keepdim=True) / LARGEST for name, each in tokens.items()}
    whole = {name: (each / scales[f"{name}.scale"].clamp(min=1e-30)).round() for name, each in tokens.items()}
    return {name: each.to(torch.int8) for name, each in whole.items()} | scales


def dequantise(kept: Mapping[str, Tensor], name: str) -> Tensor:
    """float32 tokens (B, N, D) from what :func:`quantise` made of them."""
    scale = kept.get(f"{name}.scale")
    return kept[name].float() if scale is None else kept[name] * scale


def record(tensors: Mapping[str, Tensor]) -> bytes:
    """The record of one view: its tensors in safetensors' layout."""
    return safetensors.torch.save(dict(tensors))


class ByteRange(NamedTuple):
    """Where a tensor lies in a record."""

    kind: str  # a key of KINDS
    shape: list[int]
    begin: int
    end: int


def layout(record: bytes) -> dict[str, ByteRange]:
    """Where the tensors of a record lie in it; ValueError, or what else nonsense makes Python raise, if it is none."""
    start = 8 + int.from_bytes(record[:8], "little")
    places = {
        name: ByteRange(entry["dtype"], entry["shape"], *(start + int(place) for place in entry["data_offsets"]))
        for name, entry in json.loads(record[8:start]).items()
    }
    for name, (kind, shape, begin, end) in places.items():
        if not start <= begin <= end <= len(record) or end - begin != KINDS[kind].itemsize * math.prod(shape):
            raise ValueError(f"{name} does not lie in the record")
    return places


def check(data: bytes) -> None:
    """BadSample where a record is none, or holds what is not a number."""
    try:
        places = layout(data)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise BadSample(f"not a readable record of taps: {type(error).__name__} {error}") from None
    rows = torch.frombuffer(bytearray(data), dtype=torch.uint8)[None]
    if not all(tensor_of(rows, place).isfinite().all() for place in places.values()):
        raise BadSample("holds tokens that are not finite")


def tensor_of(records: Tensor, place: ByteRange) -> Tensor:
    """A tensor of a batch of records, uint8 (B, bytes): (B, *shape)."""
    return records[:, place.begin : place.end].contiguous().view(KINDS[place.kind]).view(-1, *place.shape)


class CachedSet:
    """One dataset of a cache, its samples numbered as in the shards that it was made from.

    ``made`` is what its index says of how it came to be; samples of which there is no record are in ``failures``.

    Raises:
        UserError: no such directory, it holds no taps, or its index contradicts itself.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.shards = path, Shards.open(path)
        if self.shards.modality != "taps":
            raise UserError(f"'{path}' holds {self.shards.modality}s, not taps of a trunk; make those (tools/cache.py)")
        try:
            self.made = self.shards.made
            self.modality, self.views = self.made["modality"], self.made["views"]
            self.keys, self.sizes = self.made["keys"], self.made["sizes"]
            self.failures = {failure.source: failure.reason for failure in self.shards.failures}
            self.rows = self._numbered()
            self.labels = {name: labels[self.rows[:, 0]] for name, labels in self.shards.labels.items()}
            self.layout = {name: ByteRange(*place) for name, place in self.made["layout"].items()}
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise UserError(f"'{path}' is no cache that can be used: {type(error).__name__} {error}") from None

    def _numbered(self) -> np.ndarray:
        """The number of the record of each sample and view; -1 where there is none."""
        rows = np.full((len(self.keys), self.views), -1)
        for row, key in enumerate(self.shards.keys):
            number, view = key.split("-v")
            rows[int(number), int(view)] = row
        return rows

    def __len__(self) -> int:
        return len(self.keys)

    def record(self, index: int, epoch: int) -> Tensor:
        """The record of a sample in an epoch, uint8 (bytes,); BadSample where there is none, or it has changed."""
        row = int(self.rows[index, epoch % self.views])
        if row < 0:
            raise BadSample(self.failures.get(self.keys[index], "there is no record of it"))
        return torch.frombuffer(bytearray(self.shards.read(row).media), dtype=torch.uint8)

    def tensors(self, records: Tensor) -> dict[str, Tensor]:
        """All tensors of a batch of records, as they are kept."""
        return {name: tensor_of(records, place) for name, place in self.layout.items()}


def in_cache(data: schema.Data, cache: str) -> schema.Data:
    """The training sets of a recipe as they are in a cache."""
    return replace(data, train={name: replace(each, shards=f"{cache}/{name}") for name, each in data.train.items()})


def cached_sets(data: schema.Data, cache: str) -> dict[str, CachedSet]:
    """The datasets of a recipe as a cache has them; UserError where it lacks one or a label."""
    sets = {name: CachedSet(each.shards) for name, each in in_cache(data, cache).train.items()}
    for name, dataset in data.train.items():
        check_heads(sets[name].shards, dataset.heads)
    return sets


def cached_loader(
    data: schema.Data,
    sets: Mapping[str, CachedSet],
    seed: int,
    steps: range,
    rank: int,
    world: int,
    joined: Joined = list,
) -> Iterator[Batch]:
    """The batches of :func:`scaleup.data.loader.train_loader`, sample for sample, with records for pixels.

    Epoch e reads view e mod V.
    """
    dataset = TrainSteps(data, sets, partial(_record, sets), seed, rank, world)
    sizes = {max(place.end for place in each.layout.values()) for each in sets.values()}
    return train_steps(dataset, sizes, data.workers, steps, joined)


def _record(sets: Mapping[str, CachedSet], name: str, index: int, epoch: int) -> Tensor:
    return sets[name].record(index, epoch)

"""Token caches in shards: for each view of a sample, a record with z0 and with h at every depth, in safetensors'
layout.

All records of a dataset have the same size and layout. So a batch of records is one array of bytes, and each tensor of
the batch is a slice of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.data.decode import BadSample
from scaleup.data.index import explain_damage, list_sha256
from scaleup.data.loader import Joined, TrainSteps, check_heads, train_steps
from scaleup.data.shards import Shards
from scaleup.data.upload import CPU, Uploaded

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}  # precisions of stored tokens
KINDS = {"F32": torch.float32, "BF16": torch.bfloat16, "I8": torch.int8}  # safetensors' names
LARGEST = 127  # largest absolute value of int8


def quantise(tokens: Mapping[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Tokens (B, N, D) in the precision in which they are stored. With int8, each token has a scale: ``NAME.scale``
    (B, N, 1), float32."""
    if precision != "int8":
        return {name: each.to(DTYPES[precision]) for name, each in tokens.items()}
    scales = {f"{name}.scale": each.abs().amax(-1, keepdim=True) / LARGEST for name, each in tokens.items()}
    whole = {name: (each / scales[f"{name}.scale"].clamp(min=1e-30)).round() for name, each in tokens.items()}
    return {name: each.to(torch.int8) for name, each in whole.items()} | scales


def dequantise(kept: Mapping[str, Tensor], name: str) -> Tensor:
    """float32 tokens (B, N, D) from the result of :func:`quantise`."""
    scale = kept.get(f"{name}.scale")
    return kept[name].float().contiguous() if scale is None else kept[name] * scale


def record(tensors: Mapping[str, Tensor]) -> bytes:
    """The record of one view: its tensors in safetensors' layout."""
    return safetensors.torch.save(dict(tensors))


class ByteRange(NamedTuple):
    """The position of a tensor in a record."""

    kind: str  # a key of KINDS
    shape: list[int]
    begin: int
    end: int


def layout(record: bytes) -> dict[str, ByteRange]:
    """The positions of the tensors in a record; an error of ``scaleup.data.index.DAMAGE`` if it is not a record."""
    start = 8 + int.from_bytes(record[:8], "little")
    places = {
        name: ByteRange(entry["dtype"], entry["shape"], *(start + int(place) for place in entry["data_offsets"]))
        for name, entry in json.loads(record[8:start]).items()
    }
    for name, (kind, shape, begin, end) in places.items():
        if not start <= begin <= end <= len(record) or end - begin != KINDS[kind].itemsize * math.prod(shape):
            raise ValueError(f"{name} is not inside the record")
    return places


def check(data: bytes) -> None:
    """BadSample if this is not a record, or has values that are not finite."""
    try:
        places = layout(data)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise BadSample(f"not a readable record of taps: {explain_damage(error)}") from None
    rows = torch.frombuffer(bytearray(data), dtype=torch.uint8)[None]
    if not all(tensor_of(rows, place).isfinite().all() for place in places.values()):
        raise BadSample("has tokens that are not finite")


def tensor_of(records: Tensor, place: ByteRange) -> Tensor:
    """A tensor of a batch of records, uint8 (B, bytes): (B, *shape), a view of the records where its numbers lie at
    multiples of their size."""
    kind, part = KINDS[place.kind], records[:, place.begin : place.end]
    if records.stride(0) % kind.itemsize or part.storage_offset() % kind.itemsize:
        part = part.contiguous()
    return part.view(kind).view(-1, *place.shape)


class CachedKeys(Sequence[str]):
    """The keys of the samples of a cache: those of their records, and of samples without one."""

    def __init__(self, cached: CachedSet) -> None:
        self.cached = cached

    def __len__(self) -> int:
        return len(self.cached)

    def __getitem__(self, number: Any) -> Any:
        shards, row = self.cached.shards, int(self.cached.rows(range(len(self))[number]))
        if row < 0:
            return shards.failures[int(np.searchsorted(self.cached.failed, number))].source
        return shards.keys[row].rpartition("-v")[0]


class CachedLabels:
    """A label of the samples of a cache, of which those that are asked for are read: an array (n,). One without a
    record has that of the last record."""

    def __init__(self, cached: CachedSet, name: str) -> None:
        self.cached, self.labels = cached, cached.shards.labels[name]
        self.dtype = self.labels.dtype

    def __len__(self) -> int:
        return len(self.cached)

    def __getitem__(self, numbers: Any) -> np.ndarray:
        if isinstance(numbers, slice):
            numbers = np.arange(*numbers.indices(len(self)))
        return self.labels[self.cached.rows(numbers)]


class CachedSet:
    """One dataset of a cache. Samples have the same numbers as in the shards that it was made from. Time and memory to
    open it depend on the number of tars, not of samples.

    ``made`` says how it was made (from its index). Samples without a record are in ``failures``.

    Raises:
        UserError: the directory does not exist, is not a token cache, or its index contradicts itself.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.shards = path, Shards.open(path)
        self.kinds, self.classes = self.shards.kinds, self.shards.classes
        if self.shards.modality != "taps":
            raise UserError(
                f"'{path}' has {self.shards.modality}s, and is not a token cache; make one (tools/cache.py)"
            )
        try:
            self.made = self.shards.made
            self.modality, self.views = self.made["modality"], self.made["views"]
            self.sizes, self.failures = self.made["sizes"], self.shards.failures
            self.keys: Sequence[str] = self.made.get("keys") or CachedKeys(self)
            self.failed = np.array(self._without_record(), dtype=np.int64)  # in rising order, as their failures
            self.labels = {name: CachedLabels(self, name) for name in self.shards.labels}
            self.layout = {name: ByteRange(*place) for name, place in self.made["layout"].items()}
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise UserError(f"'{path}' is not a usable token cache: {explain_damage(error)}") from None

    @property
    def list_sha256(self) -> str:
        """Of the samples' keys."""
        return self.made.get("list_sha256") or list_sha256(self.keys)

    def _without_record(self) -> list[int]:
        """The numbers of the samples whose failures the index lists."""
        failed = self.made.get("failed")
        if failed is None:  # an older index has the keys of all samples
            numbers = {key: number for number, key in enumerate(self.keys)}
            failed = [numbers[failure.source] for failure in self.failures]
        if (len(self) - len(failed)) * self.views != len(self.shards) or len(failed) != len(self.failures):
            raise ValueError(f"{len(self.shards)} records of {len(self)} samples in {self.views} views")
        return failed

    def __len__(self) -> int:
        return sum(self.sizes)

    def rows(self, numbers: Any) -> np.ndarray:
        """The number of the record of the first view of each sample; -1 if it has none."""
        numbers = np.asarray(numbers, dtype=np.int64)  # also if there is none
        before, through = (np.searchsorted(self.failed, numbers, side=side) for side in ("left", "right"))
        return np.where(through > before, -1, (numbers - before) * self.views)

    def record(self, index: int, epoch: int) -> Tensor:
        """The record of a sample in an epoch, uint8 (bytes,); BadSample if there is none, or if it has changed."""
        if (row := int(self.rows(index))) < 0:
            raise BadSample(self.failures[int(np.searchsorted(self.failed, index))].reason)
        return torch.frombuffer(bytearray(self.shards.read(row + epoch % self.views).media), dtype=torch.uint8)

    def tokens(self, records: Tensor, name: str) -> Tensor:
        """The float32 tokens (B, N, D) of a batch of records, of z0 or of h at a depth (``h9``)."""
        parts = {key: self.layout[key] for key in (name, f"{name}.scale") if key in self.layout}
        return dequantise({key: tensor_of(records, place) for key, place in parts.items()}, name)


def in_cache(data: schema.Data, cache: str) -> schema.Data:
    """The recipe's data settings, with the training sets of a cache."""
    return replace(data, train={name: replace(each, shards=f"{cache}/{name}") for name, each in data.train.items()})


def cached_sets(data: schema.Data, cache: str) -> dict[str, CachedSet]:
    """The datasets of a recipe from a cache; UserError if it lacks a dataset or a label."""
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
    device: torch.device = CPU,
) -> Uploaded:
    """The same batches as :func:`scaleup.data.loader.train_loader`, with records instead of pixels.

    Epoch e reads view e mod V.
    """
    dataset = TrainSteps(data, sets, partial(_record, sets), seed, rank, world)
    sizes = {max(place.end for place in each.layout.values()) for each in sets.values()}
    return train_steps(dataset, sizes, data.workers, steps, joined, device)


def _record(sets: Mapping[str, CachedSet], name: str, index: int, epoch: int) -> Tensor:
    return sets[name].record(index, epoch)

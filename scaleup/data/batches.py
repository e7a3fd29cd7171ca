"""A batch: samples of one dataset put together, in this process or in others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from scaleup.config.schema import Input
from scaleup.data.workers import in_workers, stacked

Failure = tuple[str, str]  # key and reason


@dataclass
class Batch:
    """Samples of one dataset. For evaluation ``pixels`` have an axis of views after the first: (B, V, 3, ...)."""

    dataset: str
    modality: str
    pixels: Tensor  # uint8 (B, 3, T, H, W) of videos, (B, 3, H, W) of images; of a cache (B, bytes of a record)
    labels: dict[str, Tensor]  # head -> int64 (B,)
    keys: list[str]
    failures: list[Failure] = field(default_factory=list)  # samples that could not be read, and why


class Samples(Protocol):
    """What a batch is put together from: shards, or what stands for them."""

    path: Any
    modality: str
    keys: list[str]
    sizes: list[int]
    labels: dict[str, np.ndarray]

    def __len__(self) -> int: ...


def input_bytes(input: Input, modality: str) -> int:
    """Bytes of the pixels of one view of a sample."""
    return 3 * math.prod(input.size) * (input.frames if modality == "video" else 1)


def together(
    name: str, shards: Samples, heads: Mapping[str, str], read: list[tuple[int, Tensor]], failures: list[Failure]
) -> Batch:
    """The batch of samples ``read`` (number, pixels), with what they are to each head."""
    indices = [index for index, _ in read]
    pixels = stacked([pixels for _, pixels in read]) if read else torch.empty(0, dtype=torch.uint8)
    labels = {head: torch.from_numpy(shards.labels[label][indices]) for head, label in heads.items()}
    return Batch(name, shards.modality, pixels, labels, [shards.keys[index] for index in indices], failures)


def batches(dataset: Dataset, numbers: range, workers: int) -> Iterator[Batch]:
    """``dataset[number]`` for all ``numbers`` in order, made by ``workers`` processes (0: by this one)."""
    made = in_workers(dataset, numbers, workers)
    return map(partial(_taken, {}), made) if workers else made


def _taken(mapped: dict[int, Tensor], batch: Batch) -> Batch:
    """``batch`` in memory of its own; the memory in which it came stays mapped here from one batch to the next."""
    mapped[batch.pixels.data_ptr()] = batch.pixels
    return replace(batch, pixels=batch.pixels.clone())

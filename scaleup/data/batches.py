"""Batches of samples of one dataset, and the count of bad samples."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from scaleup.common.distributed import device_type
from scaleup.common.errors import UserError
from scaleup.common.pinned import pinned
from scaleup.config.schema import Input
from scaleup.data.labels import NUMBER, ONE, SEVERAL
from scaleup.data.storage import Failure
from scaleup.data.workers import in_workers, refuse_small_shared, stack_shared


@dataclass
class Batch:
    """Samples of one dataset. For evaluation ``pixels`` have views as their second axis: (B, V, 3, ...)."""

    dataset: str
    modality: str
    pixels: Tensor  # uint8 (B, 3, T, H, W) for videos, (B, 3, H, W) for images, (B, bytes of a record) for a cache
    labels: dict[str, Tensor]  # head -> int64 (B,), float32 (B,) for numbers, multi-hot (B, C) for several classes
    keys: list[str]
    failures: list[Failure] = field(default_factory=list)  # samples that could not be read, by their keys


class Samples(Protocol):
    """The source of a batch's samples: shards, or a token cache."""

    modality: str
    sizes: list[int]
    labels: dict[str, Any]  # arrays (N,), see scaleup.data.labels.as_array, or what is read as one
    kinds: dict[str, str]  # of labels that are not one class
    classes: dict[str, list[str]]  # label -> class names

    @property
    def keys(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...


class BadSamples:
    """The unreadable samples of a set: each is printed once, and too many of them are an error.

    Args:
        owner: name of the set, for messages.
        count: number of samples of the set.
        max_bad: largest share of bad samples; at least one sample must be good.
        hint: the end of the error's sentence.
    """

    def __init__(self, owner: str, count: int, max_bad: float, hint: str = "") -> None:
        self.owner, self.count, self.max_bad, self.hint = owner, count, max_bad, hint
        self.allowed = min(max_bad * count, count - 1)
        self.reasons: dict[str, str] = {}  # by key

    def name(self, failures: Iterable[Failure]) -> None:
        """Print the failures that were not added before."""
        for failure in failures:
            if failure.source not in self.reasons:
                print(f"{self.owner}: sample '{failure.source}' left out: {failure.reason}", file=sys.stderr)

    def add(self, failures: Iterable[Failure]) -> None:
        """Count failures, each key once; UserError if there are too many."""
        self.reasons.update((failure.source, failure.reason) for failure in failures)
        if len(self.reasons) > self.allowed:
            names = ", ".join(f"'{key}' ({reason})" for key, reason in list(self.reasons.items())[:20])
            raise UserError(
                f"{len(self.reasons)} of the {self.count} samples of {self.owner} cannot be read, more than "
                f"data.max_bad {self.max_bad:g} allows: {names}{self.hint}"
            )


def input_bytes(input: Input, modality: str) -> int:
    """Bytes of the pixels of one view of a sample."""
    return 3 * math.prod(input.size) * (input.frames if modality == "video" else 1)


def collate(
    name: str, shards: Samples, heads: Mapping[str, str], read: list[tuple[int, Tensor]], failures: list[Failure]
) -> Batch:
    """The batch of the samples ``read`` (number, pixels), with the labels for each head."""
    indices = [index for index, _ in read]
    pixels = stack_shared([pixels for _, pixels in read]) if read else torch.empty(0, dtype=torch.uint8)
    labels = {
        head: _labels(shards.labels[label][indices], shards.kinds.get(label, ONE), len(shards.classes[label]))
        for head, label in heads.items()
    }
    return Batch(name, shards.modality, pixels, labels, [shards.keys[index] for index in indices], failures)


def _labels(entries: np.ndarray, kind: str, count: int) -> Tensor:
    """Labels of a batch from those of :func:`scaleup.data.labels.as_array`: int64 (B,), float32 (B,) for numbers,
    multi-hot float32 (B, C) for several of C classes."""
    if kind != SEVERAL:
        return torch.from_numpy(entries.astype(np.float32) if kind == NUMBER else entries)
    hot = torch.zeros(len(entries), count)
    for row, numbers in enumerate(entries):
        hot[row, list(numbers)] = 1
    return hot


def batches(dataset: Dataset, numbers: range, workers: int, size: int) -> Iterator[Batch]:
    """``dataset[number]`` for all ``numbers`` in order, made by ``workers`` processes (0: by this process).

    Args:
        size: bytes of a batch; if batches have several shapes, their sum.

    Raises:
        UserError: /dev/shm is too small.
    """
    refuse_small_shared(size, len(numbers), workers)
    results = in_workers(dataset, numbers, workers)
    copy = Tensor.clone if device_type() == "cpu" else pinned
    return map(partial(_own, copy, {}), results) if workers else results


def _own(copy: Callable[[Tensor], Tensor], mapped: dict[int, Tensor], batch: Batch) -> Batch:
    """A ``copy`` of ``batch`` in this process's memory; its shared memory stays mapped for the next batches."""
    mapped[batch.pixels.data_ptr()] = batch.pixels
    return replace(batch, pixels=copy(batch.pixels))

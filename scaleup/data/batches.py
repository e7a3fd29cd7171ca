"""Batches of samples of one dataset, the count of bad samples, and the worker processes that make batches."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.queues import Queue
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from scaleup.common import processes
from scaleup.common.errors import UserError
from scaleup.common.processes import end_with_python, follow
from scaleup.common.text import format_bytes
from scaleup.config.schema import Input
from scaleup.data.labels import NUMBER, ONE, SEVERAL
from scaleup.data.storage import Failure

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
PREFETCH = 2  # finished batches that each worker keeps ready
_rings: dict[tuple[int, ...], deque[Tensor]] = {}  # shape of a sample -> shared buffers of this process


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
    return map(partial(_own, {}), results) if workers else results


def _own(mapped: dict[int, Tensor], batch: Batch) -> Batch:
    """A copy of ``batch`` in this process's memory; its shared memory stays mapped for the next batches."""
    mapped[batch.pixels.data_ptr()] = batch.pixels
    return replace(batch, pixels=batch.pixels.clone())


def in_workers(dataset: Dataset, numbers: range, workers: int) -> Iterator[Any]:
    """``dataset[number]`` for all ``numbers`` in order, made by ``workers`` processes (0: by this process).

    Raises:
        UserError: a process failed, and the cause is known.
    """
    if not workers:
        return iter(DataLoader(dataset, batch_size=None, sampler=numbers))
    options: dict[str, Any] = {"prefetch_factor": PREFETCH, "worker_init_fn": _begin_worker}
    loader = DataLoader(_Explained(dataset), batch_size=None, sampler=numbers, num_workers=workers, **options)
    with end_with_python():
        results = iter(loader)
    return _receive(results)


class _Refusal(NamedTuple):
    """What a worker process sends instead of a result: an error's sentence."""

    sentence: str


class _Explained(Dataset):
    """``dataset``, but errors with a known cause become a sentence. (torch would send the traceback as text.)"""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, number: int) -> Any:
        try:
            return self.dataset[number]
        except Exception as error:
            if (sentence := processes.explain(error)) is None:
                raise
            return _Refusal(sentence)


def _receive(results: Iterator[Any]) -> Iterator[Any]:
    """The results of processes; UserError where one of them refuses, or was ended from outside."""
    try:
        for result in results:
            if isinstance(result, _Refusal):
                raise UserError(result.sentence)
            yield result
    except RuntimeError as error:
        if (sentence := processes.explain(error)) is None:
            raise
        raise UserError(sentence) from error


def _begin_worker(_: int) -> None:
    follow(signal.SIGINT, signal.SIGTERM)
    Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:  # glibc: batches get their own mappings, which are freed; in the heap they would leave holes
        mallopt(M_MMAP_THRESHOLD, 1 << 22)


def _end_worker(error: Exception, _: Any) -> None:
    """Called if a result cannot be sent. Python would drop the result, and the main process would wait for ever."""
    reason = processes.explain(error) or f"{type(error).__name__} {error}"
    print(f"a loader process cannot send a batch: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


def stack_shared(tensors: Sequence[Tensor]) -> Tensor:
    """``torch.stack``; in a process of :func:`in_workers`, into one of a few shared buffers that are used in turns.

    New shared memory would take half as long as decoding, because the kernel allocates it page by page. Since buffers
    are used again, the main process must copy a result before it asks for the next one.
    """
    if get_worker_info() is None:
        return torch.stack(list(tensors))
    shape = tuple(tensors[0].shape)
    ring = _rings.setdefault(shape, deque())
    if ring and len(ring[0]) < len(tensors):
        ring.clear()
    if len(ring) <= PREFETCH:  # buffers of finished batches, and one that is being written or copied
        ring.append(torch.empty((len(tensors), *shape), dtype=tensors[0].dtype).share_memory_())
    else:
        ring.rotate(-1)
    return torch.stack(list(tensors), out=ring[-1][: len(tensors)])


def refuse_small_shared(batch: int, count: int, workers: int) -> None:
    """Check that /dev/shm is large enough for the batches of all worker processes.

    Args:
        batch: bytes of a result; if results have several shapes, their sum.
        count: number of all results.

    Raises:
        UserError: /dev/shm is too small.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed = ranks * batch * min(count, workers * (PREFETCH + 1))
    free = _free_shared() if needed else 0
    if needed > free:
        raise UserError(
            f"the batches of {ranks * workers} loader processes need {format_bytes(needed)} of shared memory "
            f"(/dev/shm), but {format_bytes(free)} are free; {processes.SHARED}"
        )


def _free_shared() -> int:
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize

"""Processes that make batches, and the memory in which batches come over from them."""

from __future__ import annotations

import ctypes
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
PREFETCH = 2  # results of a process that wait for their turn
_rings: dict[tuple[int, ...], deque[Tensor]] = {}  # of this process, by the shape of a sample


def in_workers(dataset: Dataset, numbers: range, workers: int) -> Iterator[Any]:
    """``dataset[number]`` for all ``numbers`` in order, made by ``workers`` processes (0: by this one)."""
    more: dict[str, Any] = {"prefetch_factor": PREFETCH, "worker_init_fn": _begin_worker} if workers else {}
    return iter(DataLoader(dataset, batch_size=None, sampler=numbers, num_workers=workers, **more))


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """``torch.stack``; in a process of :func:`in_workers` into shared memory that is used by turns.

    Fresh shared memory, handed out by the kernel page by page, would cost half of what decoding costs. So the main
    process must copy a result before it asks for the next, and should keep the memory mapped meanwhile.
    """
    if get_worker_info() is None:
        return torch.stack(list(tensors))
    shape, ring = tensors[0].shape, _rings.setdefault(tuple(tensors[0].shape), deque())
    if ring and len(ring[0]) < len(tensors):
        ring.clear()
    if len(ring) <= PREFETCH:  # those that wait, and the one that is taken out or being made
        ring.append(torch.empty((len(tensors), *shape), dtype=tensors[0].dtype).share_memory_())
    else:
        ring.rotate(-1)
    return torch.stack(list(tensors), out=ring[-1][: len(tensors)])


def _begin_worker(_: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a job, the main one's to handle
        signal.signal(number, signal.SIG_IGN)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:  # glibc: batches are mapped and given back, else their holes in the heap are never filled again
        mallopt(M_MMAP_THRESHOLD, 1 << 22)

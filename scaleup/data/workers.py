"""Worker processes that make batches, and the memory that they share with the main process."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from scaleup.common.errors import UserError
from scaleup.common.processes import SHARED, end_with_python, explain, follow
from scaleup.common.text import format_bytes

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
PREFETCH = 2  # finished batches that each worker keeps ready
PATIENCE = 60.0  # seconds in which a process begins
STARTS = 3  # attempts
_rings: dict[tuple[int, ...], deque[Tensor]] = {}  # shape of a sample -> shared buffers of this process


def in_workers(dataset: Dataset, numbers: range, workers: int) -> Iterator[Any]:
    """``dataset[number]`` for all ``numbers`` in order, made by ``workers`` processes (0: by this process).

    Raises:
        UserError: a process failed, and the cause is known.
    """
    if not workers:
        return iter(DataLoader(dataset, batch_size=None, sampler=numbers))
    begun = torch.zeros(workers, dtype=torch.bool).share_memory_()
    options: dict[str, Any] = {"prefetch_factor": PREFETCH, "worker_init_fn": partial(_begin_worker, begun)}
    loader = DataLoader(_Explained(dataset), batch_size=None, sampler=numbers, num_workers=workers, **options)
    return _receive(_start(loader, begun))


def _start(loader: DataLoader, begun: Tensor) -> Iterator[Any]:
    """Start the processes of ``loader``, each of which sets its place in ``begun``.

    A process hangs before its first line of Python if another thread of this process held one of Python's own locks
    when it was forked. This is rare. All are then ended and started again.

    Raises:
        UserError: some do not begin, however often they are started.
    """
    for _ in range(STARTS):
        begun.zero_()
        before = set(active_children())
        with end_with_python(), _explained():
            results = iter(loader)
            started = set(active_children()) - before
            if _have_begun(begun, started):
                return results
            results._shutdown_workers()  # type: ignore[attr-defined]
        for process in started:
            process.kill()
    missing = len(begun) - int(begun.sum())
    raise UserError(
        f"{missing} of {len(begun)} loader processes did not begin within {PATIENCE:.0f} s, {STARTS} times in a row; "
        "use fewer (data.workers, --workers; with 0 this process reads the samples itself)"
    )


def _have_begun(begun: Tensor, started: Iterable[BaseProcess]) -> bool:
    """Wait for all processes to begin. It is also true if one of them has ended: the first result then says why."""
    deadline = time.monotonic() + PATIENCE
    while not begun.all() and all(process.is_alive() for process in started):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


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
            if (sentence := explain(error)) is None:
                raise
            return _Refusal(sentence)


def _receive(results: Iterator[Any]) -> Iterator[Any]:
    """The results of processes; UserError where one of them refuses, or was ended from outside."""
    with _explained():
        for result in results:
            if isinstance(result, _Refusal):
                raise UserError(result.sentence)
            yield result


@contextmanager
def _explained() -> Iterator[None]:
    """Errors of processes become a sentence, where the cause is known."""
    try:
        yield
    except RuntimeError as error:
        if (sentence := explain(error)) is None:
            raise
        raise UserError(sentence) from error


def _begin_worker(begun: Tensor, number: int) -> None:
    begun[number] = True
    follow(signal.SIGINT, signal.SIGTERM)
    Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:  # glibc: batches get their own mappings, which are freed; in the heap they would leave holes
        mallopt(M_MMAP_THRESHOLD, 1 << 22)


def _end_worker(error: Exception, _: Any) -> None:
    """Called if a result cannot be sent. Python would drop the result, and the main process would wait for ever."""
    reason = explain(error) or f"{type(error).__name__} {error}"
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
            f"(/dev/shm), but {format_bytes(free)} are free; {SHARED}"
        )


def _free_shared() -> int:
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize

"""Batches on their way to the device of a rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from scaleup.common.pinned import pinned
from scaleup.data.batches import Batch

CPU = torch.device("cpu")


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``. The host does not wait: it copies to memory that the device reads by itself."""
    return tensor if device.type == "cpu" else pinned(tensor).to(device, non_blocking=True)


@cache
def upload_stream(device: torch.device) -> torch.Stream:
    """The one stream that copies batches to a device. (A stream has memory of its own in torch's allocator.)"""
    return torch.Stream(device)


class Uploaded(Iterator[Batch]):
    """The batches, with their tensors on ``device``.

    Call :meth:`fetch` after the work on a batch was asked for, and before waiting for it: a GPU computes while the host
    receives the next batch, and copies it on a stream of its own.

    Args:
        counted: called with each batch when it is handed out, not when it is fetched.
        labels: whether labels are copied too; else they stay on the host.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        device: torch.device,
        counted: Callable[[Batch], object] = lambda _: None,
        labels: bool = True,
    ) -> None:
        self.batches, self.device, self.counted, self.labels = iter(batches), device, counted, labels
        self.stream = None if device.type == "cpu" else upload_stream(device)
        self.coming: tuple[Batch, torch.Event] | None = None

    def fetch(self) -> None:
        """Receive the next batch, and begin its copy. On a CPU there is nothing to gain."""
        if self.stream is None or self.coming is not None:
            return
        if (batch := next(self.batches, None)) is not None:
            with self.stream:
                self.coming = self._uploaded(batch), self.stream.record_event()

    def __next__(self) -> Batch:
        self.fetch()
        batch, copied = self.coming or (next(self.batches), None)
        self.coming = None
        self.counted(batch)
        if copied is not None:
            _await(batch, copied)
        return batch

    def _uploaded(self, batch: Batch) -> Batch:
        labels = {head: upload(each, self.device) for head, each in batch.labels.items() if self.labels}
        return replace(batch, pixels=upload(batch.pixels, self.device), labels=batch.labels | labels)


def _await(batch: Batch, copied: torch.Event) -> None:
    """Have what the device computes from now on come after the copy of a batch."""
    stream = torch.accelerator.current_stream()
    stream.wait_event(copied)
    for tensor in (batch.pixels, *batch.labels.values()):
        if tensor.device.type != "cpu":
            tensor.record_stream(stream)

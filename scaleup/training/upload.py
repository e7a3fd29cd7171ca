"""Batches on their way to the device of a rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from scaleup.data.batches import Batch


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``. The host does not wait: it copies to memory that the device reads by itself."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def uploaded(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches, with pixels and labels on ``device``.

    A GPU copies a batch, on a stream of its own, while it computes the one before.
    """
    if device.type == "cpu":
        return iter(batches)
    return _ahead(batches, device)


def _ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    stream, waiting = torch.Stream(device), None
    for batch in batches:
        with stream:
            coming = _upload_batch(batch, device), stream.record_event()
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = coming
    if waiting is not None:
        yield _arrived(*waiting)


def _upload_batch(batch: Batch, device: torch.device) -> Batch:
    labels = {head: upload(each, device) for head, each in batch.labels.items()}
    return replace(batch, pixels=upload(batch.pixels, device), labels=labels)


def _arrived(batch: Batch, copied: torch.Event) -> Batch:
    """The batch; what the device computes from now on comes after its copy."""
    stream = torch.accelerator.current_stream()
    stream.wait_event(copied)
    for tensor in (batch.pixels, *batch.labels.values()):
        tensor.record_stream(stream)
    return batch

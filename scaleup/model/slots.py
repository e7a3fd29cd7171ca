"""Two places on a GPU that frozen blocks take in turns: what waits on the host is copied while another computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass, transform_subclass

from scaleup.common.pinned import pinned

Tensors = dict[str, Tensor]


class Slot(NamedTuple):
    """Tensors of one block on the device, and the event after which they may be overwritten."""

    tensors: Tensors
    free: Any


class Slots:
    """Two slots that are filled in turns, on a stream that all models share.

    A slot is filled once the block that was in it has computed. The host waits for neither: it only says which stream
    waits for which event.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.copying = device, copy_stream(device)
        self.computing = torch.accelerator.current_stream(device)
        self.slots: list[Slot] = []  # the one that is filled next is the first

    @contextmanager
    def filled(self, source: Mapping[str, Tensor]) -> Iterator[Tensors]:
        """Tensors of a block on the host -> their copies on the device; at the end of the block they are free."""
        tensors = self._free(source)
        with self.copying:
            for name, tensor in source.items():
                _copy(tensors[name], tensor)
            copied = self.copying.record_event()
        self.computing.wait_event(copied)
        yield tensors
        self.slots.append(Slot(tensors, self.computing.record_event()))

    def _free(self, source: Mapping[str, Tensor]) -> Tensors:
        """A slot for such tensors, whose copy waits until it is free. Blocks of other shapes get new memory."""
        if not self.slots:  # the second is free as early as the first, so its copy does not wait for a block
            self.slots = [self._new(source), self._new(source)]
        slot = self.slots.pop(0)
        if not _alike(slot.tensors, source):
            slot = self._new(source)
        self.copying.wait_event(slot.free)
        return slot.tensors

    def _new(self, source: Mapping[str, Tensor]) -> Slot:
        tensors = {name: _mapped(tensor, self._empty) for name, tensor in source.items()}
        return Slot(tensors, self.computing.record_event())

    def _empty(self, tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=self.device)


@cache
def copy_stream(device: torch.device) -> torch.Stream:
    """The one stream that copies blocks to a device. (A stream has memory of its own in torch's allocator.)"""
    return torch.Stream(device)


def pin(block: nn.Module) -> None:
    """Move what a block holds on the host to memory that a GPU reads by itself; without it the host would wait."""
    for tensor in (*block.parameters(), *block.buffers()):
        if is_traceable_wrapper_subclass(tensor):
            for name in tensor.__tensor_flatten__()[0]:
                setattr(tensor, name, pinned(getattr(tensor, name)))
        elif tensor.device.type == "cpu":
            tensor.data = pinned(tensor.data)


def _mapped(tensor: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
    """``call`` of a tensor; of a quantised one, of each tensor that it is made of."""
    if is_traceable_wrapper_subclass(tensor):
        return transform_subclass(tensor, lambda _, inner: call(inner))
    return call(tensor.detach())


def parts_of(tensor: Any) -> list[Tensor]:
    """The tensor; of a quantised one, the tensors that it is made of."""
    if is_traceable_wrapper_subclass(tensor):
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return [tensor]


def _copy(target: Tensor, source: Tensor) -> None:
    for one, other in zip(parts_of(target), parts_of(source), strict=True):
        one.copy_(other, non_blocking=True)


def _alike(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Whether the tensors have the same names, types and shapes."""
    return {n: (t.dtype, t.shape) for n, t in some.items()} == {n: (t.dtype, t.shape) for n, t in others.items()}

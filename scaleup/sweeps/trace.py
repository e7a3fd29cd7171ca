"""Calls modules with tensors without content, and counts FLOPs and the bytes that exist at each moment."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary


def counter() -> FlopCounterMode:
    """Counts the FLOPs of everything that runs inside. A multiplication and an addition are two FLOPs."""
    return FlopCounterMode(display=False, custom_mapping=ATTENTION)


def forward(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of the scores, and of the sums of values weighted by them. Shapes are (B, heads, N, D)."""
    return _product(query, key) * (query[3] + value[3])


def backward(
    grad: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """FLOPs of the scores, which are computed again, and of the gradients of queries, keys, scores and values."""
    return _product(query, key) * (3 * query[3] + 2 * value[3])


def _product(query: Sequence[int], key: Sequence[int]) -> int:
    """FLOPs of the product of queries and keys, for one channel."""
    return 2 * query[0] * query[1] * query[2] * key[2]


KINDS = (
    "flash_attention",
    "flash_attention_for_cpu",
    "efficient_attention",
    "cudnn_attention",
    "fused_attention_overrideable",
)
ATTENTION = {
    operation: flops
    for kind in KINDS
    for end, flops in (("", forward), ("_backward", backward))
    if (operation := getattr(torch.ops.aten, f"_scaled_dot_product_{kind}{end}", None))  # releases differ
}


M = TypeVar("M", bound=nn.Module)
BATCHES = (2, 3)  # figures at two batch sizes give those at all others; at 1, some copies would be views


class _FakeTensorMode(FakeTensorMode):
    """Asks only once whether there is a GPU. Torch asks before every operation, which takes a third of the time."""

    @cached_property
    def avoid_device_init(self) -> bool:  # type: ignore[override]
        return super().avoid_device_init


EMPTY = _FakeTensorMode(allow_non_fake_inputs=True)


def empty(module: M) -> M:
    """A copy of a module whose tensors have no content.

    For torch they are on the CPU, so that attention is fused and autocast works.
    """
    copied = copy.deepcopy(module)
    with EMPTY:
        return copied.to_empty(device="cpu")


def empty_tensor(*shape: int) -> Tensor:
    with EMPTY:
        return torch.empty(shape)


class Trace(TorchDispatchMode):
    """Counts FLOPs as :func:`scaleup.sweeps.trace.counter` does, operation by operation.

    ``alive`` has, after each allocation, the bytes of all tensors that were made inside and are not freed: tensors that
    autograd keeps for the backward pass, gradients, and outputs of operations. ``gradients`` has how many of these
    bytes are gradients of parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.held, self.of_gradients = 0, 0, 0
        self.alive: list[int] = [0]
        self.gradients: list[int] = [0]
        self._storages: Any = WeakIdKeyDictionary()
        self._formulas = counter().flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._storages.setdefault(tensor.untyped_storage())
        out = func(*args, **kwargs)
        if (count := self._formulas.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        for tensor in _tensors(out):
            self._hold(tensor.untyped_storage())
        return out

    def _hold(self, storage: Any) -> None:
        if storage not in self._storages:
            self._storages[storage] = None
            self.held += storage.nbytes()
            weakref.finalize(storage, self._free, storage.nbytes())
            self.alive.append(self.held)
            self.gradients.append(self.of_gradients)

    def _free(self, size: int) -> None:
        self.held -= size

    def watch(self, parameter: Tensor) -> None:
        """From when the gradient of a parameter exists, count it among ``gradients``."""

        def arrived(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self.of_gradients += parameter.grad.nbytes

        parameter.register_post_accumulate_grad_hook(arrived)


def _tensors(nested: Any) -> list[Tensor]:
    """The tensors without content. The few that have content, such as the places of tubes, are small."""
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, FakeTensor)]


class Pass(NamedTuple):
    """The cost of a pass for a batch: FLOPs of its forward and of the whole pass; bytes at each moment (``alive``), how
    many of these are gradients, and bytes at the end (``kept``)."""

    forward_flops: int
    flops: int
    alive: np.ndarray
    gradients: np.ndarray
    kept: int


def affine(run: Callable[[int], Pass]) -> Callable[[int], Pass]:
    """The result of ``run(batch)`` for any batch.

    It is called for the first two batches that are asked for. From these follow all others: a constant plus a figure
    for each sample.
    """
    known: dict[int, Pass] = {}

    def at(batch: int) -> Pass:
        if batch in known or (len(known) < 2 and batch >= BATCHES[0]):
            known[batch] = known.get(batch) or run(batch)
            return known[batch]
        for other in BATCHES:
            if len(known) < 2 and other not in known:
                known[other] = run(other)
        (low, first), (high, second) = known.items()
        assert len(first.alive) == len(second.alive), "the operations of a pass depend on the batch size"
        pairs: Any = zip(first, second, strict=True)
        return Pass(*(one + (batch - low) * (two - one) // (high - low) for one, two in pairs))

    return at

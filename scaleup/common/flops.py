"""torch's counter of FLOPs, with formulas of our own for fused attention: torch has others in each release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def counter() -> FlopCounterMode:
    """Counts what runs inside; a multiplication and an addition are two."""
    return FlopCounterMode(display=False, custom_mapping=ATTENTION)


def forward(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Scores, and values weighted by them. Shapes are (B, heads, N, D)."""
    return _product(query, key) * (query[3] + value[3])


def backward(
    grad: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """Scores once more; gradients of queries, keys, scores and values."""
    return _product(query, key) * (3 * query[3] + 2 * value[3])


def _product(query: Sequence[int], key: Sequence[int]) -> int:
    """FLOPs of queries by keys for each channel."""
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
    if (operation := getattr(torch.ops.aten, f"_scaled_dot_product_{kind}{end}", None))  # some lack some
}

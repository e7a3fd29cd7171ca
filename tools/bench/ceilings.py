"""The most that a device gives: bytes that it copies, and the rate of matrix products of a model's own shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch

from bench.measure import GIGA, Figures
from scaleup.common.distributed import own_device
from scaleup.common.timing import Span, now

COPIED = 2**30  # bytes


def copies(repeats: int, size: int = COPIED) -> Figures:
    """GB/s that the device reads and writes when it copies ``size`` bytes."""
    source = torch.randint(256, (size,), dtype=torch.uint8, device=own_device())
    target = torch.empty_like(source)
    return {"what": "copy", "gigabytes_per_second": 2 * size / GIGA / spanned(partial(target.copy_, source), repeats)}


def products(name: str, rows: int, width: int, repeats: int) -> list[Figures]:
    """TFLOP/s of the four products of a block (queries, keys and values; projection; both layers of the MLP), one after
    another, in bfloat16 and in TF32.

    Args:
        rows: tokens of a batch.
        width: channels of a token.
    """
    flops = 24 * rows * width**2
    found = []
    for precision, dtype in (("bfloat16", torch.bfloat16), ("TF32", torch.float32)):
        with tf32():
            seconds = spanned(_block(rows, width, dtype), repeats)
        found.append({"what": "products", "model": name, "precision": precision, "rows": rows, "width": width})
        found[-1]["teraflops"] = flops / GIGA / 1000 / seconds
    return found


def _block(rows: int, width: int, dtype: torch.dtype) -> Callable[[], Any]:
    draw = partial(torch.randn, device=own_device(), dtype=dtype)
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    pairs = [(draw(rows, inside), draw(inside, outside)) for inside, outside in shapes]
    return lambda: [torch.mm(*pair) for pair in pairs]


@contextmanager
def tf32() -> Iterator[None]:
    """Inside, float32 products of a GPU are computed in TF32."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, True
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def spanned(work: Callable[[], Any], repeats: int) -> float:
    """Median seconds of ``work`` on the device, by its own clock; a first call does not count."""
    device, spans = own_device(), []
    for _ in range(repeats + 1):
        with Span(device) as span:
            work()
        spans.append(span)
    now(device)
    return median(span.seconds for span in spans[1:])

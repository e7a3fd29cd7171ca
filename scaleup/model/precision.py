"""Frozen blocks in another precision, the fastest one found by measuring, and how far their output moves."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from statistics import median

import torch
from torch import Tensor, nn

from scaleup.common.clock import now
from scaleup.errors import UserError

COMPUTED_IN = {  # precision of the weights -> of what is computed with them
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.bfloat16,  # weights only, a scale for each row of a matrix
}
MEASURED = ("float32", "bfloat16", "float16")  # what ``auto`` chooses from; int8 saves memory, not time


def cast(block: nn.Module, precision: str) -> nn.Module:
    """A copy of a block in a precision (a key of COMPUTED_IN); the block itself where it is float32 already."""
    if precision == "float32":
        return block
    made = copy.deepcopy(block).to(COMPUTED_IN[precision])
    if precision == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # seconds to import

        quantize_(made, Int8WeightOnlyConfig())
    return made.requires_grad_(False)


@torch.inference_mode()
def fastest(block: nn.Module, h: Tensor, context: Mapping[str, Tensor], turns: int = 3) -> tuple[str, dict[str, float]]:
    """The precision in which a block is computed fastest on this device, and the seconds that each took.

    Args:
        h: float32 tokens (B, N, D) that enter the block.
        context: what the block is told beside them.
    """
    made = {precision: cast(block, precision) for precision in MEASURED}
    seconds: dict[str, list[float]] = {precision: [] for precision in MEASURED}
    for _ in range(turns + 1):  # in turns, so that what else the machine does falls on all
        for precision in MEASURED:
            tokens = h.to(COMPUTED_IN[precision])
            began = now(h.device)
            made[precision](tokens, **context)
            seconds[precision].append(now(h.device) - began)
    settled = {precision: median(times[1:]) for precision, times in seconds.items()}
    return min(settled, key=settled.__getitem__), settled


def drift(wanted: Tensor, found: Tensor) -> float:
    """RMS of the difference over RMS of what it should be.

    Raises:
        UserError: the tokens are not finite.
    """
    if not found.isfinite().all():
        raise UserError("the trunk overflows in this precision; choose trunk.precision float32 or bfloat16")
    return ((found.double() - wanted).square().mean() / wanted.double().square().mean()).sqrt().item()

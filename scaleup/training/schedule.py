"""The learning rate as a pure function of the step: linear warm-up, then a cosine to 0."""

from __future__ import annotations

import math


def lr_factor(step: int, steps: int, warmup: int) -> float:
    """Share of the base learning rate at ``step`` = 0, ..., ``steps - 1``.

    Rises linearly and reaches 1 at the last of ``warmup`` steps; falls along half a cosine that would reach 0 at
    ``steps``. No step has a rate of 0.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

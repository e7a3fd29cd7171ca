"""How long a run takes at a rate, and the rate of this machine."""

from __future__ import annotations

from typing import Any

import torch

from scaleup.common.clock import now
from scaleup.sweeps.sketch import Sketch, device

SIDE, TURNS = 1536, 5  # of the matrices that are multiplied


@torch.no_grad()
def measured() -> float:
    """GFLOP that the device does in a second, by its fastest product of two float32 matrices in a few."""
    left, right = (torch.randn(SIDE, SIDE, device=device()) for _ in range(2))
    fastest = float("inf")
    for _ in range(TURNS):
        began = now(device())
        left @ right
        fastest = min(fastest, now(device()) - began)
    return 2 * SIDE**3 / fastest / 1e9


def mean_of_sample(sketch: Sketch, flops: dict[str, int]) -> float:
    """Of a training sample, from those of each modality: the mean over the datasets by their weights."""
    weights = {name: sketch.recipe.data.train[name].weight for name in sketch.datasets}
    found = sum(weights[name] * flops[shards.modality] for name, shards in sketch.datasets.items())
    return found / sum(weights.values())


def seconds(sketch: Sketch, flops: dict[str, dict[str, int]], rate: float) -> dict[str, Any]:
    """``{"step", "epoch", "run", "cached_epoch"}`` at ``rate`` operations a second on all devices together, if reading
    the data takes no time. An epoch is every sample of every dataset once; from a cache only arms are computed.
    """
    data, recipe = sketch.datasets, sketch.recipe
    step = recipe.data.batch * mean_of_sample(sketch, {kind: each["step"] for kind, each in flops.items()}) / rate
    epoch = sum(len(shards) * flops[shards.modality]["step"] for shards in data.values())
    trunk = sum(len(shards) * flops[shards.modality]["trunk"] for shards in data.values())
    frozen = all(model.trunk is not None for model in sketch.models.values())
    return {
        "step": step,
        "epoch": epoch / rate,
        "cached_epoch": (epoch - trunk) / rate if frozen else None,
        "run": recipe.train.steps * step,
    }

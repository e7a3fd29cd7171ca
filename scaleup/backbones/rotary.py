"""Rotary angles anywhere between the patches: where a tube's centre lies, timm's own formulas say how far to turn."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import RotaryEmbeddingCat, RotaryEmbeddingDinoV3, RotaryEmbeddingMixed
from torch import Tensor

KINDS = (RotaryEmbeddingCat, RotaryEmbeddingDinoV3, RotaryEmbeddingMixed)


def turn(rope: Any, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sines and cosines of the rotary angles at places between the patches.

    Args:
        rope: a rotary embedding of timm (one of KINDS).
        patches: (N, 2) in patches along h, w; the first patch's centre lies at 0.
        grid: (gh, gw) patches of an image.

    Returns:
        (N, 2d) for heads of width d; (depth, heads, N, 2d) where each block has frequencies of its own.
    """
    places = _coordinates(rope, patches, grid)  # (N, 2)
    if isinstance(rope, RotaryEmbeddingMixed):
        first, second = rope.freqs.float().unsqueeze(-2)  # (depth, heads, 1, d/2) each
        angles = places[:, :1] * first + places[:, 1:] * second  # (depth, heads, N, d/2)
        return _layout(angles, half=False).to(rope.freqs)
    dino = isinstance(rope, RotaryEmbeddingDinoV3)
    frequencies = 2 * math.pi / rope.periods if dino else rope.bands  # (d/4,)
    return _layout((places[..., None] * frequencies).flatten(1), rope.rotate_half)


def _coordinates(rope: Any, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Places in the units that the frequencies are made for: (N, 2), in the order of the frequencies' axes."""
    extent = torch.tensor(grid).to(patches)
    if isinstance(rope, RotaryEmbeddingDinoV3):
        ends = {"separate": extent, "min": extent.min(), "max": extent.max()}[rope.normalize_coords]
        places = 2 * (patches + 0.5 + rope.grid_offset) / ends - 1
    elif isinstance(rope, RotaryEmbeddingCat):
        places = patches + rope.grid_offset
        if rope.ref_feat_shape is not None:
            places = places / extent * torch.tensor(rope.ref_feat_shape).to(patches)
    else:
        places = patches
    return places.flip(-1) if rope.grid_indexing == "xy" else places


def _layout(angles: Tensor, half: bool) -> Tensor:
    """Sines then cosines (..., 2d) of angles (..., d/2), each twice: halves repeated, or neighbours."""
    turned = angles.sin(), angles.cos()
    return torch.cat([torch.cat([x, x], -1) if half else x.repeat_interleave(2, -1) for x in turned], -1)

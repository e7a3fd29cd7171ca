"""What a frozen image ViT is: one protocol, whichever library it comes from.

A backbone is three modules and a few numbers. ``stem`` turns images (B, 3, H, W) into tokens (B, P+N, D) with the
prefix tokens first and the model's own positions added; ``blocks`` are the transformer blocks; ``tail`` is the final
norm and pool, (B, P+N, D) -> (B, D). Parameter names are the library's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

ALIASES = {
    "vit_ti": "timm:vit_tiny_patch16_224",
    "vit_s": "timm:vit_small_patch16_224",
    "vit_b": "timm:vit_base_patch16_224",
    "vit_l": "timm:vit_large_patch16_224",
    "vit_h": "timm:vit_huge_patch14_224",
    "vit_g": "timm:vit_giant_patch14_224",
    "vit_gigantic": "timm:vit_gigantic_patch14_224",
}


@dataclass
class Backbone:
    """An image ViT taken apart; the modules share their tensors with ``source``, the library's own model."""

    name: str
    stem: Any  # a module with position_grid() -> (gh, gw, D) and norm_pre beside its forward
    blocks: list[nn.Module]
    tail: Any  # a module with embed_dim
    source: Any
    embed_dim: int
    num_heads: int
    num_prefix_tokens: int
    patch_size: tuple[int, int]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    license: str
    kwargs: dict[str, Any] = field(default_factory=dict)  # changes to the library's architecture
    weights: str | None = None  # where the weights came from; None: drawn at random
    positions: dict[str, Any] | None = None  # kind and amplitude in one of our own models; None: all are in the stem
    left: dict[str, Tensor] = field(default_factory=dict)  # tensors of the file that have no place here (classifier)

    @property
    def depth(self) -> int:
        return len(self.blocks)


def resolve(name: str) -> str:
    """The full name behind an alias: ``vit_h`` -> ``timm:vit_huge_patch14_224``."""
    return ALIASES.get(name, name)

"""What a frozen image ViT is: one protocol, whichever library it comes from.

A backbone is three parts and a few numbers. ``stem`` turns images (B, 3, H, W) into tokens (B, P+N, D) with the
prefix tokens first and the model's own positions added; ``blocks`` are the transformer blocks; ``tail`` is the final
norm and pool, (B, P+N, D) -> (B, D). Parameter names are the library's own.

Beside its forward, a stem has ``norm_pre(tokens)``, due when all tokens are together, ``position_grid()`` -> (gh, gw,
D), and rotary sines and cosines: ``rope_grid()`` -> (..., gh * gw, 2d), None where the model does not rotate, and
``rope_at(patches (N, 2))`` -> (..., N, 2d). A block is called with the tokens, and by keyword with ``attn_mask`` and
``rope`` where there are any. A tail has ``embed_dim``, the width of the pooled features.
"""

from __future__ import annotations

from collections.abc import Callable
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
    stem: Any
    blocks: list[nn.Module]
    tail: Any
    source: nn.Module
    features: Callable[[Tensor], Tensor]  # the library's own way from images (B, 3, H, W) to pooled features (B, D)
    embed_dim: int
    num_heads: int
    num_prefix_tokens: int
    patch_size: tuple[int, int]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    license: str
    absolute: bool  # positions are added to the tokens
    rotary: bool  # positions rotate queries and keys
    attn_mask: bool = True  # blocks take a bias of the attention
    block_prefix: str = "blocks."  # before a block's number in the names of the library's tensors
    kwargs: dict[str, Any] = field(default_factory=dict)  # changes to the library's architecture
    weights: str | None = None  # where the weights came from; None: drawn at random
    positions: dict[str, Any] | None = None  # kind and amplitude in one of our own models; None: all are in the stem
    left: dict[str, Tensor] = field(default_factory=dict)  # tensors of the file that have no place here (classifier)

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors of the parts under the library's own names."""
        blocks = {
            f"{self.block_prefix}{index}.{name}": tensor
            for index, block in enumerate(self.blocks)
            for name, tensor in block.state_dict().items()
        }
        return {**self.stem.state_dict(), **blocks, **self.tail.state_dict()}


def resolve(name: str) -> str:
    """The full name behind an alias: ``vit_h`` -> ``timm:vit_huge_patch14_224``."""
    return ALIASES.get(name, name)

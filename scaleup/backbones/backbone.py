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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scaleup.backbones.placement import BlockFile
from scaleup.common import tensors
from scaleup.errors import UserError

ALIASES = {
    "vit_ti": "timm:vit_tiny_patch16_224",
    "vit_s": "timm:vit_small_patch16_224",
    "vit_b": "timm:vit_base_patch16_224",
    "vit_l": "timm:vit_large_patch16_224",
    "vit_h": "timm:vit_huge_patch14_224",
    "vit_g": "timm:vit_giant_patch14_224",
    "vit_gigantic": "timm:vit_gigantic_patch14_224",
    "clip_b": "open_clip:ViT-B-16/laion2b_s34b_b88k",
    "clip_l": "open_clip:ViT-L-14/laion2b_s32b_b82k",
    "clip_h": "open_clip:ViT-H-14/laion2b_s32b_b79k",
    "clip_bigg": "open_clip:ViT-bigG-14/laion2b_s39b_b160k",
    "coca_l": "open_clip:coca_ViT-L-14/laion2b_s13b_b90k",
    "dfn_h": "open_clip:ViT-H-14-quickgelu/dfn5b",
    "siglip2_so400m": "timm:vit_so400m_patch14_siglip_224.v2_webli",
    "dinov2_b": "timm:vit_base_patch14_dinov2.lvd142m",
    "dinov2_l": "timm:vit_large_patch14_dinov2.lvd142m",
    "dinov2_g": "timm:vit_giant_patch14_dinov2.lvd142m",
    "dinov3_b": "timm:vit_base_patch16_dinov3.lvd1689m",
    "dinov3_l": "timm:vit_large_patch16_dinov3.lvd1689m",
    "dinov3_h": "timm:vit_huge_plus_patch16_dinov3.lvd1689m",
    "dinov3_7b": "timm:vit_7b_patch16_dinov3.lvd1689m",
    "eva02_l": "timm:eva02_large_patch14_clip_224.merged2b",
    "pe_l": "timm:vit_pe_core_large_patch14_336.fb",
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
    origin: dict[str, str] = field(default_factory=dict)  # tensors that are as in ``file`` -> their names there
    file: Path | None = None  # the safetensors file of the weights on this machine, where there is one
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

    def block_file(self) -> BlockFile | None:
        """The file that blocks can be read from, where there is one."""
        start = len(self.block_prefix)
        names = {name[start:]: there for name, there in self.origin.items() if name.startswith(self.block_prefix)}
        return BlockFile(str(self.file), names) if self.file is not None else None

    def hashes(self) -> dict[str, str]:
        """sha256 of each tensor; those of blocks in a file are read one at a time."""
        own, file = self.state_dict(), self.file
        waiting = {name: self.origin[name] for name, tensor in own.items() if tensor.is_meta}
        found = tensors.hashes({name: tensor for name, tensor in own.items() if name not in waiting})
        if waiting:
            assert file is not None
            found |= tensors.hashes_in(file, waiting, torch.float32)
        return {name: found[name] for name in own}


def resolve(name: str) -> str:
    """The full name behind an alias: ``vit_h`` -> ``timm:vit_huge_patch14_224``."""
    return ALIASES.get(name, name)


def refuse_size(name: str, size: tuple[int, int], patch: tuple[int, int]) -> None:
    """Raise UserError where patches do not divide an input of ``size`` (h, w) pixels; with the nearest that they do."""
    if size[0] % patch[0] or size[1] % patch[1]:
        heights, widths = (_multiples(side, each) for side, each in zip(size, patch, strict=True))
        raise UserError(
            f"{name!r} has patches of {patch[0]}x{patch[1]}, which do not divide an input of {size[0]}x{size[1]}; "
            f"nearest are {heights} high and {widths} wide"
        )


def _multiples(side: int, of: int) -> str:
    below = max(1, side // of) * of
    return f"{side}" if side % of == 0 else f"{below} or {below + of}"

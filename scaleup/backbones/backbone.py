"""The protocol of an image ViT (backbone), the same for all libraries.

A backbone is three parts and a few numbers. ``stem`` turns images (B, 3, H, W) into tokens (B, P+N, D) with the
prefix tokens first and the model's own positions added; ``blocks`` are the transformer blocks; ``tail`` is the final
norm and pool, (B, P+N, D) -> (B, D). Parameter names are the library's own.

Besides forward, a stem has ``norm_pre(tokens)``, which is called when all tokens are together; ``position_grid()`` ->
(gh, gw, D); and for rotary positions ``rope_grid()`` -> (..., gh * gw, 2d), or None without them, and ``rope_at(patches
(N, 2))`` -> (..., N, 2d), sines and cosines. A block is called with the tokens, and with the keywords ``attn_mask`` and
``rope`` if there are any. A tail has ``embed_dim``, the width of the pooled features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.layers import PatchEmbed
from timm.models import vision_transformer as vit_blocks
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from scaleup.checkpoint.hub import HUB, LOCAL
from scaleup.common import tensors
from scaleup.common.errors import UserError
from scaleup.config.schema import Positions

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


Kwargs = dict[str, Any]  # arguments for the library's model


class BlockFile(NamedTuple):
    """A safetensors file with blocks, and the name in the file of each tensor such as ``3.attn.qkv.weight``."""

    path: str
    names: Mapping[str, str]

    def read(self, index: int, name: str) -> Tensor:
        """A tensor of block number ``index``, in the file's type."""
        return tensors.read_tensor(self.path, self.names[f"{index}.{name}"])

    def fill(self, index: int, block: nn.Module) -> None:
        """Load the tensors of block number ``index`` that are on the meta device, in float32."""
        missing = [name for name, tensor in block.state_dict().items() if tensor.is_meta]
        read = {name: self.read(index, name).float() for name in missing}
        block.load_state_dict(read, strict=False, assign=True)


@dataclass
class Backbone:
    """An image ViT in parts, which share their tensors with ``source``, the library's model."""

    name: str
    stem: Any
    blocks: list[nn.Module]
    tail: Any
    source: nn.Module
    features: Callable[[Tensor], Tensor]  # the library's forward: images (B, 3, H, W) to pooled features (B, D)
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
    attn_mask: bool = True  # blocks accept a bias of the attention
    block_prefix: str = "blocks."  # before a block's number in the names of the library's tensors
    kwargs: Kwargs = field(default_factory=dict)
    weights: str | None = None  # where the weights came from; None: drawn at random
    origin: dict[str, str] = field(default_factory=dict)  # tensors unchanged from ``file`` -> names there
    file: Path | None = None  # the safetensors file of the weights on this machine, if any
    positions: Positions | None = None  # in one of our own models; None: all are in the stem
    left: dict[str, Tensor] = field(default_factory=dict)  # tensors of the file that are not used (classifier)

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors of the parts under the library's names."""
        blocks = {
            f"{self.block_prefix}{index}.{name}": tensor
            for index, block in enumerate(self.blocks)
            for name, tensor in block.state_dict().items()
        }
        return {**self.stem.state_dict(), **blocks, **self.tail.state_dict()}

    def block_file(self) -> BlockFile | None:
        """The file that blocks can be read from, or None."""
        start = len(self.block_prefix)
        names = {name[start:]: there for name, there in self.origin.items() if name.startswith(self.block_prefix)}
        return BlockFile(str(self.file), names) if self.file is not None else None

    def hashes(self) -> dict[str, str]:
        """sha256 of each tensor; those of blocks in a file are read one at a time."""
        own = self.state_dict()
        waiting = {name: self.origin[name] for name, tensor in own.items() if tensor.is_meta}
        digests = tensors.hashes({name: tensor for name, tensor in own.items() if name not in waiting})
        if waiting:
            assert self.file is not None
            digests |= tensors.hashes_in(self.file, waiting, torch.float32)
        return {name: digests[name] for name in own}


@dataclass
class Located:
    """A backbone as a name or directory describes it. None stands for the library's default."""

    name: str  # timm:NAME or open_clip:NAME
    kwargs: Kwargs
    weights: str | None = None  # where the weights are; None: there are none
    size: tuple[int, int] | None = None  # (h, w) of the input in pixels
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    license: str | None = None
    positions: Positions | None = None  # of one of our own models


def resolve(name: str) -> str:
    """The full name behind an alias: ``vit_h`` -> ``timm:vit_huge_patch14_224``. Hub ids and directories lose the
    library, which may stand before them."""
    for library in ("timm:", "open_clip:"):
        if name.startswith((library + HUB, library + LOCAL)):
            name = name.removeprefix(library)
    return ALIASES.get(name, name)


def refuse_size(name: str, size: tuple[int, int], patch: tuple[int, int]) -> None:
    """Raise UserError, with the nearest sizes, if patches do not divide an input of ``size`` (h, w) pixels."""
    if size[0] % patch[0] or size[1] % patch[1]:
        heights, widths = (_multiples(side, each) for side, each in zip(size, patch, strict=True))
        raise UserError(
            f"{name!r} has patches of {patch[0]}x{patch[1]}, which do not divide an input of {size[0]}x{size[1]}; "
            f"nearest are {heights} high and {widths} wide"
        )


def _multiples(side: int, of: int) -> str:
    below = max(1, side // of) * of
    return f"{side}" if side % of == 0 else f"{below} or {below + of}"


MASKED = (vit_blocks.Block, vit_blocks.ParallelScalingBlock, vit_blocks.ParallelThingsBlock, EvaBlock)
BLOCKS = (*MASKED, vit_blocks.DiffParallelScalingBlock)  # the last accepts no bias of its attention

BIAS_TABLE = "its attention adds a table with an entry for each pair of patches, and tubes have no entries"
POST_NORM = "its blocks normalise their output (post-norm), so tubes and gate would get tokens of another scale"
WINDOWS = "its windows are cut from a grid of patches, and a tube has no place in a grid"
STAGES = "its blocks work on a grid that shrinks from stage to stage, and a tube has no place in a grid"
NOT_PLAIN = {  # class of the model or of its blocks -> why tubes cannot join
    "Beit": BIAS_TABLE,
    "VisionTransformerRelPos": BIAS_TABLE,
    "ResPostBlock": POST_NORM,
    "EvaBlockPostNorm": POST_NORM,
    **dict.fromkeys(("SwinTransformer", "SwinTransformerV2", "SwinTransformerV2Cr"), WINDOWS),
    "VisionTransformerSAM": "its attention works on windows of a grid, with a table for each pair of patches",
    **dict.fromkeys(("Hiera", "HieraDet", "MultiScaleVit", "CoaT", "DaVit", "PyramidVisionTransformerV2"), STAGES),
    **dict.fromkeys(
        ("PoolingVisionTransformer", "Twins", "Nest", "Levit", "LevitDistilled", "TinyVit", "Visformer"), STAGES
    ),
    **dict.fromkeys(("GlobalContextVit", "MaxxVit", "NextViT", "ResNet", "ConvNeXt", "FastVit"), STAGES),
    "Cait": "its class token only joins in the last blocks, which are of another kind",
    "ConVit": "its attention depends on distances in a grid of patches, and a tube has no place in a grid",
    "CrossVit": "it works on patches of two sizes in two sequences",
    "TNT": "its blocks also work on the pixels inside each patch, and a tube has none",
    "VOLO": "its first blocks attend within windows of a grid, and a tube has no place in a grid",
    "Xcit": "its blocks convolve a grid of patches, and a tube has no place in a grid",
    "NaFlexVit": "it takes patches cut beforehand, in sequences of any length, not images",
    "HybridEmbed": "its patches come from a convolutional network",
    "RotaryEmbeddingMRope": "its rotary angles already have a time axis",
}


def refuse_unless_plain(vit: Any, name: str) -> None:
    """Raise UserError, with the reason, for a timm model that is not a plain ViT."""
    parts = [getattr(vit, "patch_embed", None), getattr(vit, "rope", None), *getattr(vit, "blocks", ())]
    kinds = [type(vit).__name__, *(type(part).__name__ for part in parts if part is not None)]
    article = "an" if kinds[0][0] in "AEIOU" else "a"
    if reason := next((NOT_PLAIN[kind] for kind in kinds if kind in NOT_PLAIN), None):
        raise UserError(f"{name!r} is {article} {kinds[0]}, not a plain ViT: {reason}")
    plain = isinstance(vit, VisionTransformer | Eva) and len(vit.blocks) and type(vit.patch_embed) is PatchEmbed
    if not (plain and all(type(block) in BLOCKS for block in vit.blocks)):
        allowed = "allowed are timm's VisionTransformer and Eva, of blocks alike on one sequence of tokens"
        made_of = f" of {', '.join(sorted(set(kinds[1:])))}" if kinds[1:] else ""
        raise UserError(f"{name!r} is {article} {kinds[0]}, not a plain ViT{made_of}; {allowed}")

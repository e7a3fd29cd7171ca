"""Which of timm's models are plain: blocks alike on one sequence of tokens, where a tube is a token like any other."""

from __future__ import annotations

from typing import Any

from timm.layers import PatchEmbed
from timm.models import vision_transformer as vit_blocks
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import VisionTransformer

from scaleup.errors import UserError

MASKED = (vit_blocks.Block, vit_blocks.ParallelScalingBlock, vit_blocks.ParallelThingsBlock, EvaBlock)
BLOCKS = (*MASKED, vit_blocks.DiffParallelScalingBlock)  # the last takes no bias of its attention

BIAS_TABLE = "its attention adds a table with an entry for each pair of patches, and a tube has no entry there"
POST_NORM = "its blocks normalise what they add (post-norm), so tubes and gate would meet tokens of another scale"
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
    "Cait": "its class token meets the patches in the last blocks alone, which are of another kind",
    "ConVit": "its attention mixes in how far patches are apart in a grid, and a tube has no place in a grid",
    "CrossVit": "it works on patches of two sizes in two sequences",
    "TNT": "its blocks work on the pixels inside each patch too, and a tube has none",
    "VOLO": "its first blocks attend within windows of a grid, and a tube has no place in a grid",
    "Xcit": "its blocks convolve a grid of patches, and a tube has no place in a grid",
    "NaFlexVit": "it takes patches cut beforehand, in sequences of any length, not images",
    "HybridEmbed": "its patches come from a convolutional network",
    "RotaryEmbeddingMRope": "its rotary angles hold a time of their own",
}


def refuse_unless_plain(vit: Any, name: str) -> None:
    """Raise UserError, with the reason, for a model of timm that is no plain ViT."""
    parts = [vit, getattr(vit, "patch_embed", None), getattr(vit, "rope", None), *getattr(vit, "blocks", ())]
    kinds = [type(part).__name__ for part in parts if part is not None]
    article = "an" if kinds[0][0] in "AEIOU" else "a"
    if reason := next((NOT_PLAIN[kind] for kind in kinds if kind in NOT_PLAIN), None):
        raise UserError(f"{name!r} is {article} {kinds[0]}, not a plain ViT: {reason}")
    plain = isinstance(vit, VisionTransformer | Eva) and len(vit.blocks) and type(vit.patch_embed) is PatchEmbed
    if not (plain and all(type(block) in BLOCKS for block in vit.blocks)):
        allowed = "allowed are timm's VisionTransformer and Eva, of blocks alike on one sequence of tokens"
        made_of = f" of {', '.join(sorted(set(kinds[1:])))}" if kinds[1:] else ""
        raise UserError(f"{name!r} is {article} {kinds[0]}, not a plain ViT{made_of}; {allowed}")

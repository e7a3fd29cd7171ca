"""Blocks: which models have plain ones, and the last block where pooling reads the class token alone.

Exact in mathematics, forward and backward, but not in the last bits: products of fewer rows round otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, PatchEmbed, apply_rot_embed_cat
from timm.models import vision_transformer as vit_blocks
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

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


def pools_first(tail: Any) -> bool:
    """Whether a tail reads the first token and no other."""
    token = getattr(tail, "global_pool", None) == "token" or getattr(tail, "pool_type", None) == "tok"
    return token and tail.attn_pool is None and not hasattr(tail, "head_dist")


def knows_first_token(block: Any) -> bool:
    """Whether :func:`first_token` knows how a block computes."""
    if any(isinstance(part, nn.Dropout) and part.p > 0 and part.training for part in block.modules()):
        return False  # it would draw for fewer tokens, and so otherwise
    if type(block).__name__ == "ResidualAttentionBlock":  # open_clip's
        return True
    known = type(block) in (Block, EvaBlock) and type(block.attn) in (Attention, AttentionRope, EvaAttention)
    return known and getattr(block.attn, "num_kv_groups", 1) == 1


def first_token(block: Any, h: Tensor, **context: Tensor) -> Tensor:
    """What a block that :func:`knows_first_token` makes of the first of all tokens h (B, N, D): (B, 1, D)."""
    first = h[:, :1]
    if hasattr(block, "ln_1"):
        x = block.ln_1(h)
        first = first + block.ls_1(block.attention(x[:, :1], x, x))
        return first + block.ls_2(block.mlp(block.ln_2(first)))
    first = first + block.drop_path1(_scaled(block, 1, _attended(block.attn, block.norm1(h), **context)))
    return first + block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(first))))


def _scaled(block: Any, part: int, x: Tensor) -> Tensor:
    """Layer scale of attention (1) or MLP (2)."""
    if isinstance(block, Block):
        return getattr(block, f"ls{part}")(x)
    gamma = getattr(block, f"gamma_{part}")
    return x if gamma is None else gamma * x


def _attended(attn: Any, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
    """What attention gives the first token of x (B, N, D): (B, 1, D)."""
    q, k, v = (each.unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for each in _projected(attn, x))
    q, k = attn.q_norm(q), attn.k_norm(k)  # (B, H, 1, d) and (B, H, N, d)
    if rope is not None:  # prefix tokens, the first among them, are not turned
        prefix, turned = k.split((attn.num_prefix_tokens, k.shape[2] - attn.num_prefix_tokens), dim=2)
        k = torch.cat([prefix, apply_rot_embed_cat(turned, rope, half=attn.rotate_half)], dim=2).type_as(v)
        q = q.type_as(v)
    mask = None if attn_mask is None else attn_mask[..., :1, :]
    mixed = attn.norm(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
    if attn.gate is not None:
        mixed = mixed * attn.gate(x[:, :1]).sigmoid()
    return attn.proj(mixed)


def _projected(attn: Any, x: Tensor) -> tuple[Tensor, ...]:
    """The query of the first token (B, 1, H*d), keys and values of all (B, N, H*d)."""
    first = x[:, :1]
    if attn.qkv is None:
        return attn.q_proj(first), attn.k_proj(x), attn.v_proj(x)
    own = getattr(attn, "q_bias", None) is not None  # EVA: keys have no bias
    bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias)) if own else None
    if type(attn.qkv) is not nn.Linear:  # an adapter around it
        q, k, v = (attn.qkv(x) if bias is None else attn.qkv(x) + bias).chunk(3, dim=-1)
        return q[:, :1], k, v
    width = len(attn.qkv.weight) // 3
    bias = attn.qkv.bias if bias is None else bias
    weights = attn.qkv.weight.split((width, 2 * width))
    biases = (None, None) if bias is None else bias.split((width, 2 * width))
    return F.linear(first, weights[0], biases[0]), *F.linear(x, weights[1], biases[1]).chunk(2, dim=-1)

"""How blocks are computed: as by the library, or in faster ways whose results differ only by rounding.

``library``: exactly the library's computation. ``lean``: the last block, frozen or not, is computed only for the class
token, if pooling reads no other token (:func:`first_token`). ``products``: as ``lean``, and large float32 products of
weights on a CPU are computed as 1x1 convolutions. torch computes these with oneDNN, but matrix products with a library
that uses only half of some CPUs' vector width. ``fast``: as ``products``, and so are the products of attention.
``compiled``: as ``lean``, by programs that torch makes of blocks (:mod:`scaleup.model.compiled`).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from scaleup.model.compiled import Call, program

NARROWEST, FEWEST = 64, 64  # smallest channels and tokens of a product for which ``fast`` can be faster
LONGEST = 2560  # input channels of a product; longer sums do not fit the cache (5120: a tenth slower)
LARGEST = 2**23  # attention scores that are computed at a time, to fit a last-level cache
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc


def every_token(block: nn.Module, h: Tensor, **context: Tensor) -> Tensor:
    """The output of a block for all of tokens h (B, N, D)."""
    return block(h, **context)


def computed(call: Call, kernels: str) -> Call:
    """``call``, computed with ``kernels``."""
    if kernels == "compiled":
        return program(call)
    if kernels not in REPLACED:
        return call

    def fast(*args: Any, **kwargs: Any) -> Tensor:
        with Fast(kernels):
            return call(*args, **kwargs)

    return fast


class Fast(TorchFunctionMode):
    """Inside this context, :func:`linear`, and with ``fast`` kernels :func:`attention`, replace torch's functions in
    all modules."""

    def __init__(self, kernels: str = "fast") -> None:
        super().__init__()
        self.replaced = REPLACED[kernels]

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self.replaced.get(func, func)(*args, **(kwargs or {}))


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``, computed as a 1x1 convolution if it is large: input (B, N, I), weight (O, I) -> (B, N, O).

    Without gradients, many input channels are summed in parts. (With gradients this would need copies.)
    """
    if input.dim() != 3 or input.shape[:-1].numel() < FEWEST or min(weight.shape) < NARROWEST or not _exact(input):
        return F.linear(input, weight, bias)
    if torch.is_grad_enabled() or weight.shape[1] <= LONGEST:
        return _convolved(input, weight, bias)
    parts = -(-weight.shape[1] // LONGEST)
    first, *others = zip(input.chunk(parts, -1), weight.chunk(parts, 1), strict=True)
    output = _convolved(*first, bias)
    for part in others:
        output += _convolved(*part)
    return output


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **how: Any) -> Tensor:
    """``F.scaled_dot_product_attention`` of (B, H, N, d); without gradients by convolutions with a group for each head.

    With gradients this would not be faster, and would keep all scores.
    """
    plain = attn_mask is None and not how.get("dropout_p") and not how.keys() - {"dropout_p", "is_causal"}
    small = query.dim() != 4 or key.shape != query.shape or query.shape[0] * query.shape[2] < FEWEST
    if torch.is_grad_enabled() or not plain or how.get("is_causal") or small or not _exact(query):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **how)
    heads = max(1, LARGEST // query.shape[2] ** 2)
    samples = zip(query * query.shape[-1] ** -0.5, key, value, strict=True)
    return torch.stack([torch.cat([_attended(*part) for part in _split(each, heads)]) for each in samples])


def _split(sample: tuple[Tensor, ...], heads: int) -> Any:
    return zip(*(tensor.split(heads) for tensor in sample), strict=True)


def _attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of some heads of a sample, queries scaled: (H, N, d) each -> (H, N, d)."""
    heads, tokens, width = query.shape
    scores = _convolved(query.transpose(0, 1).reshape(1, tokens, -1), key.reshape(-1, width), groups=heads)
    shares = scores.unflatten(2, (heads, tokens)).softmax(-1).flatten(2)  # (1, N, H*N)
    mixed = _convolved(shares, value.transpose(1, 2).reshape(-1, tokens), groups=heads)  # (1, N, H*d)
    return mixed[0].unflatten(1, (heads, width)).transpose(0, 1)


def _convolved(input: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
    """(B, N, G*I) by weights (G*O, I) -> (B, N, G*O): a 1x1 convolution over N pixels, channels last, without copies.

    A dilation of 2 does not change a kernel of one pixel, but on one thread only then torch uses oneDNN.
    """
    pixels = input.transpose(1, 2).unsqueeze(2)  # (B, G*I, 1, N)
    return F.conv2d(pixels, weight[:, :, None, None], bias, dilation=2, groups=groups).squeeze(2).transpose(1, 2)


def _exact(tensor: Tensor) -> bool:
    """Whether a product of this tensor is computed in float32 on a CPU."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def products_in(tensor: Tensor) -> torch.dtype:
    """The type in which products of a float tensor are computed: its own, or a lower one inside autocast."""
    kind = tensor.device.type
    low = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # not on the meta device
    return torch.get_autocast_dtype(kind) if low else tensor.dtype


REPLACED: dict[str, dict[Any, Callable[..., Tensor]]] = {
    "products": {F.linear: linear},
    "fast": {F.linear: linear, F.scaled_dot_product_attention: attention},
}


def set_products(device: torch.device, tf32: bool = True, deterministic: bool | None = None) -> None:
    """Say how a GPU computes in this process; a CPU always computes in float32, and gives the same bits each time.

    Args:
        tf32: all float32 products, of matrices and of convolutions, are computed in TF32, or none.
        deterministic: only with algorithms that give the same bits each time; attention leaves out the two kernels that
            do not. None: as it is.
    """
    if device.type == "cpu":
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    if deterministic is None:
        return
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cuda.enable_mem_efficient_sdp(not deterministic)
    torch.backends.cuda.enable_cudnn_sdp(not deterministic)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next layer.

    By default it returns large buffers to the system at once, and new ones are allocated page by page. This takes a
    third of the time of the products.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def pools_first(tail: Any) -> bool:
    """Whether a tail reads only the first token."""
    token = getattr(tail, "global_pool", None) == "token" or getattr(tail, "pool_type", None) == "tok"
    return token and tail.attn_pool is None and not hasattr(tail, "head_dist")


def knows_first_token(block: Any) -> bool:
    """Whether :func:`first_token` supports a block."""
    if any(isinstance(part, nn.Dropout) and part.p > 0 and part.training for part in block.modules()):
        return False  # random numbers would differ for fewer tokens
    if type(block).__name__ == "ResidualAttentionBlock":  # open_clip's
        return True
    known = type(block) in (Block, EvaBlock) and type(block.attn) in (Attention, AttentionRope, EvaAttention)
    return known and getattr(block.attn, "num_kv_groups", 1) == 1


def first_token(block: Any, h: Tensor, **context: Tensor) -> Tensor:
    """The output (B, 1, D) of a block for the first of tokens h (B, N, D); see :func:`knows_first_token`."""
    first = h[:, :1]
    if hasattr(block, "ln_1"):
        x = block.ln_1(h)
        first = first + block.ls_1(block.attention(x[:, :1], x, x))
        return first + block.ls_2(block.mlp(block.ln_2(first)))
    first = first + block.drop_path1(_scaled(block, 1, _attended_first(block.attn, block.norm1(h), **context)))
    return first + block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(first))))


def _scaled(block: Any, part: int, x: Tensor) -> Tensor:
    """Layer scale of attention (1) or MLP (2)."""
    if isinstance(block, Block):
        return getattr(block, f"ls{part}")(x)
    gamma = getattr(block, f"gamma_{part}")
    return x if gamma is None else gamma * x


def _attended_first(attn: Any, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
    """The output (B, 1, D) of attention for the first token of x (B, N, D)."""
    q, k, v = (each.unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for each in _projected(attn, x))
    q, k = attn.q_norm(q), attn.k_norm(k)  # (B, H, 1, d) and (B, H, N, d)
    if rope is not None:  # prefix tokens, such as the first, are not rotated
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
    if type(attn.qkv) is not nn.Linear:  # it has an adapter
        q, k, v = (attn.qkv(x) if bias is None else attn.qkv(x) + bias).chunk(3, dim=-1)
        return q[:, :1], k, v
    weight, width = attn.qkv.weight, len(attn.qkv.weight) // 3
    bias = attn.qkv.bias if bias is None else bias
    biases = (None, None) if bias is None else (bias[:width], bias[width:])
    return F.linear(first, weight[:width], biases[0]), *F.linear(x, weight[width:], biases[1]).chunk(2, dim=-1)

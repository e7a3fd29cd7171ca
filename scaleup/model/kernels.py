"""How the products in blocks are computed: as the library does, or by ways that give the same but for rounding.

``library``: bit for bit the library's. ``lean``: the last block for the class token alone, where pooling reads no other
(:func:`first_token`). ``fast``: that, and large float32 products on a CPU as 1x1 convolutions, which torch gives to
oneDNN; its matrix products go to a library that leaves half of some processors' width unused.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from functools import partial
from time import thread_time
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PAYS = 1.3  # how many times faster than the library ``fast`` must be to be chosen
NARROWEST, FEWEST = 64, 64  # channels and tokens of a product below which the library is never slower
LONGEST = 2560  # input channels of a product: longer sums leave the cache, a tenth slower at 5120
LARGEST = 2**23  # scores of the attention held at a time: as many as a last-level cache holds
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc
SMALLEST = 2**18  # tokens times width of a model for which the choice is worth measuring, and no matter of chance


def computed(call: Callable[..., Tensor], kernels: str) -> Callable[..., Tensor]:
    """The function ``call``, a block's, with its products computed as ``kernels`` says."""
    if kernels != "fast":
        return call

    def fast(*args: Any, **kwargs: Any) -> Tensor:
        with Fast():
            return call(*args, **kwargs)

    return fast


class Fast(TorchFunctionMode):
    """Inside, :func:`linear` and :func:`attention` replace torch's own functions, in every module and library."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return REPLACED.get(func, func)(*args, **(kwargs or {}))


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``; a large one as a 1x1 convolution over a view: input (B, N, I), weight (O, I) -> (B, N, O).

    Without gradients, which would need copies, many input channels are summed in parts.
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

    With gradients that would keep all scores, and be no faster.
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
    """(B, N, G*I) by weights (G*O, I) -> (B, N, G*O): a 1x1 convolution over N pixels, channels last, so no copies.

    A dilation of 2 changes nothing in a kernel of one pixel, but on one thread torch gives no other 1x1 to oneDNN.
    """
    pixels = input.transpose(1, 2).unsqueeze(2)  # (B, G*I, 1, N)
    return F.conv2d(pixels, weight[:, :, None, None], bias, dilation=2, groups=groups).squeeze(2).transpose(1, 2)


def _exact(tensor: Tensor) -> bool:
    """Whether a product of this tensor is computed in float32 on a CPU."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


REPLACED: dict[Any, Callable[..., Tensor]] = {F.linear: linear, F.scaled_dot_product_attention: attention}


@torch.no_grad()
def choose(block: nn.Module, h: Tensor, context: Mapping[str, Tensor]) -> str:
    """``fast`` where a block on float32 tokens h (B, N, D) is clearly faster so on this machine, else ``lean``.

    What counts is the time of the processor on one thread: others who use the machine do not change it.
    """
    if h.device.type != "cpu" or h.shape[1:].numel() < SMALLEST:
        return "lean"
    calls = {kernels: partial(computed(block, kernels), h, **context) for kernels in ("library", "fast")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = measure_in_turns(calls, thread_time)
    torch.set_num_threads(threads)
    return "fast" if min(seconds["library"]) >= PAYS * min(seconds["fast"]) else "lean"


def measure_in_turns(calls: Mapping[str, Callable[[], Any]], clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of three runs of each call after a first one, in turns: other work on the machine slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(4):
        for name, call in calls.items():
            began = clock()
            call()
            seconds[name].append(clock() - began)
    return {name: times[1:] for name, times in seconds.items()}


def keep_freed_memory() -> None:
    """Have the process keep the memory that it frees, for the next layer.

    glibc gives large buffers back to the system at once, and takes the next ones anew, page by page: as slow as a third
    of the products themselves.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


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
    first = first + block.drop_path1(_scaled(block, 1, _attended_first(block.attn, block.norm1(h), **context)))
    return first + block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(first))))


def _scaled(block: Any, part: int, x: Tensor) -> Tensor:
    """Layer scale of attention (1) or MLP (2)."""
    if isinstance(block, Block):
        return getattr(block, f"ls{part}")(x)
    gamma = getattr(block, f"gamma_{part}")
    return x if gamma is None else gamma * x


def _attended_first(attn: Any, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
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

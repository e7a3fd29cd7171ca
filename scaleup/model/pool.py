"""How tokens become features in an arm: the mean of all tokens, or learned queries that attend to them.

The attentive pool is that of V-JEPA's probe (arXiv 2404.08471): self-attention blocks, if any, then cross-attention of
a few queries. A frozen trunk that is read in this way needs no backward pass through any block.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from scaleup.checkpoint.model_directory import Pool
from scaleup.common.errors import UserError
from scaleup.model.kernels import computed, every_token


class MeanPool(nn.Module):
    """Norm, then the mean of all tokens, those of prefixes too: (B, P+N, D) -> (B, D).

    With ``taps``, tokens of smaller depths of the trunk stand beside those of the last block, each depth with a norm,
    and so a scale, of its own. ``kernels`` says how blocks, where there are any, are computed.
    """

    kernels = "library"

    def __init__(self, norm: nn.Module, width: int, taps: Sequence[int]) -> None:
        super().__init__()
        self.norm, self.embed_dim = norm, width
        self.lower_norms = nn.ModuleDict({str(depth): nn.LayerNorm(width, eps=1e-6) for depth in taps})

    def tokens(self, h: Tensor, lower: Mapping[int, Tensor]) -> Tensor:
        """The tokens that are read: (B, (1 + taps) * (P+N), D)."""
        return torch.cat([*(norm(lower[int(depth)]) for depth, norm in self.lower_norms.items()), self.norm(h)], dim=1)

    def forward(self, h: Tensor, lower: Mapping[int, Tensor]) -> Tensor:
        return self.tokens(h, lower).mean(dim=1)


class AttentivePool(MeanPool):
    """Norm, then what each of a few learned queries reads from all tokens: (B, P+N, D) -> (B, queries * D).

    Args:
        pool: ``depth`` counts the cross-attention; the blocks below it are self-attention, four times as wide inside.

    Raises:
        UserError: the heads do not divide the width.
    """

    def __init__(self, norm: nn.Module, width: int, pool: Pool) -> None:
        super().__init__(norm, width, pool.taps)
        if width % pool.heads:
            divisors = [str(heads) for heads in range(1, width + 1) if width % heads == 0]
            raise UserError(
                f"pool_heads {pool.heads} does not divide the {width} channels of a token; allowed are "
                f"{', '.join(divisors)}"
            )
        self.num_heads, self.embed_dim = pool.heads, pool.queries * width
        self.blocks = nn.ModuleList(Block(width, pool.heads, qkv_bias=True) for _ in range(pool.depth - 1))
        self.queries = nn.Parameter(torch.empty(pool.queries, width))
        self.q, self.v, self.proj = (nn.Linear(width, width) for _ in range(3))
        self.k = nn.Linear(width, width, bias=False)  # a bias of the keys would change no softmax

    def forward(self, h: Tensor, lower: Mapping[int, Tensor]) -> Tensor:
        x = self.tokens(h, lower)
        for block in self.blocks:
            x = computed(every_token, self.kernels)(block, x)
        return self.proj(self._attend(x)).flatten(1)

    def _attend(self, x: Tensor) -> Tensor:
        """Cross-attention: (B, N, D) -> (B, Q, D).

        The few queries go through the weights of the keys, and the means of tokens through those of the values: the
        same numbers but for rounding, without a product for each token.
        """
        heads, width = self.num_heads, x.shape[-1]
        q = self.q(self.queries).unflatten(1, (heads, -1)) * (width // heads) ** -0.5  # (Q, H, d)
        keys = torch.einsum("qhd,hdc->qhc", q, self.k.weight.unflatten(0, (heads, -1))).flatten(0, 1)  # (Q*H, D)
        scores = F.linear(x, keys).float().softmax(dim=1).to(x.dtype)  # (B, N, Q*H)
        means = (scores.transpose(1, 2) @ x).unflatten(1, (-1, heads))  # (B, Q, H, D)
        values = torch.einsum("bqhc,hdc->bqhd", means, self.v.weight.unflatten(0, (heads, -1)))
        return values.flatten(2) + self.v.bias


def make_pool(pool: Pool | None, tail: Any, width: int) -> nn.Module | None:
    """The pool of an arm; None: the backbone's own, in its tail.

    Its norm begins as the tail's where that is over all channels of a token.

    Args:
        width: channels of a token (D).
    """
    if pool is None:
        return None
    norm = _norm_of(tail, width)
    return MeanPool(norm, width, pool.taps) if pool.kind == "mean" else AttentivePool(norm, width, pool)


def _norm_of(tail: Any, width: int) -> nn.Module:
    for name in ("norm", "fc_norm", "ln_post"):
        weight = getattr(getattr(tail, name, None), "weight", None)
        if weight is not None and weight.shape == (width,):
            return copy.deepcopy(getattr(tail, name))
    return nn.LayerNorm(width, eps=1e-6)


def init_pool(pool: nn.Module, generator: torch.Generator) -> None:
    """Draw what a pool learns anew: queries of variance 1, matrices fan-in, biases 0; its norm stays."""
    with torch.no_grad():
        for name, parameter in pool.named_parameters():
            if "norm" in name:
                continue
            if parameter.dim() == 1:
                parameter.zero_()
                continue
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn if name == "queries" else drawn * parameter.shape[1] ** -0.5)

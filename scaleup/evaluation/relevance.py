"""Where a model looks: which pixels of which frames the tokens cover that speak for a class."""

from __future__ import annotations

import torch
from torch import Tensor

from scaleup.model.places import Size, TubeSpec
from scaleup.model.tokenizer import size_of
from scaleup.model.trunk import Taps
from scaleup.model.tubevit import TubeViT


def token_relevance(model: TubeViT, x: Tensor, head: str, target: int) -> Tensor:
    """How much each token that enters the arm speaks for class ``target`` of one sample: (N,), prefix tokens left out.

    To first order what the class's logarithmic probability loses where a token becomes the mean of all of them, where
    that is a loss; it asks nothing of the blocks, so that it serves every backbone.
    """
    taps = model.arm_inputs(x)
    if isinstance(taps, Tensor):  # pixels, which enter as tokens
        z0 = model.tokenizer(x).detach()
        taps = Taps(z0, z0, model.tokenizer.context(size_of(x)))
    h = taps.h.detach().requires_grad_()
    chosen = model.arm(taps._replace(h=h), head).log_softmax(-1)[0, target]
    (gradient,) = torch.autograd.grad(chosen, h)
    prefix = model.tokenizer.num_prefix_tokens
    tokens, gradient = h[0, prefix:].detach(), gradient[0, prefix:]  # (N, D)
    return (gradient * (tokens - tokens.mean(0))).sum(-1).clamp(min=0)


def painted(relevance: Tensor, specs: list[TubeSpec], size: Size) -> Tensor:
    """Relevance of tokens (N,) spread over the pixels that each covers: (T, H, W), at most 1.

    A pixel gets the mean of the tokens that cover it.
    """
    total, cover = torch.zeros(2, *size)
    weights = iter(relevance.tolist())
    for spec in specs:
        for box in boxes(spec, size):
            total[box] += next(weights)
            cover[box] += 1
    mean = total / cover.clamp(min=1)
    return mean / mean.max().clamp(min=1e-12)


def boxes(spec: TubeSpec, size: Size) -> list[tuple[slice, slice, slice]]:
    """All that each token covers, fold included, in the order of the tokens."""
    t, h, w = (
        [slice(int(places[0]), int(places[-1]) + kernel) for places in axis]
        for axis, kernel in zip(spec.places(size), spec.kernel, strict=True)
    )
    return [(a, b, c) for a in t for b in h for c in w]

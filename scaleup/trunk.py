"""The frozen part of a model, outside every engine: run once a batch, whatever the number of arms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scaleup.positions import Context
from scaleup.tokenizer import Tokenizer, size_of


class Taps(NamedTuple):
    """What an arm reads from the trunk: z0 and h, both (B, P+N, D), and what its blocks are told beside them."""

    z0: Tensor
    h: Tensor
    context: Context = Context()


class Trunk(nn.Module):
    """Tokenizer and frozen blocks: never trained, never in train mode, no autograd graph."""

    def __init__(self, tokenizer: Tokenizer, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.blocks = nn.ModuleList(blocks)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Trunk:
        """Stay in eval mode, whatever is asked: drop path and dropout do not belong into a frozen trunk."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor, depths: Iterable[int]) -> dict[int, Taps]:
        """x (B, 3, T, H, W) or (B, 3, H, W) -> taps after each of ``depths`` blocks, in one pass."""
        wanted = set(depths)
        z0, context = self.tokenizer(x), self.tokenizer.context(size_of(x))
        h, taps = z0, {}
        for index, block in enumerate(self.blocks[: max(wanted)]):
            h = block(h, **context.at(index))
            if index + 1 in wanted:
                taps[index + 1] = Taps(z0, h, context)
        return taps

"""The frozen part of a model, outside every engine: run once a batch, whatever the number of arms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scaleup.backbones.placement import COMPUTED_IN, BlockFile, cast, iterate_blocks
from scaleup.model.kernels import computed
from scaleup.model.positions import Context
from scaleup.model.tokenizer import Tokenizer, size_of


class Taps(NamedTuple):
    """What an arm reads from the trunk: z0 and h, both (B, P+N, D), and what its blocks are told beside them."""

    z0: Tensor
    h: Tensor
    context: Context = Context()


Inputs = dict[int, Tensor | Taps]  # of arms, by frozen depth; where nothing is frozen, the pixels themselves


class Trunk(nn.Module):
    """Tokenizer and frozen blocks: never trained, never in train mode, no autograd graph.

    Blocks may be kept in low precision (:func:`cast_trunks`), on the host or in a file
    (:mod:`scaleup.backbones.placement`); z0 and the taps are float32 all the same.
    """

    def __init__(self, tokenizer: Tokenizer, blocks: Iterable[nn.Module], file: BlockFile | None = None) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.blocks = nn.ModuleList(blocks)
        self.file = file  # of those blocks that are on the meta device
        self.precision, self.kernels = "float32", "library"
        self.originals: dict[str, Tensor] = {}  # float32 content of blocks that were cast, where no file holds it
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Trunk:
        """Stay in eval mode, whatever is asked: drop path and dropout do not belong into a frozen trunk."""
        return super().train(False)

    @torch.no_grad()  # and not in inference mode: what that makes, an arm could not keep for its backward pass
    def forward(self, x: Tensor, depths: Iterable[int]) -> dict[int, Taps]:
        """x (B, 3, T, H, W) or (B, 3, H, W) -> taps after each of ``depths`` blocks, in one pass."""
        wanted, dtype = set(depths), COMPUTED_IN[self.precision]
        z0, context = self.tokenizer(x), self.tokenizer.context(size_of(x))
        h, told, taps = z0.to(dtype), context.to(dtype), {}
        for index, block in enumerate(iterate_blocks(self.blocks[: max(wanted)], h.device, self.file, dtype)):
            h = computed(block, self.kernels)(h, **told.at(index))
            if index + 1 in wanted:
                taps[index + 1] = Taps(z0, h.to(z0.dtype), context)
        return taps

    def place(self, device: torch.device, placement: str) -> None:
        """Move to the device all but the blocks that wait elsewhere."""
        self.tokenizer.to(device)
        for block in self.blocks:
            if placement != "host" and not is_on_meta(block):
                block.to(device)


def arm_inputs(trunk: Trunk | None, x: Tensor, depths: Iterable[int]) -> Inputs:
    """What arms of these frozen depths are fed for x, after one pass of the trunk; depth 0 is fed x itself."""
    frozen = set(depths) - {0}
    return {0: x} | (trunk(x, frozen) if trunk is not None and frozen else {})


def is_on_meta(block: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in block.parameters())


def cast_trunks(trunks: list[Trunk], precision: str, public: set[str]) -> None:
    """Put the blocks that trunks share into another precision, one at a time.

    Args:
        public: names (``blocks.3.attn.qkv.weight``) whose content the public backbone has; of all others the float32
            content is kept for saving.
    """
    deepest = max(trunks, key=lambda trunk: len(trunk.blocks))
    for index, block in enumerate(deepest.blocks):
        if not is_on_meta(block):
            tensors = {f"blocks.{index}.{name}": tensor for name, tensor in block.state_dict().items()}
            deepest.originals |= {name: tensor for name, tensor in tensors.items() if name not in public}
            block = cast(block, precision)
        for trunk in trunks:
            if index < len(trunk.blocks):
                trunk.blocks[index] = block
    for trunk in trunks:
        trunk.precision, trunk.originals = precision, deepest.originals

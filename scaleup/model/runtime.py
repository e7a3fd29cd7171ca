"""How a run computes: where its trunk is, in which precision and with which kernels, and how far its output drifts."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from scaleup.backbones.placement import drift, fastest, load_block
from scaleup.common.distributed import World
from scaleup.config.schema import Trunk as Settings
from scaleup.model.kernels import choose, keep_freed_memory
from scaleup.model.tokenizer import natural_clip, normalise, size_of
from scaleup.model.trunk import Trunk, cast_trunks, is_on_meta
from scaleup.model.tubevit import TubeViT


def prepare_trunks(models: Collection[TubeViT], settings: Settings, world: World) -> dict[str, Any]:
    """Place and cast the blocks that the trunks of ``models`` share.

    Returns:
        ``{"precision", "placement", "drift", "block_seconds"}``: how far h_s moves from float32 by frozen depth (RMS of
        the difference over RMS of h_s, on a made-up clip), and, where the precision was chosen by measuring, what a
        block took in each. Empty where nothing is frozen.
    """
    trunks = [model.trunk for model in models if model.trunk is not None]
    if not trunks:
        return {}
    deepest = max(models, key=lambda model: model.frozen_depth)
    trunk, depths = deepest.trunk, {model.frozen_depth for model in models} - {0}
    assert trunk is not None
    for each in trunks:
        each.place(world.device, settings.placement)
    clip = normalise(natural_clip(deepest.preprocess.frames, deepest.preprocess.size), deepest.config).to(world.device)
    precision, seconds = settings.precision, dict[str, float]()
    if precision == "auto":
        precision, seconds = world.first(_measured(trunk, clip))
    about = {"precision": precision, "placement": settings.placement, "block_seconds": seconds}
    wanted = trunk(clip, depths) if precision != "float32" else {}
    if precision != "float32":
        cast_trunks(trunks, precision, deepest.public_blocks())
    found = trunk(clip, depths) if wanted else {}
    return about | {"drift": {depth: drift(wanted[depth].h, found[depth].h) for depth in sorted(wanted)}}


@torch.no_grad()
def _measured(trunk: Trunk, clip: torch.Tensor) -> tuple[str, dict[str, float]]:
    block = load_block(trunk.blocks, 0, trunk.file).to(clip.device)
    return fastest(block, trunk.tokenizer(clip), trunk.tokenizer.context(size_of(clip)).at(0))


def set_kernels(models: Collection[TubeViT], kernels: str, world: World) -> str:
    """Have the trunks and arms of ``models`` compute as :mod:`scaleup.model.kernels` says; ``auto`` measures a block.

    To be called before blocks are cast; returns the choice.
    """
    keep_freed_memory()
    if kernels == "auto":
        kernels = world.first(_kernels_of(next(iter(models)), world.device))
    for model in models:
        model.arm.kernels = kernels
        if model.trunk is not None:
            model.trunk.kernels = kernels
    return kernels


def _kernels_of(model: TubeViT, device: torch.device) -> str:
    """All blocks of a model are alike, so the arms of a sweep choose as each of them would alone."""
    block, frames = model.blocks[0], model.preprocess.frames
    h = torch.randn(1, model.count_tokens(frames), model.tokenizer.embed_dim, device=device)
    if model.trunk is not None and is_on_meta(block):
        block = load_block(model.trunk.blocks, 0, model.trunk.file)
    with torch.no_grad():
        context = model.tokenizer.context((frames, *model.preprocess.size)).at(0)
    return choose(block, h, context)

"""What a transplant claims, measured on the model it made; and the clips and images for that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scaleup.backbones.backbone import Backbone
from scaleup.common.ridge import Affine
from scaleup.config.schema import Input
from scaleup.data.loader import eval_loader
from scaleup.data.shards import Shards
from scaleup.errors import UserError
from scaleup.model.tokenizer import natural_clip, normalise
from scaleup.model.trunk import fill_on_call
from scaleup.model.tubes import TubeSpec
from scaleup.model.tubevit import TubeViT
from scaleup.transplants.donor import Donor, Kernel


@torch.no_grad()
def image_max_abs_diff(model: TubeViT, large: Backbone, images: Tensor, taps: Any) -> float:
    """Pooled features of the adapted model, gate closed, against the image model's own.

    Args:
        images: (B, 3, H, W), normalised for the backbone.
        taps: what the adapted model's arm reads for them.
    """
    with fill_on_call(large.blocks, large.block_file()):
        if large.positions is None:
            wanted = large.features(images)
        else:  # one of our own models, which adds positions of its own
            alone = replace(model.config, tubes={}, positions=large.positions, frozen_depth=0, gate=False, heads={})
            wanted = TubeViT.assemble(alone, large).eval().forward_features(images)
    return (model.arm.features(taps) - wanted).abs().max().item()


def closed_max_abs_diff(model: TubeViT, taps: Any) -> float:
    """Pooled features with the gate closed against the same arm without a gate."""
    gate, arm = model.arm.gate, model.arm
    with torch.no_grad():
        closed = arm.features(taps)
        arm.gate = None
        without = arm.features(taps)
        arm.gate = gate
    return (closed - without).abs().max().item()


@torch.enable_grad()
def alpha_grad(model: TubeViT, taps: Any, seed: int = 0) -> float:
    """|d loss / d alpha| with the gate closed; the loss is a cross entropy of random classes of the pooled features."""
    assert model.arm.gate is not None
    trains = [parameter for parameter in model.arm.parameters() if parameter.requires_grad]
    model.arm.requires_grad_(False)
    alpha = model.arm.gate.alpha.requires_grad_(True)  # only alpha: no memory for other gradients
    model.arm.grad_checkpointing = True
    features = model.arm.features(taps)
    generator = torch.Generator().manual_seed(seed)
    classifier = torch.randn(features.shape[1], 10, generator=generator) * features.shape[1] ** -0.5
    loss = F.cross_entropy(features @ classifier, torch.zeros(len(features), dtype=torch.long))
    (gradient,) = torch.autograd.grad(loss, alpha)
    model.arm.grad_checkpointing = False
    for parameter in trains:
        parameter.requires_grad_(True)
    return gradient.abs().item()


@torch.no_grad()
def position_rms(large: Backbone) -> float:
    """RMS that sines in time should have: that of the backbone's grid, or a quarter of its patches'."""
    if large.absolute:
        return rms(large.stem.position_grid())
    clip = natural_clip(1, large.size)
    image = normalise(clip, Input(mean=list(large.mean), std=list(large.std)))[:, :, 0]
    return rms(large.stem(image)[:, large.num_prefix_tokens :]) / 4


@torch.no_grad()
def tube_tokens(model: TubeViT, name: str, clip: Tensor) -> Tensor:
    """Tokens of one tube before positions, (B, N, D), of pixels in [0, 1]."""
    return model.tokenizer.tubes[name](normalise(clip, model.config.input))


@torch.no_grad()
def token_max_abs_diff(
    kernel: Kernel, donor: Donor, spec: TubeSpec, tokens: Tensor, clip: Tensor, map: Affine | None
) -> float:
    """A tube's tokens (B, N, D), channel block by channel block, against the small model's kernel at each place; or,
    where there is a ``map``, against what it makes of these."""
    x = normalise(clip, donor.config.input)
    blocks = [_at(kernel, x, place) for place in _places(spec, clip)]
    wanted = torch.stack(blocks, dim=1).unflatten(1, (-1, spec.places_per_token)).flatten(2)  # (B, N, f*c)
    wanted = map(wanted[..., : len(map.weight)]) if map is not None else wanted[..., : tokens.shape[-1]]
    return (tokens - wanted).abs().max().item()


def _places(spec: TubeSpec, clip: Tensor) -> Iterator[tuple[int, int, int]]:
    """Where the kernel is applied, token by token, and within a token in the order t, h, w."""
    axes = [starts.tolist() for starts in spec.places(clip.shape[2:])]  # type: ignore[arg-type]
    for token in ((t, h, w) for t in axes[0] for h in axes[1] for w in axes[2]):
        yield from ((t, h, w) for t in token[0] for h in token[1] for w in token[2])


def _at(kernel: Kernel, x: Tensor, place: tuple[int, int, int]) -> Tensor:
    """The small model's kernel at one place: (B, c)."""
    for dim, (first, length) in enumerate(zip(place, kernel.spec.kernel, strict=True), start=2):
        x = x.narrow(dim, first, length)
    return F.linear(x.flatten(1), kernel.weight.flatten(1), kernel.bias)


@torch.no_grad()
def backbone_rms(model: TubeViT, clip: Tensor) -> float:
    """RMS of the backbone's own patch tokens, positions taken off, over the frames that it sees."""
    x = normalise(clip, model.config.input)
    frame = x[:, :, model.config.frames.offset]
    stem = model.tokenizer.stem
    tokens = stem(frame)[:, model.tokenizer.num_prefix_tokens :] - stem.position_grid().flatten(0, 1)  # type: ignore[operator]
    return rms(tokens)


def rms(values: Tensor) -> float:
    return values.double().square().mean().sqrt().item()


IMAGES = 512  # to fit a map on; up to twice as many are read


def clip(clips: Path | Tensor | None, input: Input, count: int = 8) -> Tensor:
    """Pixels in [0, 1] (B, 3, T, H, W) of the adapted model's size: given, read from video shards, or made up."""
    if isinstance(clips, Tensor):
        return clips
    if clips is None:
        return natural_clip(input.frames, (input.size[0], input.size[1]))
    batch = next(iter(eval_loader(Shards.open(clips), {}, input, batch=count, workers=0)))
    if batch.modality != "video" or not batch.keys:
        raise UserError(f"{clips} holds no videos that can be read; --clips takes video shards")
    return batch.pixels[:, 0].float() / 255


def images(given: Path | Tensor, input: Input) -> Iterator[Tensor]:
    """Images in [0, 1] (B, 3, H, W) of the adapted model's size, from all over the shards; of a video its middle frame.

    Those that cannot be read are left out, and named on stderr.
    """
    if isinstance(given, Tensor):
        yield _stills(given)
        return
    shards = Shards.open(given)
    every = max(1, len(shards) // IMAGES)
    for batch in eval_loader(shards, {}, input, batch=16, workers=0, rank=0, world=every):
        if batch.keys:
            yield _stills(batch.pixels[:, 0].float() / 255)


def _stills(pixels: Tensor) -> Tensor:
    """Images (B, 3, H, W) as they are, of videos (B, 3, T, H, W) the middle frame."""
    return pixels if pixels.dim() == 4 else pixels[:, :, pixels.shape[2] // 2]

"""Measurements on an adapted model, which show that a transplant is right."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scaleup.backbones.backbone import Backbone
from scaleup.common.ridge import Affine
from scaleup.config.schema import Input
from scaleup.model.tokenizer import natural_clip, normalise
from scaleup.model.trunk import fill_on_call
from scaleup.model.tubes import TubeSpec
from scaleup.model.tubevit import TubeViT
from scaleup.transplants.donor import Donor, Kernel


@torch.no_grad()
def image_max_abs_diff(model: TubeViT, large: Backbone, images: Tensor, inputs: Any) -> float:
    """The largest difference of pooled features between the adapted model with a closed gate and the image model.

    Args:
        images: (B, 3, H, W), normalised for the backbone.
        inputs: what the adapted model's arm reads for these images.
    """
    with fill_on_call(large.blocks, large.block_file()):
        if large.positions is None:
            features = large.features(images)
        else:  # one of scaleup's own models, which adds its own positions
            config = replace(model.config, tubes={}, positions=large.positions, frozen_depth=0, gate=False, heads={})
            features = TubeViT.assemble(config, large).eval().forward_features(images)
    return (model.arm.features(inputs) - features).abs().max().item()


@torch.no_grad()
def closed_max_abs_diff(model: TubeViT, inputs: Any) -> float:
    """The largest difference of pooled features between an arm with a closed gate and the same arm without a gate."""
    gate, arm = model.arm.gate, model.arm
    closed = arm.features(inputs)
    arm.gate = None
    without = arm.features(inputs)
    arm.gate = gate
    return (closed - without).abs().max().item()


@torch.enable_grad()
def alpha_grad(model: TubeViT, inputs: Any) -> float:
    """|d loss / d alpha| with the gate closed; the loss is a cross entropy of random classes of the pooled features."""
    assert model.arm.gate is not None
    trained = [parameter for parameter in model.arm.parameters() if parameter.requires_grad]
    model.arm.requires_grad_(False)
    alpha = model.arm.gate.alpha.requires_grad_(True)  # only alpha: no memory for other gradients
    model.arm.grad_checkpointing = True
    features = model.arm.features(inputs)
    generator = torch.Generator().manual_seed(0)
    classifier = torch.randn(features.shape[1], 10, generator=generator) * features.shape[1] ** -0.5
    loss = F.cross_entropy(features @ classifier, torch.zeros(len(features), dtype=torch.long))
    (gradient,) = torch.autograd.grad(loss, alpha)
    model.arm.grad_checkpointing = False
    for parameter in trained:
        parameter.requires_grad_(True)
    return gradient.abs().item()


@torch.no_grad()
def position_rms(large: Backbone) -> float:
    """The RMS for sines in time: that of the backbone's position grid, or else a quarter of that of its patches."""
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
    """The largest difference of a tube's tokens from those of the small model's kernel.

    Each block of channels is compared with the kernel at one place. With a ``map``, tokens are compared with mapped
    tokens of the small model.

    Args:
        tokens: (B, N, D).
    """
    x = normalise(clip, donor.config.input)
    blocks = [_at(kernel, x, place) for place in _places(spec, clip)]
    expected = torch.stack(blocks, dim=1).unflatten(1, (-1, spec.places_per_token)).flatten(2)  # (B, N, f*c)
    expected = map(expected[..., : len(map.weight)]) if map is not None else expected[..., : tokens.shape[-1]]
    return (tokens - expected).abs().max().item()


def _places(spec: TubeSpec, clip: Tensor) -> Iterator[tuple[int, ...]]:
    """The places (t, h, w) of the kernel, token after token; within a token in the order t, h, w."""
    axes = [starts.tolist() for starts in spec.places(clip.shape[2:])]  # type: ignore[arg-type]
    for token in itertools.product(*axes):
        yield from itertools.product(*token)


def _at(kernel: Kernel, x: Tensor, place: tuple[int, ...]) -> Tensor:
    """The small model's kernel at one place: (B, c)."""
    for dim, (first, length) in enumerate(zip(place, kernel.spec.kernel, strict=True), start=2):
        x = x.narrow(dim, first, length)
    return F.linear(x.flatten(1), kernel.weight.flatten(1), kernel.bias)


@torch.no_grad()
def backbone_rms(model: TubeViT, clip: Tensor) -> float:
    """RMS of the backbone's own patch tokens of a frame, without positions."""
    frame = normalise(clip, model.config.input)[:, :, model.config.frames.offset]
    stem = model.tokenizer.stem
    tokens = stem(frame)[:, model.tokenizer.num_prefix_tokens :] - stem.position_grid().flatten(0, 1)  # type: ignore[operator]
    return rms(tokens)


def rms(values: Tensor) -> float:
    return values.double().square().mean().sqrt().item()

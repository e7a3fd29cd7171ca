"""Moving kernels: re-expressed for another normalisation, given another scale, or replaced for a control."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from scaleup.backbones.backbone import Backbone
from scaleup.checkpoint.model_directory import ModelConfig
from scaleup.config.schema import Input, Positions, Tube
from scaleup.model.build import describe
from scaleup.model.tubes import TubeSpec
from scaleup.model.tubevit import TubeViT
from scaleup.transplants.align import Alignment, align_kernels
from scaleup.transplants.donor import Donor, Kernel
from scaleup.transplants.transplant_plan import Plan


def refold(kernel: Kernel, given: Input, wanted: Input) -> tuple[Tensor, Tensor]:
    """The kernel and bias that give from input normalised as ``wanted`` what the small model gives from ``given``.

    W' = W * S/s for each input channel and b' = b + sum of W * (M - m)/s; exact for valid convolutions.
    """
    m, s, big_m, big_s = (
        torch.tensor(values, dtype=torch.float64)[:, None, None, None]
        for values in (given.mean, given.std, wanted.mean, wanted.std)
    )
    weight = kernel.weight.double()
    bias = kernel.bias.double() + (weight * ((big_m - m) / s)).sum(dim=(1, 2, 3, 4))
    return (weight * (big_s / s)).float(), bias.float()


def adapted_config(
    donor: Donor, backbone: Backbone, plans: list[Plan], seed: int, positions: Positions, gate_at: int
) -> ModelConfig:
    """The ``config.json`` of the adapted model, frozen and gated at block ``gate_at``."""
    given = donor.config.input
    return describe(
        backbone,
        seed,
        input=Input(given.frames, list(backbone.size), given.fps, list(backbone.mean), list(backbone.std)),
        frames=donor.config.frames,
        tubes={plan.spec.name: tube_config(plan.spec) for plan in plans},
        positions=positions,
        frozen_depth=gate_at,
        gate=True,
    )


def tube_config(spec: TubeSpec) -> Tube:
    """A tube's entry in ``config.json``."""
    kernel, stride, offset, fold = map(list, (spec.kernel, spec.stride, spec.offset, spec.fold))
    return Tube(kernel, stride, offset, fold, spec.channels, spec.summed)


def move(donor: Donor, config: ModelConfig, backbone: Backbone, alignment: Alignment | None) -> TubeViT:
    """The adapted model: the backbone, the small model's kernels, aligned or as they are, a closed gate."""
    model = TubeViT.assemble(config, backbone, config.backbone.seed)
    with torch.no_grad():
        for kernel in donor.kernels:
            weight, bias = refold(kernel, donor.config.input, config.input)
            tube = model.tokenizer.tubes[kernel.spec.name]
            if alignment is not None:
                weight, bias = align_kernels(weight, bias, alignment.map, tube.spec.places_per_token)
            tube.kernel.copy_(weight)
            tube.bias.copy_(bias)
    return model.eval()


def scale_tubes(model: TubeViT, factors: Mapping[str, float]) -> None:
    """Multiply the tokens of each tube, before positions, by a factor folded into its kernel."""
    with torch.no_grad():
        for name, factor in factors.items():
            tube = model.tokenizer.tubes[name]
            tube.kernel.mul_(factor)
            tube.bias.mul_(factor)


def randomise_tubes(model: TubeViT, seed: int) -> None:
    """Fresh kernels in place of the moved ones: the control of a transplant (scale them to the same RMS)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in model.tokenizer.tubes:
            tube = model.tokenizer.tubes[name]
            tube.kernel.copy_(torch.randn(tube.kernel.shape, generator=generator) / math.sqrt(tube.kernel[0].numel()))
            tube.bias.zero_()

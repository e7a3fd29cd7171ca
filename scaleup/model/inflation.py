"""Tubes whose kernels begin as the patches of an image model, inflated in time (Table 5)."""

from __future__ import annotations

import torch
from torch import nn

from scaleup.backbones.backbone import Backbone
from scaleup.errors import UserError
from scaleup.model.places import TubeSpec
from scaleup.model.tubes import TubeTokenizer


def inflate(tubes: TubeTokenizer, backbone: Backbone) -> None:
    """Give each tube the backbone's patch kernel in its central frame, zeros in all others, and the patches' bias.

    This is the central frame initialisation of ViViT (arXiv 2103.15691): at first a tube's token is the patch of its
    frame t // 2.

    Raises:
        UserError: patches are made in another way, there is no tube, or one is not as high and wide as a patch, is
            folded, emits other channels than these, or has no kernel of its own.
    """
    if not tubes.specs:
        raise UserError("model.inflate: True, but model.tubes has none to inflate")
    patch = patch_of(backbone.stem)
    if patch is None:
        raise UserError(f"the patches of {backbone.name} are not one convolution, which tubes begin as (model.inflate)")
    for spec in tubes.specs:
        _refuse_misfit(spec, backbone, tubes.shared is not None)
        tube = tubes[spec.name]
        with torch.no_grad():
            tube.kernel.zero_()
            tube.kernel[:, :, spec.kernel[0] // 2] = patch.weight  # (D, 3, h, w)
            if patch.bias is not None:
                tube.bias.copy_(patch.bias)


def patch_of(stem: nn.Module) -> nn.Conv2d | None:
    """The convolution that makes an image ViT's patches, where it is a single one."""
    found = [module for module in stem.modules() if isinstance(module, nn.Conv2d)]
    return found[0] if len(found) == 1 else None


def _refuse_misfit(spec: TubeSpec, backbone: Backbone, shared: bool) -> None:
    patch, width = tuple(backbone.patch_size), backbone.embed_dim
    other = spec.kernel[1:] != patch or spec.places_per_token > 1
    faults = {
        "shares an interpolated kernel": shared,
        f"has kernel {list(spec.kernel)} and fold {list(spec.fold)}": other,
        f"emits {spec.channels} channels": spec.channels not in (None, width),
    }
    if made := next((words for words, holds in faults.items() if holds), None):
        raise UserError(
            f"tube {spec.name!r} {made}, and cannot begin as a patch of {backbone.name} (model.inflate); allowed are "
            f"kernels [t, {patch[0]}, {patch[1]}] of its own that emit {width} channels, without fold"
        )

"""A timm model that the caller has built, as an adapted model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from scaleup.backbones import timm
from scaleup.backbones.backbone import Backbone, refuse_unless_plain
from scaleup.config.schema import Frames, Input, Positions, Tube
from scaleup.errors import UserError
from scaleup.model.build import describe
from scaleup.model.tubevit import TubeViT
from scaleup.transplants.measure import position_rms


def adapt(
    vit: nn.Module,
    tubes: Mapping[str, Tube],
    frozen_depth: int,
    gate: bool | str = True,
    heads: Mapping[str, Sequence[str]] | None = None,
    frames: int = 32,
    fps: float = 15.0,
    frame_stride: int = Frames.stride,
    kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> TubeViT:
    """Give an image ViT fresh tubes, a closed gate and heads (Section 3.6); its weights are shared, not copied.

    Args:
        vit: a plain ViT from ``timm.create_model``; its blocks below ``frozen_depth`` no longer take gradients.
        tubes: name -> tube; kernels are drawn from ``seed``. To move trained ones see :func:`scaleup.transplant`.
        frozen_depth: blocks that stay frozen; the gate adds at the output of the last of them (Equation 8).
        gate: True for one alpha, ``"channel"`` for one each channel, False for none.
        heads: name -> its classes.
        frames, fps: length of a clip in frames, and frames a second.
        frame_stride: every so many frames of a clip one passes through the ViT's own patches.
        kwargs: changes that were made to timm's architecture when ``vit`` was built (``depth=6``); a saved model is
            rebuilt with them.

    Returns:
        The model in eval mode. Videos are (B, 3, T, H, W) and images (B, 3, H, W), normalised with the ViT's own mean
        and std.

    Raises:
        UserError: the ViT is not plain, is another than its timm name and ``kwargs`` give, or the depth does not fit.
    """
    name: str = vit.pretrained_cfg["architecture"]  # type: ignore[index, assignment]
    refuse_unless_plain(vit, f"timm:{name}")
    backbone = timm.take_apart(_without_classifier(vit), f"timm:{name}")
    backbone.kwargs = dict(kwargs or {})
    _refuse_others(name, backbone)
    own = backbone.absolute or backbone.rotary
    amplitude = 2**0.5 * position_rms(backbone) if own else 1.0
    config = describe(
        backbone,
        seed,
        input=Input(frames, list(backbone.size), fps, list(backbone.mean), list(backbone.std)),
        frames=Frames(frame_stride),
        tubes=dict(tubes),
        positions=Positions("backbone" if own else "cosine", amplitude),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TubeViT.assemble(config, backbone, seed)
    classes = {head: list(names) for head, names in (heads or {}).items()}
    return model.with_arm(frozen_depth, gate, classes, seed).eval()


def _without_classifier(vit: nn.Module) -> nn.Module:
    """A shallow copy; the caller's model keeps its own."""
    made = copy.copy(vit)
    made._modules = {**vit._modules, "head": nn.Identity()}
    return made


def _refuse_others(name: str, backbone: Backbone) -> None:
    """UserError where timm's name and the changes give another model."""
    with torch.device("meta"):
        again = timm.take_apart(timm.create(name, backbone.kwargs, backbone.size), backbone.name).state_dict()
    given = {key: tensor.shape for key, tensor in backbone.state_dict().items()}
    if given != {key: tensor.shape for key, tensor in again.items()}:
        raise UserError(
            f"this ViT is not {name} with changes {backbone.kwargs}; give those that it was built with as kwargs, "
            "such as kwargs={'depth': 6}"
        )

"""The image model alone, in timm's own layout: for whoever wants its features and no videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

from scaleup.backbones import saved
from scaleup.backbones.backbone import resolve
from scaleup.errors import UserError
from scaleup.model.preprocess import natural_clip, normalise
from scaleup.model.tubevit import TubeViT
from scaleup.outputs.parity import medians


@torch.inference_mode()
def write(model: TubeViT, directory: Path) -> tuple[float, dict[str, Any]]:
    """Write what ``timm.create_model("local-dir:DIRECTORY")`` loads, and load it.

    Returns:
        The largest difference of the pooled features of an image from the model's; and ``{"seconds": {"image"},
        "eager_seconds"}``, what one takes there and in the model.

    Raises:
        UserError: timm has no model that computes the same, and why.
    """
    name = _refuse_what_timm_lacks(model)
    size, input = model.preprocess.size, model.config["input"]
    kwargs, tensors = model.config["backbone"]["kwargs"], model.named_tensors()
    saved.save(directory, name, kwargs, size, tensors, input["mean"], input["std"])
    image = normalise(natural_clip(1, size), model.config)[:, :, 0]
    differs = (saved.features(directory, image) - model.forward_features(image)).abs().max().item()
    theirs = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    seconds, eager = medians(lambda: theirs(image), lambda: model.forward_features(image))
    return differs, {"seconds": {"image": seconds}, "eager_seconds": {"image": eager}}


def _refuse_what_timm_lacks(model: TubeViT) -> str:
    """timm's name of the architecture."""
    library, _, name = resolve(model.config["backbone"]["name"]).partition(":")
    gate, reason = model.arm.gate, None
    if library != "timm":
        reason = f"its backbone is one of {library}"
    elif model.config["adapter"]:
        reason = "it has an adapter; add --merge"
    elif gate is not None and gate.alpha.any():
        most = gate.alpha.tanh().abs().max().item()
        reason = f"its gate is open (tanh(alpha) = {most:.3f}) and adds z0 to a block's output"
    elif model.config["positions"]["kind"] != "backbone":
        reason = f"its positions ({model.config['positions']['kind']}) are not the backbone's own"
    if reason:
        raise UserError(f"timm's layout cannot hold this model: {reason}")
    return name

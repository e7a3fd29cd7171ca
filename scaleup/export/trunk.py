"""The image model alone, in timm's own layout: for whoever wants its features and no videos."""

from __future__ import annotations

from pathlib import Path

import torch

from scaleup import checkpoint
from scaleup.backbones import resolve, saved
from scaleup.errors import UserError
from scaleup.model import TubeViT
from scaleup.transplant.measure import natural_clip, normalise


@torch.inference_mode()
def write(model: TubeViT, directory: Path) -> float:
    """Write what ``timm.create_model("local-dir:DIRECTORY")`` loads, and load it.

    Returns:
        The largest difference of the pooled features of an image from the model's.

    Raises:
        UserError: timm has no model that computes the same, and why.
    """
    name = _refuse_what_timm_lacks(model)
    size, input = model.preprocess.size, model.config["input"]
    kwargs, tensors = model.config["backbone"]["kwargs"], checkpoint.named_tensors(model)
    saved.save(directory, name, kwargs, size, tensors, input["mean"], input["std"])
    image = normalise(natural_clip(1, size), model.config)[:, :, 0]
    return (saved.features(directory, image) - model.forward_features(image)).abs().max().item()


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

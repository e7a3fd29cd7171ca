"""Small models to transplant from, and large ones to transplant into, on disk."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from scaleup.config import schema
from scaleup.model.build import fresh
from scaleup.model.tubevit import TubeViT

TUBES = {
    "long": schema.Tube([8, 4, 4], [8, 8, 8]),
    "wide": schema.Tube([2, 8, 6], [4, 8, 8], [1, 0, 2]),
}
LARGE: dict[str, Any] = {"patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 2}


def small_model(width: int = 24, tubes: dict[str, schema.Tube] | None = None, **parts: Any) -> TubeViT:
    """A trained small model: no tensor as it was drawn."""
    settings = schema.Model(
        backbone=schema.Backbone(
            "timm:vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": width, "depth": 1, "num_heads": 2}
        ),
        input=schema.Input(frames=16, size=[32, 32], fps=6.0, mean=[0.2, 0.5, 0.6], std=[0.3, 0.2, 0.4]),
        frames=schema.Frames(stride=8),
        tubes=tubes or TUBES,
        **parts,
    )
    model = fresh(settings, {"shape": ["a", "b"]}, 3).eval()
    torch.manual_seed(5)
    for tensor in model.parameters():
        nn.init.normal_(tensor, 0.05, 0.2)
    return model


def large_directory(path: Path, **kwargs: Any) -> Path:
    """A large model as timm saves it."""
    torch.manual_seed(9)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=(32, 40), **LARGE, **kwargs)
    for tensor in vit.parameters():
        nn.init.normal_(tensor, 0.1, 0.2)
    timm.models.save_for_hf(vit, path, safe_serialization=True)
    return path

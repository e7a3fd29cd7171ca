"""An image ViT in the directory that timm itself saves and loads: ``timm.create_model("local-dir:DIRECTORY")``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from timm.models import save_for_hf
from torch import Tensor

from scaleup.backbones.timm import create
from scaleup.common.files import let_read


def save(
    directory: Path,
    name: str,
    kwargs: Mapping[str, Any],
    size: tuple[int, int],
    tensors: Mapping[str, Tensor],
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Write ``config.json`` and ``model.safetensors`` of timm's model ``name``, without classifier.

    Args:
        kwargs: changes to the architecture, in timm's words.
        size: of the input, (h, w).
        tensors: by timm's names; what the model has no place for is left out.
    """
    vit = create(name, dict(kwargs), size)
    own = vit.state_dict()
    vit.load_state_dict({key: tensor for key, tensor in tensors.items() if key in own})  # strict: nothing is missing
    fed = {"input_size": (3, *size), "mean": tuple(mean), "std": tuple(std)}
    save_for_hf(vit, str(directory), {"pretrained_cfg": fed}, safe_serialization=True)
    let_read(directory / "model.safetensors")  # safetensors writes for the owner alone


def features(directory: Path, images: Tensor) -> Tensor:
    """Pooled features (B, D) that timm gets for images (B, 3, H, W) from a directory that it loads."""
    vit: Any = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    return vit.forward_head(vit.forward_features(images), pre_logits=True)

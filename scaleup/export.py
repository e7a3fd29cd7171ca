"""Adapted models in the forms that others load; parity is measured before success is said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from scaleup import checkpoint
from scaleup.errors import UserError, nearest
from scaleup.files import refuse_existing
from scaleup.model import TubeViT
from scaleup.transplant.measure import natural_clip, normalise

TARGETS = ("delta", "full")


def export(
    source: str | Path, to: str, out: str | Path, base: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Write a model as a ``delta`` or a ``full`` directory, read it back, and compare the two.

    Args:
        base: where the backbone's weights are now, if not where they were.

    Returns:
        ``{"to", "out", "bytes", "image_max_abs_diff", "video_max_abs_diff"}``.

    Raises:
        UserError: an unknown target, a model that the target cannot hold, or a result that differs.
    """
    if to not in TARGETS:
        raise UserError(f"unknown target {to!r}; allowed are {', '.join(TARGETS)}{nearest(to, TARGETS)}")
    out = Path(out)
    refuse_existing(out, overwrite)
    model = checkpoint.load(source, base)
    if to == "delta" and not model.base:
        model.base = checkpoint.base_of(model.config, base)
    checkpoint.save(model, out, to, overwrite=overwrite)
    image, video = parity(model, checkpoint.load(out, base))
    if image or video:
        shutil.rmtree(out)
        raise UserError(f"{out} differs from {source} by {max(image, video):.1e}, where it must not; it was removed")
    size = sum(file.stat().st_size for file in out.iterdir())
    return {"to": to, "out": str(out), "bytes": size, "image_max_abs_diff": image, "video_max_abs_diff": video}


@torch.inference_mode()
def parity(one: TubeViT, other: TubeViT) -> tuple[float, float]:
    """Largest difference of the features and of every head's logits, on an image and on a video."""
    video = normalise(natural_clip(one.preprocess.frames, one.preprocess.size), one.config)
    return _difference(one, other, video[:, :, 0]), _difference(one, other, video)


def _difference(one: TubeViT, other: TubeViT, x: torch.Tensor) -> float:
    a, b = one.forward_features(x), other.forward_features(x)
    pairs = [(a, b), *((one.arm.heads[head](a), other.arm.heads[head](b)) for head in one.arm.heads)]
    return max((left - right).abs().max().item() for left, right in pairs)

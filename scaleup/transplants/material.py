"""The clips and images that a transplant is measured on and fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from scaleup.config.schema import Input
from scaleup.data.loader import eval_loader
from scaleup.data.shards import Shards
from scaleup.errors import UserError
from scaleup.model.preprocess import natural_clip

IMAGES = 512  # to fit a map on; up to twice as many are read


def clip(clips: Path | Tensor | None, config: Mapping[str, Any], count: int = 8) -> Tensor:
    """Pixels in [0, 1] (B, 3, T, H, W) of the adapted model's size: given, read from video shards, or made up."""
    if isinstance(clips, Tensor):
        return clips
    if clips is None:
        return natural_clip(config["input"]["frames"], config["input"]["size"])
    batch = next(iter(eval_loader(Shards.open(clips), {}, Input(**config["input"]), batch=count, workers=0)))
    if batch.modality != "video" or not batch.keys:
        raise UserError(f"{clips} holds no videos that can be read; --clips takes video shards")
    return batch.pixels[:, 0].float() / 255


def images(given: Path | Tensor, config: Mapping[str, Any]) -> Iterator[Tensor]:
    """Images in [0, 1] (B, 3, H, W) of the adapted model's size, from all over the shards; of a video its middle frame.

    Those that cannot be read are left out, and named on stderr.
    """
    if isinstance(given, Tensor):
        yield _stills(given)
        return
    shards = Shards.open(given)
    every = max(1, len(shards) // IMAGES)
    for batch in eval_loader(shards, {}, Input(**config["input"]), batch=16, workers=0, rank=0, world=every):
        if batch.keys:
            yield _stills(batch.pixels[:, 0].float() / 255)


def _stills(pixels: Tensor) -> Tensor:
    """Images (B, 3, H, W) as they are, of videos (B, 3, T, H, W) the middle frame."""
    return pixels if pixels.dim() == 4 else pixels[:, :, pixels.shape[2] // 2]

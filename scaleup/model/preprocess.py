"""Pixels as a model's input: normalised, or made up with the spectrum of natural video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Preprocess:
    """What pixels must have been through: clips of ``frames`` frames at ``fps``, ``size`` (h, w), mean and std."""

    def __init__(self, frames: int, size: list[int], fps: float, mean: list[float], std: list[float]) -> None:
        self.frames, self.size, self.fps = frames, (size[0], size[1]), fps
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 pixels (B, 3, ...) -> normalised float32 of the same shape."""
        shape = (3,) + (1,) * (pixels.dim() - 2)
        scale = 1 / (255 * torch.tensor(self.std, device=pixels.device).view(shape))
        shift = -torch.tensor(self.mean, device=pixels.device).view(shape) * 255 * scale
        return pixels.to(torch.float32, copy=True).mul_(scale).add_(shift)  # in place: clips are large


def natural_clip(frames: int, size: tuple[int, int], count: int = 1, seed: int = 0) -> Tensor:
    """A made-up clip in [0, 1] with the falling spectrum of natural video: (count, 3, T, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (frames, *size)
    clip = torch.zeros(count, 3, *shape)
    for octave in range(6):
        coarse = [max(2, length >> (5 - octave)) for length in shape]
        noise = torch.randn(count, 3, *coarse, generator=generator)
        clip += F.interpolate(noise, size=shape, mode="trilinear") / 2**octave
    return (0.5 + 0.2 * clip).clamp(0, 1)


def normalise(clip: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Pixels in [0, 1] (B, 3, T, H, W) as a model's input."""
    mean, std = (torch.tensor(config["input"][key])[:, None, None, None] for key in ("mean", "std"))
    return (clip - mean) / std

"""From pixels to the tokens that enter the first block: the backbone's own patches, tubes, and where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaleup.backbones.backbone import Backbone
from scaleup.errors import UserError, nearest
from scaleup.model.places import Size, TubeSpec
from scaleup.model.positions import Context, Fixed, Learned, Relative, in_patches, sample_grid, time_table
from scaleup.model.tubes import TubeTokenizer


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


def size_of(x: Tensor) -> Size:
    """(T, H, W) of images (B, 3, H, W), where T is 1, or videos (B, 3, T, H, W)."""
    return (1, *x.shape[2:]) if x.dim() == 4 else tuple(x.shape[2:])  # type: ignore[return-value]


class Tokenizer(nn.Module):
    """Images or videos to tokens with positions: the backbone's own patches, and tubes for videos."""

    def __init__(self, config: Mapping[str, Any], backbone: Backbone) -> None:
        super().__init__()
        self.stem: Any = backbone.stem
        self.num_prefix_tokens = backbone.num_prefix_tokens
        self.embed_dim, patch = backbone.embed_dim, backbone.patch_size
        frames, size = config["frames"], (config["input"]["frames"], *config["input"]["size"])
        self.frames = TubeSpec("frames", (1, *patch), (frames["stride"], *patch), (frames["offset"], 0, 0))
        self.image = TubeSpec("frames", (1, *patch), (1, *patch))
        specs = [TubeSpec.from_config(name, tube) for name, tube in config["tubes"].items()]
        self.tubes = TubeTokenizer(specs, self.embed_dim, config["interpolate"])
        self.kind, self.amplitude = config["positions"]["kind"], config["positions"]["amplitude"]
        self.positions: nn.Module | None = None
        if self.kind.startswith("cosine"):
            self.positions = Fixed(self.embed_dim, self.amplitude, stride=self.kind == "cosine")
        elif self.kind == "learned":
            self.positions = Learned([self.frames, *specs], size, self.embed_dim)
        elif self.kind == "relative":
            if not backbone.attn_mask:
                raise UserError(f"the attention of {backbone.name} takes no bias; choose positions other than relative")
            self.positions = Relative(backbone.num_heads)

    def specs(self, size: Size) -> list[TubeSpec]:
        """What reads an input of this size: an image (T = 1) takes the image tokenizer alone."""
        return [self.image] if size[0] == 1 else [self.frames, *self.tubes.specs]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, T, H, W) or (B, 3, H, W) -> z0 (B, P+N, D): prefix tokens, then frames, then tubes."""
        size = size_of(x)
        z0 = self.stem(x.reshape(x.shape[0], 3, *size[1:])) if size[0] == 1 else self._video_tokens(x, size)
        positions = [table for spec in self.specs(size) if (table := self._table(spec, size)) is not None]
        if positions:
            prefix, tokens = z0.split((self.num_prefix_tokens, z0.shape[1] - self.num_prefix_tokens), dim=1)
            table = torch.cat([each.to(tokens) for each in positions])
            z0 = torch.cat([prefix, tokens + table], dim=1)
        return self.stem.norm_pre(z0)

    def restride(self, strides: Mapping[str, Sequence[int]]) -> None:
        """Give tubes, or ``frames``, another stride (t, h, w): smaller ones give more tokens (Table 7d).

        Raises:
            UserError: there is no such tube, or a stride is not three positive numbers.
        """
        names = ["frames", *self.tubes]
        for name, stride in strides.items():
            if name not in names:
                raise UserError(f"there is no tube {name!r}; allowed are {', '.join(names)}{nearest(name, names)}")
            if len(stride) != 3 or min(stride) < 1:
                raise UserError(f"the stride of {name!r} is {list(stride)}; allowed are three positive numbers t, h, w")
            if name == "frames":
                self.frames = replace(self.frames, stride=(stride[0], *self.frames.stride[1:]))
            else:
                self.tubes[name].spec = replace(self.tubes[name].spec, stride=tuple(stride))  # type: ignore[arg-type]

    def context(self, size: Size) -> Context:
        """What every block is told beside z0: relative positions as a bias, the backbone's rotary angles."""
        bias, rope = None, None
        if isinstance(self.positions, Relative):
            centres = torch.cat([spec.centres(size) for spec in self.specs(size)])
            bias = self.positions(centres.to(self.positions.tables), self.num_prefix_tokens)
        if (patches := self.stem.rope_grid()) is not None:
            rope = torch.cat([self._rope(spec, size, patches) for spec in self.specs(size)], dim=-2)
        return Context(bias, rope)

    def _rope(self, spec: TubeSpec, size: Size, patches: Tensor) -> Tensor:
        """Rotary sines and cosines (..., N, 2d) of a tube, at its spatial centres; patches keep the backbone's own."""
        if spec in (self.frames, self.image):
            return patches.repeat(*[1] * (patches.dim() - 2), spec.grid(size)[0], 1)
        centres = spec.centres(size)[:, 1:].to(patches)
        return self.stem.rope_at(in_patches(centres, self.image.kernel[1:]))

    def _video_tokens(self, x: Tensor, size: Size) -> Tensor:
        shape = (x.shape[0], self.frames.count(0, size[0]))  # (B, nt)
        images = x[:, :, self.frames.offset[0] :: self.frames.stride[0]].transpose(1, 2)  # (B, nt, 3, H, W)
        tokens = self.stem(images.flatten(0, 1)).unflatten(0, shape)  # (B, nt, P+Np, D)
        prefix, frames = tokens[:, 0, : self.num_prefix_tokens], tokens[:, :, self.num_prefix_tokens :].flatten(1, 2)
        tubes = [self.tubes(x)] if self.tubes.specs else []
        return torch.cat([prefix, frames, *tubes], dim=1)

    def _table(self, spec: TubeSpec, size: Size) -> Tensor | None:
        """What is added to the tokens of a tube or of the frames: (N, D), or None."""
        if isinstance(self.positions, Fixed | Learned):
            return self.positions(spec, size)
        if self.kind != "backbone" or size[0] == 1:
            return None  # an image keeps what the backbone itself adds
        table = self.amplitude * time_table(spec, size, self.embed_dim)
        if spec is self.frames:
            return table
        grid = self.stem.position_grid()
        space = sample_grid(grid, spec.centres(size)[:, 1:].to(grid), self.image.kernel[1:])
        return table.to(space) + space

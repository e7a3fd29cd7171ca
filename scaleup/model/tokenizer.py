"""Turns pixels into the tokens that enter the first block: the backbone's own patches, tubes, and positions.

Positions (paper, Section 3.3 and Table 7a) have coordinates (t, h, w) in frames and pixels; images have t = 0. The
kinds: ``cosine`` (the paper's: sines of the centre of a token's pixels), ``cosine_no_stride`` (sines of a token's
index in its grid), ``learned`` (a table), ``relative`` (a bias of the attention), ``none``, and ``backbone`` (the image
model's own; sines in time for videos).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaleup.backbones.backbone import Backbone
from scaleup.checkpoint.model_directory import ModelConfig
from scaleup.common.errors import UserError, nearest
from scaleup.common.tensors import constant
from scaleup.config.schema import Input, Positions
from scaleup.model.tubes import Size, TubeSpec, TubeTokenizer, cached, centres

KINDS: tuple[str, ...] = get_args(get_type_hints(Positions)["kind"])
SINES = ("cosine", "cosine_no_stride", "backbone")  # kinds with an amplitude
BASE = 10_000.0


class Context(NamedTuple):
    """What blocks get beside the tokens: relative and rotary positions."""

    attn_mask: Tensor | None = None  # bias of the attention (1, heads, P+N, P+N)
    rope: Tensor | None = None  # rotary sines and cosines (N, 2d), or (depth, heads, N, 2d)

    def to(self, dtype: torch.dtype) -> Context:
        """The context for tokens of another precision. (With float32 angles, queries and keys would be turned in
        float32, and take twice the memory.)"""
        return Context(*(None if each is None else each.to(dtype) for each in self))

    def at(self, block: int) -> dict[str, Tensor]:
        """Keyword arguments of block number ``block``, counted from 0."""
        rope = self.rope[block] if self.rope is not None and self.rope.dim() == 4 else self.rope
        context = {"attn_mask": self.attn_mask, "rope": rope}
        return {name: tensor for name, tensor in context.items() if tensor is not None}


def cosine(coordinates: Tensor, dim: int) -> Tensor:
    """Equations 3 to 7 for coordinates (N, A): -> (N, dim), sine and cosine of each axis for each wavelength.

    With A axes there are dim // 2A wavelengths, w_j = 1 / 10000^(j / (dim // 2A)); channels 2Aj to 2A(j+1) hold those
    of w_j. Channels that are left where 2A does not divide dim are zero.
    """
    axes = coordinates.shape[1]
    count = dim // (2 * axes)
    wavelengths = BASE ** -(torch.arange(count, dtype=torch.float64) / max(count, 1))
    angles = coordinates.double()[:, None, :] * wavelengths[:, None]  # (N, J, A)
    table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # (N, 2AJ)
    return F.pad(table, (0, dim - table.shape[1])).float()


def sample_grid(grid: Tensor, centres: Tensor, patch: tuple[int, int]) -> Tensor:
    """A grid of position embeddings (gh, gw, D) at spatial centres (N, 2) in pixels, bilinear: -> (N, D)."""
    last = constant((grid.shape[0] - 1, grid.shape[1] - 1), centres.device).to(centres)
    places = in_patches(centres, patch).clamp(min=0).minimum(last)
    low = places.floor()
    share = (places - low).to(grid)
    rows, columns = (
        [(low[:, axis].long(), 1 - share[:, axis]), ((low + 1).minimum(last)[:, axis].long(), share[:, axis])]
        for axis in range(2)
    )
    corners = [grid[y, x] * (of_y * of_x)[:, None] for y, of_y in rows for x, of_x in columns]
    return sum(corners[1:], corners[0])


def in_patches(centres: Tensor, patch: tuple[int, int]) -> Tensor:
    """Spatial centres (N, 2) in pixels -> in patches; the centre of the first patch is 0."""
    sides = constant(patch, centres.device).to(centres)
    return (centres - (sides - 1) / 2) / sides


@cached
def sine_table(spec: TubeSpec, size: Size, dim: int, kind: str, device: torch.device) -> Tensor:
    """Sines (N, dim) for a tube's tokens: of their centres, of their indices in the tube's grid
    (``cosine_no_stride``), or of their time only (``backbone``)."""
    if kind == "cosine_no_stride":
        places = torch.cartesian_prod(*(torch.arange(count) for count in spec.grid(size))).reshape(-1, 3)
    else:
        places = spec.centres(size)[:, : 1 if kind == "backbone" else 3]
    return cosine(places, dim).to(device)


class Learned(nn.Module):
    """A learned table for each tube, of the training size; for other sizes it is resampled (trilinear)."""

    def __init__(self, specs: list[TubeSpec], size: Size, embed_dim: int) -> None:
        super().__init__()
        self.tables = nn.ParameterDict(
            {spec.name: nn.Parameter(0.02 * torch.randn(embed_dim, *spec.grid(size))) for spec in specs}
        )

    def forward(self, spec: TubeSpec, size: Size) -> Tensor:
        """Positions of a tube's tokens: (N, D)."""
        table, grid = self.tables[spec.name], spec.grid(size)  # (D, nt, nh, nw)
        if size[0] == 1:
            table = table[:, :1]  # an image has the positions of a video's first frame
        if isinstance(size[0], torch.SymInt) or table.shape[1:] != grid:
            table = F.interpolate(table[None], size=grid, mode="trilinear", align_corners=False)[0]
        return table.flatten(1).T


class Relative(nn.Module):
    """An attention bias for each head, from the distance of two tokens along each axis, in logarithmic bins."""

    BINS = 16  # on each side of zero; each doubling of the distance has two bins

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.tables = nn.Parameter(torch.zeros(3, 2 * self.BINS + 1, num_heads))

    def forward(self, centres: Tensor, num_prefix_tokens: int) -> Tensor:
        """The bias for tokens at centres (N, 3), which is 0 for prefix tokens: (1, heads, P+N, P+N)."""
        distance = centres[None] - centres[:, None]  # (N, N, 3)
        bins = (distance.sign() * 2 * distance.abs().log1p() / torch.log(torch.tensor(2.0))).round().long()
        bins = bins.clamp(-self.BINS, self.BINS) + self.BINS
        bias = sum(self.tables[axis][bins[..., axis]] for axis in range(3))  # (N, N, heads)
        prefix = num_prefix_tokens
        return F.pad(bias.permute(2, 0, 1), (prefix, 0, prefix, 0))[None]  # type: ignore[union-attr]


class Preprocess:
    """The input that a model needs: clips of ``frames`` frames at ``fps``, ``size`` (h, w), mean and std."""

    def __init__(self, input: Input) -> None:
        self.frames, self.size, self.fps = input.frames, (input.size[0], input.size[1]), input.fps
        self.mean, self.std = tuple(input.mean), tuple(input.std)

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 pixels (B, 3, ...) -> normalised float32 of the same shape."""
        shape = (3,) + (1,) * (pixels.dim() - 2)
        mean, std = (constant(values, pixels.device).view(shape) for values in (self.mean, self.std))
        scale = 1 / (255 * std)
        shift = -mean * 255 * scale
        return pixels.to(torch.float32, copy=True).mul_(scale).add_(shift)  # in place: clips are large


def natural_clip(frames: int, size: tuple[int, int], count: int = 1) -> Tensor:
    """Random clips in [0, 1] with the spectrum of natural video, which falls with frequency: (count, 3, T, H, W)."""
    generator = torch.Generator().manual_seed(0)
    shape = (frames, *size)
    clip = torch.zeros(count, 3, *shape)
    for octave in range(6):
        coarse = [max(2, length >> (5 - octave)) for length in shape]
        noise = torch.randn(count, 3, *coarse, generator=generator)
        clip += F.interpolate(noise, size=shape, mode="trilinear") / 2**octave
    return (0.5 + 0.2 * clip).clamp(0, 1)


def normalise(clip: Tensor, input: Input) -> Tensor:
    """Pixels in [0, 1] (B, 3, T, H, W) as a model's input."""
    mean, std = (torch.tensor(values)[:, None, None, None] for values in (input.mean, input.std))
    return (clip - mean) / std


def size_of(x: Tensor) -> Size:
    """(T, H, W) of images (B, 3, H, W), where T is 1, or videos (B, 3, T, H, W)."""
    return (1, *x.shape[2:]) if x.dim() == 4 else tuple(x.shape[2:])  # type: ignore[return-value]


class Tokenizer(nn.Module):
    """Images or videos to tokens with positions: the backbone's own patches, and tubes for videos."""

    def __init__(self, config: ModelConfig, backbone: Backbone) -> None:
        super().__init__()
        self.stem: Any = backbone.stem
        self.num_prefix_tokens = backbone.num_prefix_tokens
        self.embed_dim, patch = backbone.embed_dim, backbone.patch_size
        frames, (height, width) = config.frames, config.input.size
        self.frames = TubeSpec("frames", (1, *patch), (frames.stride, *patch), (frames.offset, 0, 0))
        self.image = TubeSpec("frames", (1, *patch), (1, *patch))
        specs = [TubeSpec.from_config(name, tube) for name, tube in config.tubes.items()]
        self.tubes = TubeTokenizer(specs, self.embed_dim, config.interpolate)
        self.kind, self.amplitude = config.positions.kind, config.positions.amplitude
        self.positions: nn.Module | None = None  # where they have parameters
        if self.kind == "learned":
            self.positions = Learned([self.frames, *specs], (config.input.frames, height, width), self.embed_dim)
        elif self.kind == "relative":
            if not backbone.attn_mask:
                raise UserError(f"the attention of {backbone.name} takes no bias; choose positions other than relative")
            self.positions = Relative(backbone.num_heads)

    def specs(self, size: Size) -> list[TubeSpec]:
        """The tubes that read an input of this size: none for an image (T = 1)."""
        return [self.image] if size[0] == 1 else [self.frames, *self.tubes.specs]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, T, H, W) or (B, 3, H, W) -> z0 (B, P+N, D): prefix tokens, then frames, then tubes."""
        size = size_of(x)
        z0 = self.stem(x.reshape(x.shape[0], 3, *size[1:])) if size[0] == 1 else self._video_tokens(x, size)
        positions = [table for spec in self.specs(size) if (table := self._table(spec, size, x.device)) is not None]
        if positions:
            prefix, tokens = z0.split((self.num_prefix_tokens, z0.shape[1] - self.num_prefix_tokens), dim=1)
            positions = [table.to(tokens) for table in positions]
            z0 = torch.cat([prefix, tokens + torch.cat(positions)], dim=1)
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
        """The context of all blocks: relative positions as a bias, the backbone's rotary angles."""
        bias, rope = None, None
        if isinstance(self.positions, Relative):
            tables = self.positions.tables
            places = torch.cat([centres(spec, size, tables.device) for spec in self.specs(size)])
            bias = self.positions(places.to(tables), self.num_prefix_tokens)
        if (patches := self.stem.rope_grid()) is not None:
            rope = torch.cat([self._rope(spec, size, patches) for spec in self.specs(size)], dim=-2)
        return Context(bias, rope)

    def _rope(self, spec: TubeSpec, size: Size, patches: Tensor) -> Tensor:
        """Rotary sines and cosines (..., N, 2d) of a tube, at its spatial centres; patches keep the backbone's own."""
        if spec in (self.frames, self.image):
            return patches.repeat(*[1] * (patches.dim() - 2), spec.grid(size)[0], 1)
        places = centres(spec, size, patches.device)[:, 1:].to(patches)
        return self.stem.rope_at(in_patches(places, self.image.kernel[1:]))

    def _video_tokens(self, x: Tensor, size: Size) -> Tensor:
        shape = (x.shape[0], self.frames.count(0, size[0]))  # (B, nt)
        images = x[:, :, self.frames.offset[0] :: self.frames.stride[0]].transpose(1, 2)  # (B, nt, 3, H, W)
        tokens = self.stem(images.flatten(0, 1)).unflatten(0, shape)  # (B, nt, P+Np, D)
        prefix, frames = tokens[:, 0, : self.num_prefix_tokens], tokens[:, :, self.num_prefix_tokens :].flatten(1, 2)
        tubes = [self.tubes(x)] if self.tubes.specs else []
        return torch.cat([prefix, frames, *tubes], dim=1)

    def _table(self, spec: TubeSpec, size: Size, device: torch.device) -> Tensor | None:
        """The positions that are added to the tokens of a tube or of the frames: (N, D), or None."""
        if isinstance(self.positions, Learned):
            return self.positions(spec, size)
        if self.kind in ("none", "relative"):
            return None
        if self.kind == "backbone" and size[0] == 1:
            return None  # an image has the positions that the backbone itself adds
        table = self.amplitude * sine_table(spec, size, self.embed_dim, self.kind, device)
        if self.kind != "backbone" or spec is self.frames:
            return table
        grid = self.stem.position_grid()
        space = sample_grid(grid, centres(spec, size, device)[:, 1:].to(grid), self.image.kernel[1:])
        return table.to(space) + space

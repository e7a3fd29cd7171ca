"""Where tokens are (paper, Section 3.3 and Table 7a).

Coordinates are (t, h, w) in frames and pixels; an image lies at t = 0. The kinds: ``cosine`` (the paper's: sines at the
centre of what a token covers), ``cosine_no_stride`` (sines of a token's index in its grid), ``learned`` (a table),
``relative`` (a bias of the attention), ``none``, and ``backbone`` (the image model's own; sines in time for videos).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaleup.model.places import Size, TubeSpec, kept

KINDS = ("cosine", "cosine_no_stride", "learned", "relative", "none", "backbone")
BASE = 10_000.0


class Context(NamedTuple):
    """What blocks are told of where tokens are, beside the tokens themselves."""

    attn_mask: Tensor | None = None  # bias of the attention (1, heads, P+N, P+N)
    rope: Tensor | None = None  # rotary sines and cosines (N, 2d), or (depth, heads, N, 2d)

    def to(self, dtype: torch.dtype) -> Context:
        """For tokens of another precision: the bias follows them; rotary angles stay exact."""
        return self if self.attn_mask is None else self._replace(attn_mask=self.attn_mask.to(dtype))

    def at(self, block: int) -> dict[str, Tensor]:
        """Keyword arguments of block number ``block``, counted from 0."""
        rope = self.rope[block] if self.rope is not None and self.rope.dim() == 4 else self.rope
        given = {"attn_mask": self.attn_mask, "rope": rope}
        return {name: tensor for name, tensor in given.items() if tensor is not None}


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


def indices(spec: TubeSpec, size: Size) -> Tensor:
    """Each token's index in its tube's grid: (N, 3)."""
    return torch.cartesian_prod(*(torch.arange(count) for count in spec.grid(size))).reshape(-1, 3)


def sample_grid(grid: Tensor, centres: Tensor, patch: tuple[int, int]) -> Tensor:
    """A grid of position embeddings (gh, gw, D) at spatial centres (N, 2) in pixels, bilinear: -> (N, D)."""
    height, width = grid.shape[:2]
    patches = in_patches(centres, patch)
    extent = torch.tensor([max(height - 1, 1), max(width - 1, 1)]).to(centres)
    points = (2 * patches / extent - 1).flip(-1).to(grid)  # grid_sample takes (x, y) in [-1, 1]
    sampled = F.grid_sample(
        grid.permute(2, 0, 1)[None], points[None, None], mode="bilinear", padding_mode="border", align_corners=True
    )  # (1, D, 1, N)
    return sampled[0, :, 0].T


def in_patches(centres: Tensor, patch: tuple[int, int]) -> Tensor:
    """Spatial centres (N, 2) in pixels, counted in patches; the first patch's centre lies at 0."""
    sides = torch.tensor(patch).to(centres)
    return (centres - (sides - 1) / 2) / sides


@kept
def time_table(spec: TubeSpec, size: Size, dim: int) -> Tensor:
    """Sines of the time of a tube's tokens: (N, dim)."""
    return cosine(spec.centres(size)[:, :1], dim)


@kept
def space_time_table(spec: TubeSpec, size: Size, dim: int, stride: bool) -> Tensor:
    """Sines of where a tube's tokens are, or of their place in the tube's grid (no stride): (N, dim)."""
    return cosine(spec.centres(size) if stride else indices(spec, size), dim)


class Fixed(nn.Module):
    """Sines of each token's coordinates; without parameters."""

    def __init__(self, embed_dim: int, amplitude: float, stride: bool) -> None:
        super().__init__()
        self.embed_dim, self.amplitude, self.stride = embed_dim, amplitude, stride

    def forward(self, spec: TubeSpec, size: Size) -> Tensor:
        """Positions of a tube's tokens: (N, D)."""
        return self.amplitude * space_time_table(spec, size, self.embed_dim, self.stride)


class Learned(nn.Module):
    """A table for each tube, learned at the size of training, resampled (trilinear) at any other."""

    def __init__(self, specs: list[TubeSpec], size: Size, embed_dim: int) -> None:
        super().__init__()
        self.tables = nn.ParameterDict(
            {spec.name: nn.Parameter(0.02 * torch.randn(embed_dim, *spec.grid(size))) for spec in specs}
        )

    def forward(self, spec: TubeSpec, size: Size) -> Tensor:
        """Positions of a tube's tokens: (N, D)."""
        table, grid = self.tables[spec.name], spec.grid(size)  # (D, nt, nh, nw)
        if size[0] == 1:
            table = table[:, :1]  # an image lies where a video's first frame does
        if isinstance(size[0], torch.SymInt) or table.shape[1:] != grid:
            table = F.interpolate(table[None], size=grid, mode="trilinear", align_corners=False)[0]
        return table.flatten(1).T


class Relative(nn.Module):
    """A bias of the attention from the distance of two tokens along each axis, in logarithmic bins, a head each."""

    BINS = 16  # on either side of zero; two a doubling of the distance

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.tables = nn.Parameter(torch.zeros(3, 2 * self.BINS + 1, num_heads))

    def forward(self, centres: Tensor, num_prefix_tokens: int) -> Tensor:
        """Bias for tokens at centres (N, 3), none for prefix tokens: (1, heads, P+N, P+N)."""
        distance = centres[None] - centres[:, None]  # (N, N, 3)
        bins = (distance.sign() * 2 * distance.abs().log1p() / torch.log(torch.tensor(2.0))).round().long()
        bins = bins.clamp(-self.BINS, self.BINS) + self.BINS
        bias = sum(self.tables[axis][bins[..., axis]] for axis in range(3))  # (N, N, heads)
        prefix = num_prefix_tokens
        return F.pad(bias.permute(2, 0, 1), (prefix, 0, prefix, 0))[None]  # type: ignore[union-attr]

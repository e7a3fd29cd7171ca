"""Sparse video tubes (paper, Sections 3.2 and 3.4): kernels that are applied at a few places of a video.

With a *fold* (space-to-depth), the kernel is applied at ``f`` neighbouring places for each token, and the outputs are
concatenated along channels, in the order t, h, w. Or each place has its own kernel, as wide as the token, and the
outputs are *summed*.
Triples are always (t, h, w), in frames and pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.model.windows import COLUMNS, ROWS, Run, Runs, runs_of, windows

AXES = ("t", "h", "w")
WIDE = 8  # width of kernels from which rows of pixels are read faster than columns
Size = tuple[int, int, int]
Result = TypeVar("Result")


@dataclass(frozen=True)
class TubeSpec:
    """Geometry of one tube: a kernel of size ``kernel`` every ``stride`` from ``offset``, ``fold`` places a token."""

    name: str
    kernel: Size
    stride: Size
    offset: Size = (0, 0, 0)
    fold: Size = (1, 1, 1)
    channels: int | None = None  # of the kernel; None: width / places per token
    summed: bool = False  # every place of the fold has a kernel of its own, and they are summed, not concatenated

    @classmethod
    def from_config(cls, name: str, tube: schema.Tube) -> TubeSpec:
        """From an entry of a recipe or of ``config.json``."""
        kernel, stride, offset, fold = (tuple(triple) for triple in (tube.kernel, tube.stride, tube.offset, tube.fold))
        return cls(name, kernel, stride, offset, fold, tube.channels, tube.summed)  # type: ignore[arg-type]

    @property
    def places_per_token(self) -> int:
        return math.prod(self.fold)

    @property
    def kernels(self) -> int:
        """The number of kernels: one, or one for each place."""
        return self.places_per_token if self.summed else 1

    def channels_of(self, embed_dim: int) -> int:
        """The kernel's channels, for tokens of this width."""
        places = 1 if self.summed else self.places_per_token
        if self.channels is None and embed_dim % places == 0:
            return embed_dim // places
        if self.channels is not None and self.channels * (places - 1) < embed_dim <= self.channels * places:
            return self.channels
        words = f" of {self.channels} channels" if self.channels else ""
        raise UserError(
            f"tube {self.name!r} folds {places} places{words} into a token, which does not give the width {embed_dim}; "
            f"allowed are folds that divide {embed_dim}, or channels with channels * places >= {embed_dim}"
        )

    def grid(self, size: Size) -> Size:
        """The number of tokens along each axis of a clip of ``size``, of a valid convolution after the offset."""
        return tuple(self.count(axis, length) for axis, length in enumerate(size))  # type: ignore[return-value]

    def count(self, axis: int, length: int) -> int:
        """Tokens along one axis."""
        needed = self.offset[axis] + self.kernel[axis]
        if length < needed:
            raise UserError(
                f"tube {self.name!r} needs at least {needed} along {AXES[axis]} (offset {self.offset[axis]} + "
                f"kernel {self.kernel[axis]}); the input has {length}"
            )
        return (length - needed) // self.stride[axis] + 1

    def tokens(self, size: Size) -> int:
        return math.prod(self.grid(size))

    def places(self, size: Size) -> list[Tensor]:
        """The first pixel (frame) of every place of the kernel along each axis: three integer tensors (tokens, fold).

        The distance between places of a token is stride / fold (the paper's rule), rounded if the fold does not divide
        the stride, and smaller if the clip is too small. A token that would leave the clip is moved back inside, so
        that the number of tokens does not change.
        """
        return [self._places_along(axis, length) for axis, length in enumerate(size)]

    def _places_along(self, axis: int, length: int) -> Tensor:
        firsts = self.offset[axis] + self.stride[axis] * torch.arange(self.count(axis, length))
        places = firsts[:, None] + torch.tensor(self.offsets(axis, length))  # (tokens, fold)
        last = length - self.kernel[axis]
        return places - (places[:, -1:] - last).clamp(min=0)

    def offsets(self, axis: int, length: int) -> list[int]:
        """The distances of the places of a token from its first place, along one axis."""
        first, fold, last = self.offset[axis], self.fold[axis], length - self.kernel[axis]  # last: inside the clip
        if last - first < fold - 1:
            raise UserError(
                f"tube {self.name!r} folds {fold} places along {AXES[axis]}, which needs at least "
                f"{first + self.kernel[axis] + fold - 1} along {AXES[axis]}; the input has {length}"
            )
        step = min(self.spacing(axis), (last - first) / (fold - 1)) if fold > 1 else 0
        return [round(index * step) for index in range(fold)]

    def spacing(self, axis: int) -> float:
        """The distance between two places of a token if the clip is long enough."""
        return max(self.stride[axis] / self.fold[axis], 1.0)

    def centres(self, size: Size) -> Tensor:
        """The centre of all pixels that a token covers, with its fold: (N, 3) in frames and pixels, from 0."""
        axes = [
            (starts[:, 0] + starts[:, -1] + kernel - 1).double() / 2
            for starts, kernel in zip(self.places(size), self.kernel, strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)

    def columns(self, x: Tensor) -> Tensor:
        """The pixels of the tube's places, a column for each: x (B, C, T, H, W) -> (B, C*kt*kh*kw, places)."""
        reading = _reading(self, tuple(x.shape[2:]), x.device)
        return windows(x, self.kernel, reading, COLUMNS).flatten(5).flatten(1, 4)

    def rows(self, x: Tensor) -> Tensor:
        """The same, a row for each, in the order of a token's places: (B, N, f, C*kt*kh*kw)."""
        reading = _reading(self, tuple(x.shape[2:]), x.device)
        return windows(x, self.kernel, reading, ROWS).flatten(7).flatten(4, 6).flatten(1, 3)

    def concatenate(self, places: Tensor, size: Size) -> Tensor:
        """Concatenate the channels of a token's places, in the order t, h, w: (B, c, places) -> (B, N, f*c)."""
        split = [length for pair in zip(self.grid(size), self.fold, strict=True) for length in pair]
        places = places.unflatten(2, split)  # (B, c, nt, ft, nh, fh, nw, fw)
        return places.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(1, 3)


def cached(function: Callable[..., Result]) -> Callable[..., Result]:
    """Cache the results of a function of a tube and a size. Not cached when T is symbolic (torch.export)."""
    remembered = lru_cache(maxsize=256)(function)

    @wraps(function)
    def call(spec: TubeSpec, size: Size, *args: Any) -> Result:
        return (function if isinstance(size[0], torch.SymInt) else remembered)(spec, size, *args)

    return call


@cached
def _reading(spec: TubeSpec, size: Size, device: torch.device) -> tuple[Runs | Tensor, ...]:
    """For each axis its places as runs, or as indices on the device where T is symbolic and folded."""
    return tuple(_along(spec, axis, length, device) for axis, length in enumerate(size))


def _along(spec: TubeSpec, axis: int, length: int, device: torch.device) -> Runs | Tensor:
    if spec.fold[axis] == 1:
        return ((Run(spec.offset[axis], spec.count(axis, length), spec.stride[axis], 1, 1),),)
    if isinstance(length, torch.SymInt):
        return spec._places_along(axis, length).to(device)
    offsets, last = spec.offsets(axis, length), length - spec.kernel[axis]  # in numbers: torch.export knows no tensors
    firsts = (spec.offset[axis] + spec.stride[axis] * token for token in range(spec.count(axis, length)))
    return runs_of((min(first, last - offsets[-1]) for first in firsts), offsets)


@cached
def centres(spec: TubeSpec, size: Size, device: torch.device) -> Tensor:
    """:meth:`TubeSpec.centres` on a device."""
    return spec.centres(size).to(device)


class Folds(NamedTuple):
    """The number of places of a token, and the number of channels of the last place that are dropped."""

    places: int
    dropped: int


def folds_to(channels: int, embed_dim: int) -> Folds:
    """The fold f = D / c if c divides D (Section 3.6); else ceil(D / c) places, of which the first D channels stay."""
    places = math.ceil(embed_dim / channels)
    return Folds(places, places * channels - embed_dim)


def resize_kernel(weight: Tensor, kernel: Size) -> Tensor:
    """A kernel of another size by trilinear interpolation (Section 3.4): (c, C, t, h, w) -> (c, C, *kernel).

    It is scaled by the ratio of the volumes, so that the output for a constant input does not change.
    """
    resized = F.interpolate(weight, size=kernel, mode="trilinear", align_corners=False)
    return resized * (math.prod(weight.shape[2:]) / math.prod(kernel))


class Tube(nn.Module):
    """One tube: a kernel and its bias. If all tubes share one interpolated kernel, there is no ``weight``.

    The kernel has ``channels`` channels; of the concatenated channels the first ``embed_dim`` stay. If places are
    summed, their kernels are concatenated along the input channels.
    """

    def __init__(self, spec: TubeSpec, embed_dim: int, shared: Sequence[int] | None = None) -> None:
        super().__init__()
        self.spec, self.embed_dim = spec, embed_dim
        self.channels = spec.channels_of(embed_dim)
        self.weight = None if shared else nn.Parameter(new_kernel(self.channels, spec.kernel, spec.kernels))
        self.bias = nn.Parameter(torch.zeros(self.channels))

    @property
    def kernel(self) -> nn.Parameter:
        """The tube's own kernel (c, 3, t, h, w); if f places are summed, (c, f*3, t, h, w)."""
        assert self.weight is not None, "all tubes share one interpolated kernel"
        return self.weight

    def forward(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        """x (B, 3, T, H, W) -> tokens (B, N, D), without positions."""
        weight = self.kernel if shared is None else resize_kernel(shared, self.spec.kernel)
        if self.spec.summed:
            return F.linear(self.spec.rows(x).flatten(2), weight.flatten(1), self.bias)  # of (B, N, f*K)
        if self.spec.kernel[2] >= WIDE:
            return F.linear(self.spec.rows(x), weight.flatten(1), self.bias).flatten(2)[..., : self.embed_dim]
        # A 1x1 convolution is a matrix product, and on many CPUs the fastest one of torch.
        places = F.conv1d(self.spec.columns(x), weight.flatten(1)[:, :, None], self.bias)  # (B, c, places)
        tokens = self.spec.concatenate(places, x.shape[2:])  # type: ignore[arg-type]
        return tokens[..., : self.embed_dim]


def new_kernel(channels: int, kernel: Sequence[int], count: int = 1) -> Tensor:
    """Random kernels (channels, count * 3, t, h, w), which keep the variance (fan-in)."""
    return torch.randn(channels, count * 3, *kernel) / math.sqrt(count * 3 * math.prod(kernel))


def module_name(kind: str, name: str) -> str:
    """Check the name of a tube or a head: torch must allow it for a parameter. Raises UserError if not."""
    in_use = any(hasattr(module, name) for module in (nn.ModuleDict(), nn.ParameterDict()))
    if not name.isidentifier() or in_use or name in ("frames", "shared", "specs"):
        raise UserError(f"{kind} cannot be named {name!r}; allowed are letters, digits and _, but no word in use")
    return name


class TubeTokenizer(nn.ModuleDict):
    """All tubes of a model, by name. The tokens of a video are those of the first tube, then of the second, ..."""

    def __init__(self, specs: Sequence[TubeSpec], embed_dim: int, interpolate: Sequence[int] | None = None) -> None:
        super().__init__({module_name("a tube", spec.name): Tube(spec, embed_dim, interpolate) for spec in specs})
        self.shared: nn.Parameter | None = None
        if interpolate and (summed := [spec.name for spec in specs if spec.summed]):
            raise UserError(f"tube {summed[0]!r} sums places with kernels of their own, and cannot share one kernel")
        if interpolate and specs:
            channels = {spec.channels_of(embed_dim) for spec in specs}
            if len(channels) > 1:
                raise UserError(
                    f"tubes that share one interpolated kernel must emit equally many channels; these emit "
                    f"{sorted(channels)}: fold equally many places in each"
                )
            self.shared = nn.Parameter(new_kernel(channels.pop(), interpolate))

    def __getitem__(self, name: str) -> Tube:
        return super().__getitem__(name)  # type: ignore[return-value]

    @property
    def specs(self) -> list[TubeSpec]:
        return [self[name].spec for name in self]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, T, H, W) -> tokens (B, N, D), without positions."""
        return torch.cat([tube(x, self.shared) for tube in self.values()], dim=1)

"""Where the kernel of a tube is applied (paper, Sections 3.2 and 3.4), and the pixels it reads there.

With a *fold* (space-to-depth) the kernel is applied at ``f`` neighbouring places for each token and the results are
concatenated along channels, in the order t, h, w; or each place has a kernel of its own, as wide as the token, and the
results are *summed*.
Triples are always (t, h, w), in frames and pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from scaleup.errors import UserError

AXES = ("t", "h", "w")
Size = tuple[int, int, int]
Made = TypeVar("Made")


@dataclass(frozen=True)
class TubeSpec:
    """Geometry of one tube: a kernel of size ``kernel`` every ``stride`` from ``offset``, ``fold`` places a token."""

    name: str
    kernel: Size
    stride: Size
    offset: Size = (0, 0, 0)
    fold: Size = (1, 1, 1)
    channels: int | None = None  # the kernel emits at each place; None: width / places per token
    summed: bool = False  # every place of the fold has a kernel of its own, and they are summed, not concatenated

    @classmethod
    def from_config(cls, name: str, tube: Mapping[str, Any]) -> TubeSpec:
        """Read a recipe's or a ``config.json``'s entry."""
        kernel, stride, offset, fold = (tuple(tube[key]) for key in ("kernel", "stride", "offset", "fold"))
        return cls(name, kernel, stride, offset, fold, tube["channels"], tube["summed"])

    @property
    def places_per_token(self) -> int:
        return math.prod(self.fold)

    @property
    def kernels(self) -> int:
        """How many kernels the tube has: one, or one for each place."""
        return self.places_per_token if self.summed else 1

    def channels_of(self, embed_dim: int) -> int:
        """Channels that the kernel emits at each place for tokens of this width."""
        places = 1 if self.summed else self.places_per_token
        if self.channels is None and embed_dim % places == 0:
            return embed_dim // places
        if self.channels is not None and self.channels * (places - 1) < embed_dim <= self.channels * places:
            return self.channels
        given = f" of {self.channels} channels" if self.channels else ""
        raise UserError(
            f"tube {self.name!r} folds {places} places{given} into a token, which does not give the width {embed_dim}; "
            f"allowed are folds that divide {embed_dim}, or channels with channels * places >= {embed_dim}"
        )

    def grid(self, size: Size) -> Size:
        """Tokens along each axis of a clip of ``size``: a valid convolution after slicing off the offset."""
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
        """First pixel (frame) of every kernel place along each axis: three integer tensors (tokens, fold).

        The places of a token are stride / fold apart (the paper's rule), rounded where the fold does not divide the
        stride, and closer where the clip is too small. A token that would leave the clip is moved back inside, so
        that the number of tokens never changes.
        """
        return [self._axis_places(axis, length) for axis, length in enumerate(size)]

    def _axis_places(self, axis: int, length: int) -> Tensor:
        firsts = self.offset[axis] + self.stride[axis] * torch.arange(self.count(axis, length))
        places = firsts[:, None] + torch.tensor(self.offsets(axis, length))  # (tokens, fold)
        last = length - self.kernel[axis]
        return places - (places[:, -1:] - last).clamp(min=0)

    def offsets(self, axis: int, length: int) -> list[int]:
        """How far the places of a token lie from its first, along one axis."""
        first, fold, last = self.offset[axis], self.fold[axis], length - self.kernel[axis]  # last: inside the clip
        if last - first < fold - 1:
            raise UserError(
                f"tube {self.name!r} folds {fold} places along {AXES[axis]}, which needs at least "
                f"{first + self.kernel[axis] + fold - 1} along {AXES[axis]}; the input has {length}"
            )
        step = min(self.spacing(axis), (last - first) / (fold - 1)) if fold > 1 else 0
        return [round(index * step) for index in range(fold)]

    def spacing(self, axis: int) -> float:
        """How far the places of a token are apart where the clip is long enough."""
        return max(self.stride[axis] / self.fold[axis], 1.0)

    def centres(self, size: Size) -> Tensor:
        """Centre of all that each token covers, fold included: (N, 3) in frames and pixels, pixel 0 at 0."""
        axes = [
            (starts[:, 0] + starts[:, -1] + kernel - 1).double() / 2
            for starts, kernel in zip(self.places(size), self.kernel, strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)

    def gather(self, x: Tensor) -> Tensor:
        """Read only the pixels the tube touches: x (B, C, T, H, W) -> (B, C*kt*kh*kw, places), a column a place."""
        even, uneven = _reading(self, tuple(x.shape[2:]))
        for dim, (kernel, run) in enumerate(zip(self.kernel, even, strict=True), start=2):
            first, end, step = run or (0, x.shape[dim], 1)
            x = x.narrow(dim, first, end - first).unfold(dim, kernel, step)
        windows = x[:, :, uneven[0], uneven[1], uneven[2]] if uneven else x  # (B, C, t, h, w, kt, kh, kw), x: a view
        return windows.permute(0, 1, 5, 6, 7, 2, 3, 4).flatten(5).flatten(1, 4)

    def concatenate(self, places: Tensor, size: Size) -> Tensor:
        """Channels of neighbouring places side by side: (B, c, places) -> (B, N, f*c), place by place in t, h, w."""
        split = [length for pair in zip(self.grid(size), self.fold, strict=True) for length in pair]
        places = places.unflatten(2, split)  # (B, c, nt, ft, nh, fh, nw, fw)
        return places.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(1, 3)


def kept(function: Callable[..., Made]) -> Callable[..., Made]:
    """Keep what a function gives for a size; a program traced with frames left free computes it when it runs."""
    remembered = lru_cache(maxsize=256)(function)

    @wraps(function)
    def call(spec: TubeSpec, size: Size, *args: Any) -> Made:
        return (function if isinstance(size[0], torch.SymInt) else remembered)(spec, size, *args)

    return call


class Run(NamedTuple):
    """Pixels (frames) ``first`` to ``end`` along one axis, in which a kernel is applied every ``step``."""

    first: int
    end: int
    step: int


@kept
def _reading(spec: TubeSpec, size: Size) -> tuple[list[Run | None], tuple[Tensor, ...]]:
    """Runs along each axis that has its places evenly spaced; where one has not, indices that broadcast to a grid."""
    even = [_run(spec, axis, length) for axis, length in enumerate(size)]
    if None not in even:
        return even, ()
    places = [starts.flatten() for starts in spec.places(size)]
    t, h, w = (torch.arange(each.shape[0]) if run else each for each, run in zip(places, even, strict=True))
    return even, (t[:, None, None], h[:, None], w)


def _run(spec: TubeSpec, axis: int, length: int) -> Run | None:
    """Places along one axis where they are evenly spaced; a free length may move the last token back, so it is not."""
    first, stride, fold, count = spec.offset[axis], spec.stride[axis], spec.fold[axis], spec.count(axis, length)
    if fold == 1:
        return Run(first, length, stride)
    offsets = spec.offsets(axis, length)
    gap = offsets[1]
    if isinstance(length, torch.SymInt) or offsets != [gap * index for index in range(fold)]:
        return None
    end = first + gap * (fold * count - 1) + spec.kernel[axis]
    return Run(first, end, gap) if end <= length and (count == 1 or gap * fold == stride) else None


class Folds(NamedTuple):
    """How many places of a kernel are laid side by side, and how many channels of the last are dropped."""

    places: int
    dropped: int


def folds_to(channels: int, embed_dim: int) -> Folds:
    """Fold f = D / c where c divides D (Section 3.6); else ceil(D / c) places, of which the first D channels stay."""
    places = math.ceil(embed_dim / channels)
    return Folds(places, places * channels - embed_dim)

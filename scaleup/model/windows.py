"""The windows of a video under a kernel, at places along each axis, read through strided views: one copy, no indices.

Along each axis a token has ``fold`` places. Places that are evenly spaced are one :class:`Run`; others are several.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# A view has the dimensions B, C, (nt, nh, nw), (ft, kt), (fh, kh), (fw, kw): tokens, places of a token, kernel.
COLUMNS = (0, 1, 6, 8, 10, 2, 5, 3, 7, 4, 9)  # (B, C, kt, kh, kw, nt, ft, nh, fh, nw, fw)
ROWS = (0, 2, 3, 4, 5, 7, 9, 1, 6, 8, 10)  # (B, nt, nh, nw, ft, fh, fw, C, kt, kh, kw)


class Run(NamedTuple):
    """Places along one axis that one view reads: of ``tokens`` every ``step`` pixels (frames) from ``first``, each with
    ``fold`` places every ``gap``."""

    first: int
    tokens: int
    step: int
    fold: int
    gap: int


Runs = tuple[tuple[Run, ...], ...]  # along one axis: of some tokens, for some of their places
Reading = Sequence[Runs | Tensor]  # for each axis its runs, or the indices of its places (tokens, fold)


def runs_of(firsts: Iterable[int], offsets: Iterable[int]) -> Runs:
    """The runs of tokens with their first places, each with places at these distances."""
    folds = list(_spans(offsets))
    return tuple(
        tuple(Run(first + offset, tokens, step, fold, gap) for offset, fold, gap in folds)
        for first, tokens, step in _spans(firsts)
    )


def _spans(numbers: Iterable[int]) -> list[tuple[int, int, int]]:
    """Numbers as evenly spaced, rising spans: the first number, how many, and their distance."""
    spans: list[tuple[int, int, int]] = []
    for number in numbers:
        first, count, step = spans[-1] if spans else (number, 0, 0)
        distance = number - first - (count - 1) * step
        if count == 1 and distance > 0:
            spans[-1] = first, 2, distance
        elif count > 1 and distance == step:
            spans[-1] = first, count + 1, step
        else:
            spans.append((number, 1, 1))
    return spans


def windows(x: Tensor, kernel: Sequence[int], reading: Reading, order: Sequence[int]) -> Tensor:
    """The windows of x (B, C, T, H, W), in the order COLUMNS or ROWS; a view if one run reads each axis."""
    return _joined(x, kernel, reading, order, ())


def _joined(
    x: Tensor, kernel: Sequence[int], reading: Reading, order: Sequence[int], along: tuple[Run | Tensor, ...]
) -> Tensor:
    """The windows at the places ``along`` the first axes."""
    axis = len(along)
    if axis == 3:
        return _view(x, kernel, along).permute(*order)
    runs = reading[axis]
    if isinstance(runs, Tensor):
        return _joined(x, kernel, reading, order, (*along, runs))
    tokens, fold = order.index(2 + axis), order.index(5 + 2 * axis)
    rows = [_cat([_joined(x, kernel, reading, order, (*along, run)) for run in row], fold) for row in runs]
    return _cat(rows, tokens)


def _cat(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _view(x: Tensor, kernel: Sequence[int], along: Sequence[Run | Tensor]) -> Tensor:
    """A view of x (B, C, nt, nh, nw, ft, kt, fh, kh, fw, kw); indices copy."""
    for dim, (length, run) in enumerate(zip(kernel, along, strict=True), start=2):
        if isinstance(run, Tensor):
            x = x.unfold(dim, length, 1).index_select(dim, run.flatten()).unflatten(dim, run.shape)
            x = x.movedim(dim + 1, -2)
            continue
        first, tokens, step, fold, gap = run
        x = x.narrow(dim, first, x.shape[dim] - first).unfold(dim, gap * (fold - 1) + length, step)
        x = x.narrow(dim, 0, tokens).unfold(-1, length, gap)
    return x

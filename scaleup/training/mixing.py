"""Samples of a batch mixed in pairs, and labels as much as the pixels: mixup and cutmix."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scaleup.config.schema import Train

WHOLE = slice(0, None)
Box = tuple[slice, slice]  # rows, columns


class Mix(NamedTuple):
    """Sample i is ``share`` of itself and ``1 - share`` of sample ``order[i]``: of every pixel (mixup), or of the area,
    where the other's pixels in ``box`` cover its own in all frames (cutmix)."""

    order: Tensor
    share: float
    box: Box | None = None

    def pixels(self, x: Tensor) -> Tensor:
        """Mixed (B, 3, [T,] H, W); ``x`` stays as it is."""
        if self.box is None:
            return torch.lerp(x[self.order], x, self.share)
        mixed, there = x.clone(), (..., *self.box)
        mixed[there] = x[there][self.order]
        return mixed

    def dominant(self, labels: Tensor) -> Tensor:
        """Labels (B,) of the samples that the greater part of each mixed one is of."""
        return labels if self.share >= 0.5 else labels[self.order]


def draw_mix(train: Train, shape: torch.Size, seed: int, step: int) -> Mix | None:
    """The mix of a batch of ``shape`` (B, 3, [T,] H, W), a function of (seed, step) alone; None where there is none.

    Where both mixup and cutmix are set, each has every other step on average, whole batches at a time. In mixup a
    sample outweighs the one that is mixed in (share >= 1/2); in cutmix the share is drawn, and then corrected to what
    is left of the sample where the box reaches over the border.
    """
    if train.mixup == train.cutmix == 0:
        return None
    random = np.random.default_rng((seed, step))
    cuts = train.mixup == 0 or (train.cutmix > 0 and random.random() < 0.5)
    alpha = train.cutmix if cuts else train.mixup
    share = random.beta(alpha, alpha)
    order = torch.from_numpy(random.permutation(shape[0]))
    if not cuts:
        return Mix(order, max(share, 1 - share))
    box = _box(shape[-2], shape[-1], 1 - share, random)
    return Mix(order, 1 - _length(box[0]) * _length(box[1]) / (shape[-2] * shape[-1]), box)


def _box(height: int, width: int, area: float, random: np.random.Generator) -> Box:
    """A box of the picture's proportions and of ``area`` as a share of its own, centred anywhere in it, cut off at its
    borders (CutMix, Section 3.1 and equation 2)."""
    return _span(height, math.sqrt(area), random), _span(width, math.sqrt(area), random)


def _span(size: int, share: float, random: np.random.Generator) -> slice:
    length, centre = round(size * share), int(random.integers(size))
    return slice(max(0, centre - length // 2), min(size, centre - length // 2 + length))


def _length(span: slice) -> int:
    return span.stop - span.start


def head_loss(logits: Tensor, labels: Tensor, mix: Mix | None, smoothing: float, rows: slice = WHOLE) -> Tensor:
    """Cross entropy of logits (b, C) of some ``rows`` of a batch with its labels (B,), mixed as the pixels were."""
    loss = F.cross_entropy(logits, labels[rows], label_smoothing=smoothing)
    if mix is None:
        return loss
    other = F.cross_entropy(logits, labels[mix.order][rows], label_smoothing=smoothing)
    return mix.share * loss + (1 - mix.share) * other

"""The channel plan of a transplant: how few channels a place become the width of the backbone (Section 3.6), by a fold
or by a linear map (:mod:`scaleup.transplants.align`)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

from scaleup.errors import UserError
from scaleup.model.places import Size, TubeSpec, folds_to
from scaleup.transplants.donor import Kernel

FITTING = (64, 128, 192, 256, 384, 512, 640, 768, 1024)  # channel counts named to those whose tubes do not fit


@dataclass(frozen=True)
class Plan:
    """How the channels of one tube become the backbone's."""

    spec: TubeSpec  # as it will be applied
    channels: int  # the small model's kernel emits at each place
    exact: bool  # none is dropped
    dropped_channels: int
    tokens: int


def plan_channels(kernel: Kernel, embed_dim: int, size: Size, exact: bool) -> Plan:
    """Fold a tube to the backbone's width (see :func:`scaleup.model.places.folds_to`) inside clips of ``size``.

    Raises:
        UserError: ``exact`` is asked for and c does not divide D, or no fold fits the clip.
    """
    channels = len(kernel.weight)
    places, dropped = folds_to(channels, embed_dim)
    if dropped and exact:
        fitting = ", ".join(str(c) for c in FITTING if embed_dim % c == 0)
        raise UserError(
            f"tube {kernel.spec.name!r} emits {channels} channels, which do not divide the backbone's width "
            f"{embed_dim}; tubes of {fitting} channels would fit, or use --channels auto"
        )
    spec = _folded(replace(kernel.spec, channels=channels), places, size)
    return Plan(spec, channels, dropped == 0, dropped, spec.tokens(size))


def plan_aligned(kernel: Kernel, width: int, embed_dim: int, size: Size, fold: Size) -> Plan:
    """A tube whose tokens, ``width`` wide in the small model, are mapped to ``embed_dim``; with ``fold`` those of so
    many places together.

    Raises:
        UserError: the small model folds the tube itself and another fold is asked for, or the fold does not fit the
            clip.
    """
    spec, channels = kernel.spec, len(kernel.bias)
    replace(spec, channels=channels).channels_of(width)  # refuses what is not a token of the small model
    if spec.places_per_token > 1 and fold != (1, 1, 1):
        raise UserError(
            f"tube {spec.name!r} is folded {'x'.join(map(str, spec.fold))} in the small model; leave out --fold, its "
            "tokens are aligned as they are"
        )
    fold = spec.fold if spec.places_per_token > 1 else fold
    aligned = replace(spec, channels=embed_dim, fold=fold, summed=math.prod(fold) > 1)
    aligned.places(size)  # refuses a fold that does not fit
    return Plan(aligned, channels, True, 0, aligned.tokens(size))


def _folded(spec: TubeSpec, places: int, size: Size) -> TubeSpec:
    """The first fold, in order of preference, whose places fit the clip."""
    refusal: UserError | None = None
    for fold in preferred_folds(places):
        folded = replace(spec, fold=fold)
        try:
            folded.places(size)
        except UserError as error:
            refusal = refusal or error
        else:
            return folded
    raise refusal or UserError(f"tube {spec.name!r} cannot be folded {places} times")


def preferred_folds(places: int) -> list[Size]:
    """Folds of this many places, best first: 2 in time, 4 as 2x2 in space, and beyond that time takes the rest."""
    triples = itertools.product(range(1, places + 1), repeat=2)
    folds = [(places // (h * w), h, w) for h, w in triples if places % (h * w) == 0]
    square = 2 if places % 4 == 0 else 1

    def unlikeness(fold: Size) -> tuple:
        t, h, w = fold
        return (h, w) != (square, square), h != w, -t, abs(h - w), w

    return sorted(folds, key=unlikeness)

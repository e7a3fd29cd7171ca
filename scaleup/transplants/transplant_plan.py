"""The plan of a transplant: its options, the channels of each tube, where the gate stands. No weight is touched.

or by a linear map (:mod:`scaleup.transplants.align`).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

from scaleup.backbones.backbone import Backbone
from scaleup.config.schema import Positions
from scaleup.errors import UserError, nearest
from scaleup.model.tokenizer import KINDS
from scaleup.model.tubes import Size, TubeSpec, folds_to
from scaleup.transplants import measure
from scaleup.transplants.donor import Donor, Kernel

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
    """Fold a tube to the backbone's width (see :func:`scaleup.model.tubes.folds_to`) inside clips of ``size``.

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


MATCHES = ("fold", "align")  # of widths


@dataclass
class Options:
    """Choices of a transplant; the defaults are those of the paper where it states any."""

    weights: str | None = "pretrained"  # or a file; None: random initialisation
    gate_at: int | None = None  # None: three quarters of the blocks
    match: str = "fold"  # of widths: "align" maps the small model's tokens to the backbone's, by images
    fold: tuple[int, int] = (1, 1)  # with align: places (h, w) whose tokens are mapped together
    exact: bool = False  # refuse widths that the channels do not divide
    positions: str | None = None  # None: the backbone's own, where it has any
    amplitude: float | None = None  # of the sines in time; None: the RMS of the backbone's own positions
    match_scale: bool = False  # give tube tokens the RMS of the backbone's patch tokens
    random_tubes: bool = False  # the control: fresh kernels of the same RMS
    size: tuple[int, int] | None = None  # (h, w); None: the backbone's own
    seed: int = 0
    overwrite: bool = False
    placement: str = "device"  # "disk": frozen blocks stay in the file of the weights, one read at a time


def refuse_nonsense(options: Options, images: bool, seen: bool) -> None:
    """Refuse options that do not go together; ``images`` were given to align on, or anything can be ``seen`` for it.

    Raises:
        UserError: which, and what is allowed.
    """
    if options.match not in MATCHES:
        raise UserError(
            f"unknown match {options.match!r}; allowed are {', '.join(MATCHES)}{nearest(options.match, MATCHES)}"
        )
    if min(options.fold) < 1:
        raise UserError(f"--fold {options.fold[0]} {options.fold[1]} is not two whole numbers of at least 1")
    if options.match == "align" and options.exact:
        raise UserError("--channels exact is about folds; with --match align channels of any width fit")
    if options.match == "align" and not seen:
        raise UserError("--match align fits a map on images, and none were given; say where with --images, or --clips")
    if options.match != "align" and (images or options.fold != (1, 1)):
        needless = "--images" if images else "--fold"
        raise UserError(f"{needless} is for --match align; a fold to the backbone's width follows from the channels")


def positional_kwargs(options: Options) -> dict[str, Any]:
    if options.positions is not None and options.positions not in KINDS:
        allowed = f"allowed are {', '.join(KINDS)}{nearest(options.positions, KINDS)}"
        raise UserError(f"unknown positions {options.positions!r}; {allowed}")
    return {} if options.positions in (None, "backbone") else {"pos_embed": "none"}


def positions(donor: Donor, large: Backbone, options: Options) -> Positions:
    """Kind and amplitude: the backbone's own grid with sines in time as strong as it, or sines alone."""
    own = large.absolute or large.rotary
    had = large.positions or Positions("backbone" if own else "cosine")
    if options.positions == "backbone" and not own:
        raise UserError(f"{large.name} has no positions of its own; choose others than --positions backbone")
    kind, amplitude = options.positions or had.kind, options.amplitude
    if options.positions is None and kind in ("learned", "relative"):
        raise UserError(f"{large.name} has {kind} positions, which are not moved; choose others with --positions")
    if amplitude is None and large.positions is not None and kind == had.kind != "backbone":
        amplitude = had.amplitude
    if amplitude is None and kind == "backbone":
        amplitude = 2**0.5 * measure.position_rms(large)
    elif amplitude is None:
        amplitude = donor.config.positions.amplitude
    return Positions(kind, amplitude)  # type: ignore[arg-type]


def gate_at(large: Backbone, asked: int | None) -> int:
    """Frozen blocks below the gate: as asked for, or three quarters."""
    depth = large.depth - large.depth // 4 if asked is None else asked
    if not 1 <= depth <= large.depth:
        raise UserError(f"--gate-at {depth} does not fit {large.name}; allowed are 1 to {large.depth}")
    return depth


def plan_tubes(donor: Donor, large: Backbone, options: Options) -> list[Plan]:
    """How the channels of each tube become the backbone's width."""
    size = (donor.config.input.frames, *large.size)
    if options.match != "align":
        return [plan_channels(kernel, large.embed_dim, size, options.exact) for kernel in donor.kernels]
    if donor.patch is None:
        raise UserError(f"{donor.name} has no patches that are one convolution, by which --match align could go")
    width, fold = len(donor.patch.bias), (1, *options.fold)
    return [plan_aligned(kernel, width, large.embed_dim, size, fold) for kernel in donor.kernels]


def describe_plans(donor: Donor, large: Backbone, plans: list[Plan], gate_at: int, match: str) -> dict[str, Any]:
    """What is known before any weight is touched."""
    size = (donor.config.input.frames, *large.size)
    stride, offset = donor.config.frames.stride, donor.config.frames.offset
    patches = (large.size[0] // large.patch_size[0]) * (large.size[1] // large.patch_size[1])
    frames = ((size[0] - offset - 1) // stride + 1) * patches
    tubes = {
        plan.spec.name: {
            "channels": plan.channels,
            "fold": list(plan.spec.fold),
            "exact": plan.exact,
            "dropped_channels": plan.dropped_channels,
            "tokens": plan.tokens,
        }
        for plan in plans
    }
    count = sum(tensor.numel() for tensor in large.state_dict().values())
    late = sum(p.numel() for block in large.blocks[gate_at:] for p in block.parameters())
    return {
        "match": match,
        "embed_dim": large.embed_dim,
        "tubes": tubes,
        "frame_tokens": frames,
        "tokens": large.num_prefix_tokens + frames + sum(plan.tokens for plan in plans),
        "gate": {"frozen_depth": gate_at, "depth": large.depth},
        "parameters": {
            "backbone": count,
            "tubes": sum(_numbers(plan.spec) for plan in plans),
            "frozen": count - late,
            "late_blocks": late,
        },
        "parents": {"small": {"name": donor.name}, "backbone": {"name": large.name}},
    }


def _numbers(spec: TubeSpec) -> int:
    """Parameters of a tube."""
    assert spec.channels is not None
    return spec.channels * (spec.kernels * 3 * math.prod(spec.kernel) + 1)

"""The plan of a transplant: its options, the channels of each tube, the depth of the gate. It changes no weights."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from scaleup.backbones.backbone import Backbone
from scaleup.common.errors import UserError, nearest
from scaleup.config.schema import Positions, Tube
from scaleup.model.tokenizer import KINDS, SINES
from scaleup.model.tubes import Size, TubeSpec, folds_to
from scaleup.transplants.donor import Donor, Kernel
from scaleup.transplants.measure import position_rms
from scaleup.transplants.transplant_report import GatePlan, Parameters, Parent, TransplantPlan, TubePlan

FITTING = (64, 128, 192, 256, 384, 512, 640, 768, 1024)  # an error names those of them that would fit
MATCHES = ("fold", "align")  # ways to match two widths


@dataclass
class Options:
    """Choices of a transplant. The defaults are those of the paper, if it states any."""

    weights: str | None = "pretrained"  # or a file; None: random initialisation
    gate_at: int | None = None  # None: three quarters of the blocks
    match: str = "fold"  # of widths; "align": a map from the small model's tokens to the backbone's, fitted on images
    fold: tuple[int, int] = (1, 1)  # with align: (h, w) places whose tokens are mapped together
    exact: bool = False  # refuse tubes whose channels do not divide the width
    positions: str | None = None  # None: the backbone's own, if it has any
    amplitude: float | None = None  # of the sines in time; None: the RMS of the backbone's own positions
    match_scale: bool = False  # give tube tokens the RMS of the backbone's patch tokens
    random_tubes: bool = False  # as a control: random kernels, tokens of the same RMS
    size: tuple[int, int] | None = None  # (h, w); None: the backbone's own
    seed: int = 0
    overwrite: bool = False
    placement: str = "device"  # "disk": frozen blocks stay in the file of the weights, and are read one at a time

    def check(self, images: bool) -> None:
        """Refuse options that contradict each other. ``images``: whether there are images to align on.

        Raises:
            UserError: which, and what is allowed.
        """
        if self.match not in MATCHES:
            allowed = f"allowed are {', '.join(MATCHES)}{nearest(self.match, MATCHES)}"
            raise UserError(f"unknown match {self.match!r}; {allowed}")
        if min(self.fold) < 1:
            raise UserError(f"--fold {self.fold[0]} {self.fold[1]} is not two whole numbers of at least 1")
        if self.match == "align" and self.exact:
            raise UserError("--channels exact is about folds; with --match align channels of any width fit")
        if self.match != "align" and (images or self.fold != (1, 1)):
            option = "--images" if images else "--fold"
            raise UserError(f"{option} is for --match align; a fold to the backbone's width follows from the channels")
        if self.positions is not None and self.positions not in KINDS:
            allowed = f"allowed are {', '.join(KINDS)}{nearest(self.positions, KINDS)}"
            raise UserError(f"unknown positions {self.positions!r}; {allowed}")
        if self.amplitude is not None and not 0 < self.amplitude < math.inf:
            raise UserError(f"--amplitude {self.amplitude} is not a number above 0")

    @property
    def kwargs(self) -> dict[str, Any]:
        """Changes to the backbone's architecture. If other positions are chosen, the backbone's own are left out."""
        return {} if self.positions in (None, "backbone") else {"pos_embed": "none"}


class Plan(NamedTuple):
    """How the channels of one tube are extended to the backbone's width."""

    spec: TubeSpec  # as it will be applied
    reported: TubePlan

    @property
    def tube(self) -> Tube:
        """Its entry in ``config.json``."""
        kernel, stride, offset, fold = map(list, (self.spec.kernel, self.spec.stride, self.spec.offset, self.spec.fold))
        return Tube(kernel, stride, offset, fold, self.spec.channels, self.spec.summed)


def _plan(spec: TubeSpec, channels: int, dropped: int, size: Size) -> Plan:
    return Plan(spec, TubePlan(channels, list(spec.fold), dropped == 0, dropped, spec.tokens(size)))


def plan_tubes(donor: Donor, large: Backbone, options: Options) -> list[Plan]:
    """How the channels of each tube are extended to the backbone's width."""
    size = (donor.config.input.frames, *large.size)
    if options.match != "align":
        return [plan_channels(kernel, large.embed_dim, size, options.exact) for kernel in donor.kernels]
    if donor.patch is None:
        raise UserError(f"{donor.name} has no patches that are one convolution, by which --match align could go")
    width, fold = len(donor.patch.bias), (1, *options.fold)
    return [plan_aligned(kernel, width, large.embed_dim, size, fold) for kernel in donor.kernels]


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
    return _plan(spec, channels, dropped, size)


def _folded(spec: TubeSpec, places: int, size: Size) -> TubeSpec:
    """The first fold, in order of preference, whose places fit the clip."""
    refusals = []
    for fold in preferred_folds(places):
        folded = replace(spec, fold=fold)
        try:
            folded.places(size)
            return folded
        except UserError as error:
            refusals.append(error)
    raise refusals[0]


def preferred_folds(places: int) -> list[Size]:
    """Folds of this many places, best first: 2 in time, 4 as 2x2 in space, and beyond that time takes the rest."""
    pairs = itertools.product(range(1, places + 1), repeat=2)
    folds = [(places // (h * w), h, w) for h, w in pairs if places % (h * w) == 0]
    square = 2 if places % 4 == 0 else 1

    def unlikeness(fold: Size) -> tuple:
        t, h, w = fold
        return (h, w) != (square, square), h != w, -t, abs(h - w), w

    return sorted(folds, key=unlikeness)


def plan_aligned(kernel: Kernel, width: int, embed_dim: int, size: Size, fold: Size) -> Plan:
    """The plan of a tube whose tokens are mapped from ``width`` to ``embed_dim``; with ``fold``, those of several
    places together.

    Raises:
        UserError: the small model folds the tube and ``fold`` is another fold, or the fold does not fit the clip.
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
    return _plan(aligned, channels, 0, size)


def positions(large: Backbone, options: Options, sines: float = 1.0) -> Positions:
    """Positions: the backbone's own grid with sines in time of the same RMS, or only sines with amplitude ``sines``."""
    own = large.absolute or large.rotary
    before = large.positions or Positions("backbone" if own else "cosine")
    kind, amplitude = options.positions or before.kind, options.amplitude
    if options.positions == "backbone" and not own:
        raise UserError(f"{large.name} has no positions of its own; choose others than --positions backbone")
    if options.positions is None and kind in ("learned", "relative"):
        raise UserError(f"{large.name} has {kind} positions, which are not moved; choose others with --positions")
    if options.amplitude is not None and kind not in SINES:
        raise UserError(f"--amplitude is of sines, and positions {kind} have none; allowed are {', '.join(SINES)}")
    if amplitude is None and kind == "backbone":
        amplitude = 2**0.5 * position_rms(large)
    elif amplitude is None:
        amplitude = before.amplitude if large.positions is not None and kind == before.kind else sines
    return Positions(kind, amplitude)  # type: ignore[arg-type]


def gate_depth(large: Backbone, gate_at: int | None) -> int:
    """The number of frozen blocks below the gate; by default three quarters of all blocks."""
    depth = large.depth - large.depth // 4 if gate_at is None else gate_at
    if not 1 <= depth <= large.depth:
        raise UserError(f"--gate-at {depth} does not fit {large.name}; allowed are 1 to {large.depth}")
    return depth


def describe_plans(donor: Donor, large: Backbone, plans: list[Plan], frozen_depth: int, match: str) -> TransplantPlan:
    """The plan of a transplant, in the form of its report."""
    frames = donor.config.frames
    count_frames = len(range(frames.offset, donor.config.input.frames, frames.stride))
    patches = math.prod(side // patch for side, patch in zip(large.size, large.patch_size, strict=True))
    count = sum(tensor.numel() for tensor in large.state_dict().values())
    late = sum(p.numel() for block in large.blocks[frozen_depth:] for p in block.parameters())
    return TransplantPlan(
        match=match,
        embed_dim=large.embed_dim,
        tubes={plan.spec.name: plan.reported for plan in plans},
        frame_tokens=count_frames * patches,
        tokens=large.num_prefix_tokens + count_frames * patches + sum(plan.reported.tokens for plan in plans),
        gate=GatePlan(frozen_depth, large.depth),
        parameters=Parameters(count, sum(_numbers(plan.spec) for plan in plans), count - late, late),
        parents={"small": Parent(donor.name), "backbone": Parent(large.name)},
    )


def _numbers(spec: TubeSpec) -> int:
    """Parameters of a tube."""
    assert spec.channels is not None
    return spec.channels * (spec.kernels * 3 * math.prod(spec.kernel) + 1)

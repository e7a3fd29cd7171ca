"""The choices of a transplant, and what it will do, known before any weight is touched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from scaleup.backbones.backbone import Backbone
from scaleup.errors import UserError, nearest
from scaleup.model.places import TubeSpec
from scaleup.model.positions import KINDS
from scaleup.transplants import measure
from scaleup.transplants.channels import Plan, plan_aligned, plan_channels
from scaleup.transplants.donor import Donor

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


def positions(donor: Donor, large: Backbone, options: Options) -> dict[str, Any]:
    """Kind and amplitude: the backbone's own grid with sines in time as strong as it, or sines alone."""
    own = large.absolute or large.rotary
    had = large.positions or {"kind": "backbone" if own else "cosine"}
    if options.positions == "backbone" and not own:
        raise UserError(f"{large.name} has no positions of its own; choose others than --positions backbone")
    kind, amplitude = options.positions or had["kind"], options.amplitude
    if options.positions is None and kind in ("learned", "relative"):
        raise UserError(f"{large.name} has {kind} positions, which are not moved; choose others with --positions")
    if amplitude is None and kind == had["kind"] != "backbone":
        amplitude = had.get("amplitude")
    if amplitude is None and kind == "backbone":
        amplitude = 2**0.5 * measure.position_rms(large)
    elif amplitude is None:
        amplitude = donor.config.get("positions", {}).get("amplitude", 1.0)
    return {"kind": kind, "amplitude": amplitude}


def gate_at(large: Backbone, asked: int | None) -> int:
    """Frozen blocks below the gate: as asked for, or three quarters."""
    depth = large.depth - large.depth // 4 if asked is None else asked
    if not 1 <= depth <= large.depth:
        raise UserError(f"--gate-at {depth} does not fit {large.name}; allowed are 1 to {large.depth}")
    return depth


def plans(donor: Donor, large: Backbone, options: Options) -> list[Plan]:
    """How the channels of each tube become the backbone's width."""
    size = (donor.config["input"]["frames"], *large.size)
    if options.match != "align":
        return [plan_channels(kernel, large.embed_dim, size, options.exact) for kernel in donor.kernels]
    if donor.patch is None:
        raise UserError(f"{donor.name} has no patches that are one convolution, by which --match align could go")
    width, fold = len(donor.patch.bias), (1, *options.fold)
    return [plan_aligned(kernel, width, large.embed_dim, size, fold) for kernel in donor.kernels]


def planned(donor: Donor, large: Backbone, plans: list[Plan], gate_at: int, match: str) -> dict[str, Any]:
    """What is known before any weight is touched."""
    size = (donor.config["input"]["frames"], *large.size)
    stride, offset = donor.config["frames"]["stride"], donor.config["frames"]["offset"]
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

"""The report of a transplant: its plan, the measurements, what became of every tensor; as dataclasses and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scaleup.backbones.backbone import Backbone
from scaleup.config.schema import Positions
from scaleup.model.tubevit import TubeViT
from scaleup.transplants.donor import Donor

FAR = 5  # a remark is made on tokens that are this many times as strong, or as weak, as the backbone's own patches


@dataclass
class TubePlan:
    """How the channels of a tube are extended to the backbone's width."""

    channels: int  # of the small model's kernel
    fold: list[int]  # places (t, h, w) of a token
    exact: bool  # no channel is dropped
    dropped_channels: int
    tokens: int  # of a clip


@dataclass
class TubeReport(TubePlan):
    """A tube of the adapted model. RMS are of tokens before positions."""

    token_max_abs_diff: float | None  # to the tokens of the small model's kernel; None if tubes are random
    rms_source: float  # of the tokens with the small model's kernel
    rms_backbone: float  # of the backbone's own patches
    rms_adapted: float  # of the tokens in the adapted model


@dataclass
class GatePlan:
    frozen_depth: int  # blocks below the gate
    depth: int  # all blocks


@dataclass
class GateReport(GatePlan):
    closed_max_abs_diff: float  # of pooled features, to the same arm without a gate
    alpha_grad: float  # |d loss / d alpha| while the gate is closed


@dataclass
class Parameters:
    """Counts of numbers."""

    backbone: int
    tubes: int
    frozen: int
    late_blocks: int


@dataclass
class Parent:
    """The small model or the backbone; in a plan only the name is known."""

    name: str
    sha256: str | None = None
    weights: str | None = None  # of the backbone: their name or file
    data: list[Mapping[str, Any]] | None = None  # of the small model: its training data


@dataclass
class Alignment:
    """A map from the small model's image tokens to the backbone's, measured on the images that were left out."""

    images: int
    held_out: int
    rows: int  # tokens on which the map is fitted
    penalty: float  # for each row
    r2: float  # share of the variance that the map explains
    rms_mapped: float
    rms_backbone: float


@dataclass
class Count:
    tensors: int = 0
    numbers: int = 0


@dataclass
class Accounting:
    """What became of every tensor of both parents: moved, folded, aligned, kept, new or left out."""

    summary: dict[str, Count]  # by model and fate, such as "small: folded"
    tensors: dict[str, str]  # "small/tubes.long.weight" -> "folded"


@dataclass
class TransplantPlan:
    """The plan: it needs no weights."""

    match: str  # of widths: fold | align
    embed_dim: int
    tubes: Mapping[str, TubePlan]
    frame_tokens: int  # of a clip, from the backbone's own patches
    tokens: int  # of a clip, all
    gate: GatePlan
    parameters: Parameters
    parents: dict[str, Parent]  # small, backbone


@dataclass
class TransplantReport(TransplantPlan):
    """The content of ``report.json`` of an adapted model."""

    tubes: Mapping[str, TubeReport]
    gate: GateReport
    positions: Positions
    random_tubes: bool
    match_scale: bool
    remarks: list[str]
    image_max_abs_diff: float  # of an image's pooled features, to those of the source backbone
    accounting: Accounting
    peak_bytes: int
    align: Alignment | None = None  # with match: align
    seconds: float = 0.0


def account(model: TubeViT, donor: Donor, large: Backbone, random_tubes: bool, match: str) -> Accounting:
    """What became of every tensor of both parents: numbers, and a list by name."""
    fates: dict[str, str] = {}
    for kernel in () if random_tubes else donor.kernels:
        folded = model.tokenizer.tubes[kernel.spec.name].spec.places_per_token > 1
        fates |= dict.fromkeys(kernel.parents, "aligned" if match == "align" else "folded" if folded else "moved")
    assert model.arm.gate is not None
    rows = [("small", name, fates.get(name, "left"), tensor) for name, tensor in donor.tensors.items()]
    rows += [("backbone", name, "kept", tensor) for name, tensor in large.state_dict().items()]
    rows += [("backbone", name, "left", tensor) for name, tensor in large.left.items()]
    rows += [("adapted", "gate.alpha", "new", model.arm.gate.alpha)]
    if random_tubes:
        kernels = model.tokenizer.tubes.state_dict()
        rows += [("adapted", f"tubes.{name}", "new", tensor) for name, tensor in kernels.items()]
    summary: dict[str, Count] = {}
    for parent, _, fate, tensor in rows:
        count = summary.setdefault(f"{parent}: {fate}", Count())
        count.tensors += 1
        count.numbers += tensor.numel()
    return Accounting(summary, {f"{parent}/{name}": fate for parent, name, fate, _ in rows})


def remarks(tubes: Mapping[str, TubeReport]) -> list[str]:
    """Remarks on tubes whose tokens are far stronger or far weaker than the backbone's own patches."""
    ratios = {name: tube.rms_adapted / tube.rms_backbone for name, tube in tubes.items()}
    strong = [f"{name} ({ratio:.0f} times)" for name, ratio in ratios.items() if ratio > FAR]
    weak = [f"{name} (1/{1 / ratio:.0f})" for name, ratio in ratios.items() if ratio < 1 / FAR]
    sentences = []
    if strong:
        sentences.append(
            f"tokens are far stronger than the backbone's own patches: {', '.join(strong)}; frozen blocks change such "
            "tokens little, and positions count for little in them. Keep them so at first: on real weights "
            "--match-scale made late blocks learn motion more slowly (docs/figures.md)"
        )
    if weak:
        sentences.append(
            f"tokens are far weaker than the backbone's own patches: {', '.join(weak)}; positions and what frozen "
            "blocks add outweigh what such tokens saw. Compare with --match-scale, which makes them as strong"
        )
    return sentences


def lines(report: TransplantPlan) -> list[str]:
    """A report or a plan as text."""
    text = [f"{report.parents['small'].name} -> {report.parents['backbone'].name}: {report.tokens} tokens"]
    text += [f"  tube {name}: {_tube(report, tube)}" for name, tube in report.tubes.items()]
    if isinstance(report, TransplantReport):
        text += [f"  {remark}" for remark in report.remarks]
        if report.align is not None:
            text.append(f"  map of image tokens: {_fit(report.align)}")
    counts, gate = report.parameters, report.gate
    text.append(f"  frozen {counts.frozen:,}, late blocks {counts.late_blocks:,}, tubes {counts.tubes:,}")
    text.append(f"  gate at the output of block {gate.frozen_depth} of {gate.depth}")
    if isinstance(report, TransplantReport):
        text.append(f"  image output against the source backbone: max abs diff {report.image_max_abs_diff:.1e}")
        text.append(f"  gate closed against no gate: max abs diff {report.gate.closed_max_abs_diff:.1e}")
        text.append(f"  gate ready to open: |d loss / d alpha| = {report.gate.alpha_grad:.2e}")
        fates = report.accounting.summary.items()
        text += [f"  {fate}: {count.tensors} tensors, {count.numbers:,} numbers" for fate, count in fates]
        text.append(f"  {report.seconds:.1f} s, peak memory {report.peak_bytes / 2**30:.2f} GiB")
    return text


def _tube(report: TransplantPlan, tube: TubePlan) -> str:
    fold = "x".join(map(str, tube.fold))
    line = f"{tube.tokens} tokens, {tube.channels} channels "
    if report.match == "align":
        line += ("" if fold == "1x1x1" else f"at {fold} places ") + f"aligned to {report.embed_dim}"
    else:
        line += f"folded {fold}"
    if not tube.exact:
        line += f"; NOT EXACT: the last {tube.dropped_channels} channels of the fold are dropped"
        line += " (--match align fits any width)"
    if isinstance(report, TransplantReport) and isinstance(tube, TubeReport):
        difference = tube.token_max_abs_diff
        line += "; drawn at random" if difference is None else f"; max abs diff {difference:.1e}"
        line += f", RMS {tube.rms_source:.3g} beside the backbone's {tube.rms_backbone:.3g}"
        line += f", scaled to {tube.rms_adapted:.3g}" if report.match_scale else ""
    return line


def _fit(align: Alignment) -> str:
    return (
        f"R^2 {align.r2:.3f} on {align.held_out} of {align.images} images left out, penalty {align.penalty:.1e} a row, "
        f"RMS {align.rms_mapped:.3g} beside the backbone's {align.rms_backbone:.3g}"
    )

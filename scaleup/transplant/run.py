"""A whole transplant: read both parents, plan, move, measure, account for every tensor, write."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scaleup import config as config_file
from scaleup import tensors
from scaleup.backbones import Backbone
from scaleup.backbones.build import build
from scaleup.checkpoint import save
from scaleup.data.loader import eval_loader
from scaleup.data.shards import Shards
from scaleup.errors import UserError, nearest
from scaleup.files import refuse_existing
from scaleup.model import TubeViT
from scaleup.positions import KINDS
from scaleup.recipe import Input
from scaleup.transplant import measure
from scaleup.transplant.channels import Plan, plan_channels
from scaleup.transplant.donor import Donor, read
from scaleup.transplant.kernels import adapted_config, move, randomise_tubes, scale_tubes
from scaleup.transplant.report import account


@dataclass
class Options:
    """Choices of a transplant; the defaults are those of the paper where it states any."""

    weights: str | None = "pretrained"  # or a file; None: random initialisation
    gate_at: int | None = None  # None: three quarters of the blocks
    exact: bool = False  # refuse widths that the channels do not divide
    positions: str | None = None  # None: the backbone's own, where it has any
    amplitude: float | None = None  # of the sines in time; None: the RMS of the backbone's own positions
    match_scale: bool = False  # give tube tokens the RMS of the backbone's patch tokens
    random_tubes: bool = False  # the control: fresh kernels of the same RMS
    size: tuple[int, int] | None = None  # (h, w); None: the backbone's own
    seed: int = 0
    overwrite: bool = False
    placement: str = "device"  # "disk": frozen blocks stay in the file of the weights, one read at a time


def transplant(
    small: str, backbone: str, out: Path | None, options: Options, clips: Path | Tensor | None = None
) -> dict:
    """Make, measure and write an adapted model; returns the report. ``out`` None only plans, without weights.

    Args:
        clips: what scales are measured on: video shards, or pixels in [0, 1] (B, 3, T, H, W); None for a made-up clip.
    """
    started = time.perf_counter()
    if out is not None:
        refuse_existing(out, options.overwrite)
    donor = read(small)
    large = build(backbone, _positional_kwargs(options), options.size, "meta", options.seed)
    plans = _plans(donor, large, options)
    gate_at = _gate_at(large, options.gate_at)
    report = _planned(donor, large, plans, gate_at)
    if out is None:
        return report
    on_disk = gate_at if options.placement == "disk" else 0
    large = build(backbone, _positional_kwargs(options), options.size, options.weights, options.seed, on_disk)
    config = adapted_config(donor, large, plans, options.seed, _positions(donor, large, options), gate_at)
    config_file.check(config, str(out))  # what is written can be loaded
    model = move(donor, config, large)
    model.base = large.hashes()
    config["backbone"]["sha256"] = tensors.fingerprint(model.base)
    clip = _clip(clips, config)
    report |= {"parents": _parents(donor, config), "positions": config["positions"]}
    _measure(report, model, donor, large, clip, options)
    report["accounting"] = account(model, donor, large, options.random_tubes)
    report |= {"seconds": time.perf_counter() - started, "peak_bytes": measure.peak_bytes()}
    model.report = report
    save(model, out, "delta", options.overwrite)
    report |= {"seconds": time.perf_counter() - started}
    return report


def _positional_kwargs(options: Options) -> dict[str, Any]:
    if options.positions is not None and options.positions not in KINDS:
        allowed = f"allowed are {', '.join(KINDS)}{nearest(options.positions, KINDS)}"
        raise UserError(f"unknown positions {options.positions!r}; {allowed}")
    return {} if options.positions in (None, "backbone") else {"pos_embed": "none"}


def _gate_at(large: Backbone, asked: int | None) -> int:
    depth = large.depth - large.depth // 4 if asked is None else asked
    if not 1 <= depth <= large.depth:
        raise UserError(f"--gate-at {depth} does not fit {large.name}; allowed are 1 to {large.depth}")
    return depth


def _plans(donor: Donor, large: Backbone, options: Options) -> list[Plan]:
    size = (donor.config["input"]["frames"], *large.size)
    return [plan_channels(kernel, large.embed_dim, size, options.exact) for kernel in donor.kernels]


def _positions(donor: Donor, large: Backbone, options: Options) -> dict[str, Any]:
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


def _planned(donor: Donor, large: Backbone, plans: list[Plan], gate_at: int) -> dict[str, Any]:
    """What is known before any weight is touched."""
    size = (donor.config["input"]["frames"], *large.size)
    stride, offset = donor.config["frames"]["stride"], donor.config["frames"]["offset"]
    patches = (large.size[0] // large.patch_size[0]) * (large.size[1] // large.patch_size[1])
    frames = ((size[0] - offset - 1) // stride + 1) * patches
    tubes = {
        plan.spec.name: {
            "channels": plan.spec.channels,
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
        "tubes": tubes,
        "frame_tokens": frames,
        "tokens": large.num_prefix_tokens + frames + sum(plan.tokens for plan in plans),
        "gate": {"frozen_depth": gate_at, "depth": large.depth},
        "parameters": {
            "backbone": count,
            "tubes": sum(kernel.weight.numel() + kernel.bias.numel() for kernel in donor.kernels),
            "frozen": count - late,
            "late_blocks": late,
        },
        "parents": {"small": {"name": donor.name}, "backbone": {"name": large.name}},
    }


def _parents(donor: Donor, config: Mapping[str, Any]) -> dict[str, Any]:
    entry = config["backbone"]
    return {
        "small": {"name": donor.name, "sha256": donor.sha256},
        "backbone": {"name": entry["name"], "weights": entry["weights"], "sha256": entry["sha256"]},
    }


def _measure(
    report: dict[str, Any], model: TubeViT, donor: Donor, large: Backbone, clip: Tensor, options: Options
) -> None:
    """Fill in what is measured, and apply what depends on it: matching of scales, the random control."""
    tokens = {kernel.spec.name: measure.tube_tokens(model, kernel.spec.name, clip) for kernel in donor.kernels}
    backbone_rms = measure.backbone_rms(model, clip)
    for kernel in donor.kernels:
        name = kernel.spec.name
        spec = model.tokenizer.tubes[name].spec
        difference = measure.token_max_abs_diff(kernel, donor, spec, tokens[name][:1], clip[:1])  # type: ignore[arg-type]
        report["tubes"][name] |= {
            "token_max_abs_diff": difference,
            "rms_source": measure.rms(tokens[name]),
            "rms_backbone": backbone_rms,
        }
    wanted = {name: backbone_rms if options.match_scale else measure.rms(tokens[name]) for name in tokens}
    if options.random_tubes:
        randomise_tubes(model, options.seed + 1)
        for tube in report["tubes"].values():
            tube["token_max_abs_diff"] = None  # nothing of the small model is left to compare with
    if options.random_tubes or options.match_scale:
        scale_tubes(model, {n: rms / measure.rms(measure.tube_tokens(model, n, clip)) for n, rms in wanted.items()})
    for name in tokens:
        report["tubes"][name]["rms_adapted"] = measure.rms(measure.tube_tokens(model, name, clip))
    images = measure.normalise(clip[:1], model.config)[:, :, 0]
    taps = model.arm_inputs(images)  # one pass of the trunk serves all that is asked of the arm
    report["image_max_abs_diff"] = measure.image_max_abs_diff(model, large, images, taps)
    report["gate"] |= {
        "closed_max_abs_diff": measure.closed_max_abs_diff(model, taps),
        "alpha_grad": measure.alpha_grad(model, taps),
    }
    report |= {"random_tubes": options.random_tubes, "match_scale": options.match_scale}


def _clip(clips: Path | Tensor | None, config: Mapping[str, Any], count: int = 8) -> Tensor:
    """Pixels in [0, 1] (B, 3, T, H, W) of the adapted model's size: given, read from video shards, or made up."""
    if isinstance(clips, Tensor):
        return clips
    if clips is None:
        return measure.natural_clip(config["input"]["frames"], config["input"]["size"])
    batch = next(iter(eval_loader(Shards.open(clips), {}, Input(**config["input"]), batch=count, workers=0)))
    if batch.modality != "video" or not batch.keys:
        raise UserError(f"{clips} holds no videos that can be read; --clips takes video shards")
    return batch.pixels[:, 0].float() / 255

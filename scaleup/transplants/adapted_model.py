"""A whole transplant: read both parents, plan, move, measure, account for every tensor, write the adapted model."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from scaleup.backbones.backbone import Backbone
from scaleup.backbones.build import build
from scaleup.checkpoint.model_directory import ModelConfig
from scaleup.common import tensors
from scaleup.common.files import refuse_existing
from scaleup.common.processes import peak_bytes
from scaleup.common.ridge import Affine
from scaleup.model.tokenizer import normalise
from scaleup.model.tubevit import TubeViT
from scaleup.transplants import measure, transplant_plan
from scaleup.transplants.account import account, remarks
from scaleup.transplants.align import Alignment, fit
from scaleup.transplants.donor import Donor, read
from scaleup.transplants.move import adapted_config, move, randomise_tubes, scale_tubes
from scaleup.transplants.transplant_plan import Options


def transplant(
    small: str,
    backbone: str,
    out: Path | None,
    options: Options,
    clips: Path | Tensor | None = None,
    images: Path | Tensor | None = None,
) -> dict:
    """Make, measure and write an adapted model; returns the report. ``out`` None only plans, without weights.

    Args:
        images: what tokens are aligned on: shards of images or videos, or pixels in [0, 1] (B, 3, H, W); None for
            frames of ``clips``.
        clips: what scales are measured on: video shards, or pixels in [0, 1] (B, 3, T, H, W); None for a made-up clip.
    """
    started = time.perf_counter()
    seen = clips if images is None else images
    transplant_plan.refuse_nonsense(options, images is not None, out is None or seen is not None)
    if out is not None:
        refuse_existing(out, options.overwrite)
    donor = read(small)
    large = build(backbone, transplant_plan.positional_kwargs(options), options.size, "meta", options.seed)
    plans = transplant_plan.plan_tubes(donor, large, options)
    gate_at = transplant_plan.gate_at(large, options.gate_at)
    report = transplant_plan.describe_plans(donor, large, plans, gate_at, options.match)
    if out is None:
        return report
    on_disk = gate_at if options.placement == "disk" else 0
    large = build(
        backbone, transplant_plan.positional_kwargs(options), options.size, options.weights, options.seed, on_disk
    )
    config = adapted_config(
        donor, large, plans, options.seed, transplant_plan.positions(donor, large, options), gate_at
    )
    ModelConfig.from_json(config.to_json(), str(out))  # what is written can be loaded
    alignment = _alignment(donor, large, options, config, seen) if options.match == "align" else None
    report |= {"align": alignment.measured} if alignment is not None else {}
    model = move(donor, config, large, alignment)
    model.base = large.hashes()
    config.backbone.sha256 = tensors.fingerprint(model.base)
    clip = measure.clip(clips, config.input)
    report |= {"parents": _parents(donor, config), "positions": asdict(config.positions)}
    _measure(report, model, donor, large, clip, options, alignment and alignment.map)
    report["accounting"] = account(model, donor, large, options.random_tubes, options.match)
    report |= {"seconds": time.perf_counter() - started, "peak_bytes": peak_bytes()}
    model.report = report
    model.save_pretrained(out, "delta", options.overwrite)
    report |= {"seconds": time.perf_counter() - started}
    return report


def _alignment(
    donor: Donor, large: Backbone, options: Options, config: ModelConfig, seen: Path | Tensor | None
) -> Alignment:
    assert donor.patch is not None and seen is not None
    return fit(donor.patch, donor.config.input, large, measure.images(seen, config.input), (1, *options.fold))


def _parents(donor: Donor, config: ModelConfig) -> dict[str, Any]:
    entry = config.backbone
    return {
        "small": {"name": donor.name, "sha256": donor.sha256, "data": donor.data},
        "backbone": {"name": entry.name, "weights": entry.weights, "sha256": entry.sha256},
    }


def _measure(
    report: dict[str, Any],
    model: TubeViT,
    donor: Donor,
    large: Backbone,
    clip: Tensor,
    options: Options,
    map: Affine | None,
) -> None:
    """Fill in what is measured, and apply what depends on it: matching of scales, the random control."""
    tokens = {kernel.spec.name: measure.tube_tokens(model, kernel.spec.name, clip) for kernel in donor.kernels}
    backbone_rms = measure.backbone_rms(model, clip)
    for kernel in donor.kernels:
        name = kernel.spec.name
        spec = model.tokenizer.tubes[name].spec
        difference = measure.token_max_abs_diff(kernel, donor, spec, tokens[name][:1], clip[:1], map)
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
    report["remarks"] = remarks(report["tubes"])
    images = normalise(clip[:1], model.config.input)[:, :, 0]
    taps = model.arm_inputs(images)  # one pass of the trunk serves all that is asked of the arm
    report["image_max_abs_diff"] = measure.image_max_abs_diff(model, large, images, taps)
    report["gate"] |= {
        "closed_max_abs_diff": measure.closed_max_abs_diff(model, taps),
        "alpha_grad": measure.alpha_grad(model, taps),
    }
    report |= {"random_tubes": options.random_tubes, "match_scale": options.match_scale}

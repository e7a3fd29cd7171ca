"""Makes adapted models: a transplant of a small model into a backbone, or tubes for a timm model of the caller."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scaleup.backbones import timm
from scaleup.backbones.backbone import Backbone, refuse_unless_plain
from scaleup.backbones.build import build
from scaleup.checkpoint.model_directory import ModelConfig, Pool
from scaleup.common import tensors
from scaleup.common.errors import UserError
from scaleup.common.files import refuse_existing
from scaleup.common.processes import peak_bytes
from scaleup.common.ridge import Affine
from scaleup.config.schema import Frames, Input, Positions, Tube
from scaleup.data.loader import eval_loader
from scaleup.data.shards import Shards
from scaleup.model.build import describe
from scaleup.model.tokenizer import natural_clip, normalise
from scaleup.model.tubevit import TubeViT
from scaleup.transplants import measure
from scaleup.transplants.donor import Donor, read
from scaleup.transplants.move import fit, move, randomise_tubes, scale_tubes
from scaleup.transplants.transplant_plan import Options, describe_plans, gate_depth, plan_tubes, positions
from scaleup.transplants.transplant_report import (
    GateReport,
    Parent,
    TransplantPlan,
    TransplantReport,
    TubeReport,
    account,
    remarks,
)

IMAGES = 512  # a map is fitted on at least this many, if there are so many, and on at most twice as many
CLIPS = 8  # scales are measured on this many


def plan(small: str | Path, backbone: str, options: Options, images: Path | Tensor | None = None) -> TransplantPlan:
    """Plan what :func:`transplant` makes. No weights of the backbone are built or read."""
    options.check(images is not None)
    return _planned(small, backbone, options)[-1]


def _planned(small: str | Path, backbone: str, options: Options) -> tuple[Donor, dict[str, Tube], TransplantPlan]:
    donor = read(small)
    large = build(backbone, options.kwargs, options.size, "meta", options.seed)
    plans = plan_tubes(donor, large, options)
    frozen_depth = gate_depth(large, options.gate_at)
    tubes = {each.spec.name: each.tube for each in plans}
    return donor, tubes, describe_plans(donor, large, plans, frozen_depth, options.match)


def transplant(
    small: str | Path,
    backbone: str,
    out: str | Path,
    options: Options | None = None,
    clips: Path | Tensor | None = None,
    images: Path | Tensor | None = None,
) -> TransplantReport:
    """Make, measure and write an adapted model (Section 3.6).

    Args:
        small: the small model: a directory, its .safetensors, a .ckpt or .pt.
        backbone: the large image ViT: ``vit_h``, ``timm:NAME``, ``open_clip:NAME/TAG``, a directory, a file, ...
        out: the directory to write.
        options: None for the paper's choices.
        clips: scales are measured on these: video shards, or pixels in [0, 1] (B, 3, T, H, W); None for a synthetic
            clip.
        images: tokens are aligned on these: shards of images or videos, or pixels in [0, 1] (B, 3, H, W); None for
            frames of ``clips``.

    Raises:
        UserError: a parent cannot be read or is not plain, options contradict each other, or ``out`` exists.
    """
    started, options, out = time.perf_counter(), options or Options(), Path(out)
    options.check(images is not None)
    pixels = clips if images is None else images
    if options.match == "align" and pixels is None:
        raise UserError("--match align fits a map on images, and none were given; say where with --images, or --clips")
    refuse_existing(out, options.overwrite)
    donor, tubes, planned = _planned(small, backbone, options)
    frozen_depth = planned.gate.frozen_depth
    on_disk = frozen_depth if options.placement == "disk" else 0
    large = build(backbone, options.kwargs, options.size, options.weights, options.seed, on_disk)
    placed, input = positions(large, options, donor.config.positions.amplitude), donor.config.input
    arm = {"frozen_depth": frozen_depth, "gate": True}
    config = adapted_config(large, options.seed, input, donor.config.frames, tubes, placed, **arm)
    ModelConfig.from_json(config.to_json(), str(out))  # check that the config that will be written can be read
    model, map, align = _assembled(config, large), None, None
    if options.match == "align":
        assert donor.patch is not None and pixels is not None
        map, align = fit(donor.patch, donor.config.input, large, _images(pixels, config.input), (1, *options.fold))
    move(donor, model, map)
    model.base = large.hashes()
    config.backbone.sha256 = tensors.fingerprint(model.base)
    report = _report(planned, model, donor, large, _clip(clips, config.input), options, map)
    report.align, report.seconds = align, time.perf_counter() - started
    model.report = asdict(report)
    model.save_pretrained(out, "delta", options.overwrite)
    report.seconds = time.perf_counter() - started
    return report


def _report(
    planned: TransplantPlan,
    model: TubeViT,
    donor: Donor,
    large: Backbone,
    clip: Tensor,
    options: Options,
    map: Affine | None,
) -> TransplantReport:
    """Scale the tubes as options say, then measure the model on a clip in [0, 1] (B, 3, T, H, W)."""
    tubes = _measured_tubes(planned, model, donor, clip, options, map)
    image = normalise(clip[:1], model.config.input)[:, :, 0]
    inputs = model.arm_inputs(image)  # one pass of the trunk, for all measurements of the arm
    difference = measure.image_max_abs_diff(model, large, image, inputs)
    closed, gradient = measure.closed_max_abs_diff(model, inputs), measure.alpha_grad(model, inputs)
    return TransplantReport(
        match=planned.match,
        embed_dim=planned.embed_dim,
        tubes=tubes,
        frame_tokens=planned.frame_tokens,
        tokens=planned.tokens,
        gate=GateReport(**vars(planned.gate), closed_max_abs_diff=closed, alpha_grad=gradient),
        parameters=planned.parameters,
        parents=_parents(donor, model.config),
        positions=model.config.positions,
        random_tubes=options.random_tubes,
        match_scale=options.match_scale,
        remarks=remarks(tubes),
        image_max_abs_diff=difference,
        accounting=account(model, donor, large, options.random_tubes, options.match),
        peak_bytes=peak_bytes(),
    )


def adapt(
    vit: nn.Module,
    tubes: Mapping[str, Tube],
    frozen_depth: int,
    gate: bool | str = True,
    heads: Mapping[str, Sequence[str]] | None = None,
    frames: int = 32,
    fps: float = 15.0,
    frame_stride: int = Frames.stride,
    kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    pool: Pool | None = None,
) -> TubeViT:
    """Give an image ViT fresh tubes, a closed gate and heads (Section 3.6); its weights are shared, not copied.

    Args:
        vit: a plain ViT from ``timm.create_model``; its blocks below ``frozen_depth`` no longer take gradients.
        tubes: name -> tube; kernels are drawn from ``seed``. To move trained ones see :func:`transplant`.
        frozen_depth: blocks that stay frozen; the gate adds at the output of the last of them (Equation 8).
        gate: True for one alpha, ``"channel"`` for one each channel, False for none.
        heads: name -> its classes.
        frames, fps: length of a clip in frames, and frames a second.
        frame_stride: of this many frames of a clip, the first goes through the ViT's own patches.
        kwargs: changes that were made to timm's architecture when ``vit`` was built (``depth=6``); a saved model is
            rebuilt with them.
        pool: how tokens become features, ``scaleup.Pool("attentive")`` or ``"mean"``; None: the ViT's own way.

    Returns:
        The model in eval mode. Videos are (B, 3, T, H, W) and images (B, 3, H, W), normalised with the ViT's own mean
        and std.

    Raises:
        UserError: the ViT is not plain, or not what its timm name and ``kwargs`` make; or the depth does not fit.
    """
    backbone = _taken_apart(vit, dict(kwargs or {}))
    placed = positions(backbone, Options())
    config = adapted_config(backbone, seed, Input(frames, fps=fps), Frames(frame_stride), tubes, placed)
    classes = {head: list(names) for head, names in (heads or {}).items()}
    return _assembled(config, backbone).with_arm(frozen_depth, gate, classes, seed, pool=pool).eval()


def _taken_apart(vit: nn.Module, kwargs: dict[str, Any]) -> Backbone:
    """The parts of a timm model, without its classifier. The caller's model keeps its classifier."""
    name: str = (getattr(vit, "pretrained_cfg", None) or {}).get("architecture", "")
    refuse_unless_plain(vit, f"timm:{name}" if name else f"{type(vit).__module__}.{type(vit).__name__}")
    if not name:
        raise UserError("this ViT does not say its timm name (pretrained_cfg); build it with timm.create_model")
    bare = copy.copy(vit)
    bare._modules = {**vit._modules, "head": nn.Identity()}
    backbone = timm.take_apart(bare, f"timm:{name}")
    backbone.kwargs = kwargs
    with torch.device("meta"):
        again = timm.take_apart(timm.create(name, kwargs, backbone.size), backbone.name).state_dict()
    shapes, expected = ({key: x.shape for key, x in each.items()} for each in (backbone.state_dict(), again))
    if shapes != expected:
        raise UserError(
            f"this ViT is not {name} with changes {kwargs}; give those that it was built with as kwargs, "
            "such as kwargs={'depth': 6}"
        )
    return backbone


def adapted_config(
    backbone: Backbone,
    seed: int,
    clips: Input,
    frames: Frames,
    tubes: Mapping[str, Tube],
    positions: Positions,
    **arm: Any,
) -> ModelConfig:
    """The ``config.json`` of a backbone with tubes.

    Args:
        clips: gives the number of frames and the frames a second; the size is the backbone's.
        arm: ``frozen_depth`` and ``gate``.
    """
    input = Input(clips.frames, list(backbone.size), clips.fps, list(backbone.mean), list(backbone.std))
    return describe(backbone, seed, input=input, frames=frames, tubes=dict(tubes), positions=positions, **arm)


def _assembled(config: ModelConfig, backbone: Backbone) -> TubeViT:
    """The model in eval mode; tubes are drawn from the seed of the configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.backbone.seed)
        return TubeViT.assemble(config, backbone, config.backbone.seed).eval()


def _parents(donor: Donor, config: ModelConfig) -> dict[str, Parent]:
    source = config.backbone
    large = Parent(source.name, source.sha256, weights=source.weights)
    return {"small": Parent(donor.name, donor.sha256, data=donor.data), "backbone": large}


def _measured_tubes(
    planned: TransplantPlan, model: TubeViT, donor: Donor, clip: Tensor, options: Options, map: Affine | None
) -> dict[str, TubeReport]:
    """Measure the tubes, and apply the options that need these measurements: the same scale, random kernels."""
    tokens = {name: measure.tube_tokens(model, name, clip) for name in planned.tubes}
    sources = {name: measure.rms(each) for name, each in tokens.items()}
    backbone_rms = measure.backbone_rms(model, clip)
    differences: dict[str, float | None] = {}
    for kernel in donor.kernels:
        name = kernel.spec.name
        spec = model.tokenizer.tubes[name].spec
        differences[name] = measure.token_max_abs_diff(kernel, donor, spec, tokens[name][:1], clip[:1], map)
    if options.random_tubes:
        randomise_tubes(model, options.seed + 1)
        differences = dict.fromkeys(differences)  # random kernels are not compared with the small model
    if options.random_tubes or options.match_scale:
        targets = dict.fromkeys(sources, backbone_rms) if options.match_scale else sources
        scale_tubes(model, {n: rms / measure.rms(measure.tube_tokens(model, n, clip)) for n, rms in targets.items()})
    adapted = {name: measure.rms(measure.tube_tokens(model, name, clip)) for name in tokens}
    return {
        name: TubeReport(
            **vars(tube),
            token_max_abs_diff=differences[name],
            rms_source=sources[name],
            rms_backbone=backbone_rms,
            rms_adapted=adapted[name],
        )
        for name, tube in planned.tubes.items()
    }


def _clip(clips: Path | Tensor | None, input: Input) -> Tensor:
    """Pixels in [0, 1] (B, 3, T, H, W): those of the caller, or read from video shards, or a synthetic clip."""
    if isinstance(clips, Tensor):
        return clips
    if clips is None:
        return natural_clip(input.frames, (input.size[0], input.size[1]))
    batch = next(iter(eval_loader(Shards.open(clips), {}, input, batch=CLIPS, workers=0)))
    if batch.modality != "video" or not batch.keys:
        raise UserError(f"{clips} holds no videos that can be read; --clips takes video shards")
    return batch.pixels[:, 0].float() / 255


def _images(pixels: Path | Tensor, input: Input) -> Iterator[Tensor]:
    """Batches of images in [0, 1] (B, 3, H, W), evenly spread over the shards; of a video its middle frame."""
    if isinstance(pixels, Tensor):
        yield _stills(pixels)
        return
    shards = Shards.open(pixels)
    every = max(1, len(shards) // IMAGES)
    for batch in eval_loader(shards, {}, input, batch=16, workers=0, rank=0, world=every):
        if batch.keys:
            yield _stills(batch.pixels[:, 0].float() / 255)


def _stills(pixels: Tensor) -> Tensor:
    """Images (B, 3, H, W) unchanged; of videos (B, 3, T, H, W) the middle frame."""
    return pixels if pixels.dim() == 4 else pixels[:, :, pixels.shape[2] // 2]

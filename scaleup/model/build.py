"""Builds models from recipes, model directories and run directories, and prepares them for a run: placement and
precision.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scaleup.backbones.backbone import Backbone
from scaleup.backbones.build import add_blocks, build
from scaleup.checkpoint.model_directory import (
    ModelConfig,
    Source,
    local,
    public_name,
    read_config,
    read_report,
    read_tensors,
    refuse_misfits,
)
from scaleup.common.distributed import World
from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.config.recipe import default_precision, load_saved, refuse_emulated
from scaleup.config.schema import Model
from scaleup.model.adapter import FULL, Adapt
from scaleup.model.arm import Heads
from scaleup.model.tokenizer import natural_clip, normalise, size_of
from scaleup.model.trunk import Trunk, cast_trunks, drift, load_block, measure_precisions
from scaleup.model.tubes import TubeSpec, TubeTokenizer
from scaleup.model.tubevit import TubeViT, depths_of

load = TubeViT.from_pretrained
# The order of the keys in the config.json of a fresh model.
FRESH = ["backbone", "interpolate", "frozen_depth", "gate", "adapter", "heads", "tubes", "input", "frames", "positions"]


def describe(backbone: Backbone, seed: int, **parts: Any) -> ModelConfig:
    """The config of a model on a backbone. ``parts``: input, frames, tubes and so on."""
    source = Source(backbone.name, backbone.kwargs, backbone.weights, backbone.license, seed, sha256=None)
    return ModelConfig(backbone=source, **parts)


def fresh(recipe: Model, heads: Heads, seed: int) -> TubeViT:
    """The model that a recipe describes. Weights that are not loaded are random, from ``seed``."""
    entry, positions = recipe.backbone, recipe.positions
    kwargs = dict(entry.kwargs) if positions.kind == "backbone" else {**entry.kwargs, "pos_embed": "none"}
    backbone = build(entry.name, kwargs, tuple(recipe.input.size), entry.weights, seed)  # type: ignore[arg-type]
    if entry.fresh_blocks:
        backbone = add_blocks(backbone, entry.fresh_blocks, seed)
    described = describe(
        backbone,
        seed,
        interpolate=recipe.interpolate,
        heads={name: list(classes) for name, classes in heads.items()},
        input=recipe.input,
        frames=recipe.frames,
        tubes=recipe.tubes,
        positions=positions,
    )
    described.order = FRESH
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TubeViT.assemble(described, backbone, seed)
    if recipe.inflate:
        inflate(model.tokenizer.tubes, backbone)
    return model


def load_on_meta(source: str | Path) -> TubeViT:
    """The model of a directory or hub id on the meta device. Only its config.json is read."""
    return TubeViT.from_config(read_config(local(source)), "meta")


def load_run(run: str | Path, base: str | None = None, placement: str = "device") -> dict[str, TubeViT]:
    """The arms of a run directory by name, in eval mode; those of a sweep share the tensors of one trunk.

    Args:
        base, placement: see :meth:`TubeViT.from_pretrained`.

    Raises:
        UserError: as :func:`load`, it is not the directory of a run, or the model that the arms started from has
            changed since.
    """
    run = Path(run)
    template = load_saved(run / "recipe.yaml").model.load
    arms = {path.parent.name: path.parent for path in sorted(run.glob("*/config.json"))}
    if not arms:
        raise UserError(f"{run} has no trained arms yet")
    if template is None or len(arms) == 1:
        return {name: load(directory, base, placement) for name, directory in arms.items()}
    shared = load(template, base, placement)
    return {name: _arm_of(shared, directory) for name, directory in arms.items()}


def _arm_of(template: TubeViT, directory: Path) -> TubeViT:
    config = read_config(directory)
    adapt = Adapt(*astuple(config.adapter)) if config.adapter else FULL
    heads, pool, losses = config.heads, config.pool, config.losses
    model = template.with_arm(config.frozen_depth, config.gate, heads, adapt=adapt, pool=pool, losses=losses)
    own, tensors = model.named_tensors(), read_tensors(directory)
    shared = {name for name, parameter in model.arm.named_parameters() if not parameter.requires_grad}
    names = {name: public_name(f"arm.{name}", model.block_prefix) for name in model.arm.state_dict().keys() - shared}
    of_trunk = own.keys() - set(names.values())
    refuse_misfits(own, tensors, of_trunk | model.base.keys(), directory)
    stored = model.stored_tensors()  # frozen blocks may wait in a file
    if any(not torch.equal(tensors[name], stored[name]) for name in tensors.keys() & of_trunk):
        raise UserError(f"the model that {directory} started from has changed since; load this directory by itself")
    state = {name: tensors[public] for name, public in names.items() if public in tensors}
    model.arm.load_state_dict(state, strict=False)
    model.report = read_report(directory)
    return model.eval()


@dataclass
class PreparedTrunk:
    """How frozen blocks compute, and where they wait."""

    precision: str
    placement: str
    block_seconds: dict[str, float]  # of a block in each precision, where it was chosen by measuring
    drift: dict[int, float]  # by frozen depth, how far casting moves h: RMS of the difference over that of h


def prepare_trunks(
    models: Collection[TubeViT], settings: schema.Trunk, world: World, batch: int = 1
) -> PreparedTrunk | None:
    """Cast and place the blocks that the trunks of ``models`` share; None where nothing is frozen.

    Blocks are cast where they are, one at a time, and then move: a GPU never holds all of them in float32. How far h
    moves is measured on a made-up clip. Blocks that were cast before stay as they are, unless another precision is
    asked for.

    Args:
        batch: samples of a pass, for which ``auto`` measures.

    Raises:
        UserError: the trunk overflows in the precision that was asked for, or was cast to another one before, or the
            device does not compute in it.
    """
    trunks = [model.trunk for model in models if model.trunk is not None]
    if not trunks:
        return None
    deepest = max(models, key=lambda model: model.frozen_depth)
    trunk, depths = deepest.trunk, depths_of(models)
    assert trunk is not None
    refuse_emulated("trunk.precision", settings.precision, world.device.type)
    for shared in trunks:
        shared.place(world.device, None)
    if trunk.precision != "float32":
        if settings.precision not in (None, "auto", trunk.precision):
            raise UserError(
                f"the frozen blocks are in {trunk.precision} already, not in {settings.precision}; load the model again"
            )
        cast_trunks(trunks, trunk.precision, set())
        for shared in trunks:
            shared.place(world.device, settings.placement)
        return PreparedTrunk(trunk.precision, settings.placement, {}, {})
    clip = natural_clip(deepest.preprocess.frames, deepest.preprocess.size)
    clip = normalise(clip, deepest.config.input).to(world.device)
    seconds = world.first(_measured(trunk, clip, batch)) if settings.precision == "auto" else {}
    stated = settings.precision or default_precision(world.device.type)
    choices = sorted(seconds, key=seconds.__getitem__) or [stated]
    precision, drifts = _cast(deepest, trunks, choices, clip, depths)
    for shared in trunks:
        shared.place(world.device, settings.placement)
    return PreparedTrunk(precision, settings.placement, seconds, drifts)


@torch.no_grad()
def _measured(trunk: Trunk, clip: Tensor, batch: int) -> dict[str, float]:
    """Seconds of a block in each precision. A GPU gets a batch: with one clip it would only be asked how fast it is
    called."""
    h = trunk.tokenizer(clip).repeat(1 if clip.device.type == "cpu" else batch, 1, 1)
    block = load_block(trunk.blocks, 0, trunk.file).to(clip.device)
    return measure_precisions(block, h, trunk.tokenizer.context(size_of(clip)))


def _cast(
    model: TubeViT, trunks: list[Trunk], choices: list[str], clip: Tensor, depths: Collection[int]
) -> tuple[str, dict[int, float]]:
    """Cast the blocks that ``trunks`` share, of which ``model`` has most, to the first of ``choices`` in which they do
    not overflow; returns it, and how far h moves at each depth.

    Raises:
        UserError: they overflow in the last one.
    """
    trunk = model.trunk
    assert trunk is not None
    if choices[0] == "float32":
        return "float32", {}
    exact, public = trunk(clip, depths), model.public_blocks()

    def drifts(precision: str) -> dict[int, float]:
        cast_trunks(trunks, precision, public)
        return {depth: drift(exact[depth].h, taps.h) for depth, taps in sorted(trunk(clip, depths).items())}

    for precision in choices[:-1]:
        blocks = [shared.blocks[:] for shared in trunks]
        with suppress(UserError):
            return precision, drifts(precision)
        for shared, own in zip(trunks, blocks, strict=True):
            shared.blocks, shared.precision, shared.originals = own, "float32", {}
    return choices[-1], drifts(choices[-1])


def inflate(tubes: TubeTokenizer, backbone: Backbone) -> None:
    """Give each tube the backbone's patch kernel in its central frame, zeros in all others, and the patches' bias.

    This is the central frame initialisation of ViViT (arXiv 2103.15691): at first a tube's token is the patch of its
    frame t // 2.

    Raises:
        UserError: the patches are not one convolution, there is no tube, or a tube has another height or width than a
            patch, is folded, has another number of channels, or has no kernel of its own.
    """
    if not tubes.specs:
        raise UserError("model.inflate is True, but model.tubes is empty")
    patch = patch_of(backbone.stem)
    if patch is None:
        raise UserError(f"the patches of {backbone.name} are not one convolution, which tubes begin as (model.inflate)")
    for spec in tubes.specs:
        _refuse_misfit(spec, backbone, tubes.shared is not None)
        tube = tubes[spec.name]
        with torch.no_grad():
            tube.kernel.zero_()
            tube.kernel[:, :, spec.kernel[0] // 2] = patch.weight  # (D, 3, h, w)
            if patch.bias is not None:
                tube.bias.copy_(patch.bias)


def patch_of(stem: nn.Module) -> nn.Conv2d | None:
    """The convolution of an image ViT's patch embedding; None if it is not a single one."""
    found = [module for module in stem.modules() if isinstance(module, nn.Conv2d)]
    return found[0] if len(found) == 1 else None


def _refuse_misfit(spec: TubeSpec, backbone: Backbone, shared: bool) -> None:
    patch, width = tuple(backbone.patch_size), backbone.embed_dim
    other = spec.kernel[1:] != patch or spec.places_per_token > 1
    faults = {
        "shares an interpolated kernel": shared,
        f"has kernel {list(spec.kernel)} and fold {list(spec.fold)}": other,
        f"emits {spec.channels} channels": spec.channels not in (None, width),
    }
    if made := next((words for words, holds in faults.items() if holds), None):
        raise UserError(
            f"tube {spec.name!r} {made}, and cannot begin as a patch of {backbone.name} (model.inflate); allowed are "
            f"kernels [t, {patch[0]}, {patch[1]}] of its own that emit {width} channels, without fold"
        )

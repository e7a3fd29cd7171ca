"""TubeViT through the real trainer: a step of one or several arms over one trunk, and inference."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bench.alone import Side
from bench.sides import Size, random_clip
from bench.step import CLASSES, described
from bench.tokenizer import FOLDED
from scaleup.common.distributed import join
from scaleup.config.schema import Arm, Input, Recipe
from scaleup.errors import UserError
from scaleup.model.build import fresh, set_kernels
from scaleup.model.trunk import Inputs, arm_inputs
from scaleup.model.tubes import TubeSpec
from scaleup.model.tubevit import TubeViT
from scaleup.training.arm_trainer import ArmTrainer
from scaleup.training.run_inputs import sizes


def tubevit(size: Size, frames: int) -> TubeViT:
    """An image ViT with those of the paper's main tubes, folded, for which a clip is long enough."""
    clip, model = (frames, size.image, size.image), described("vit_b")
    model.backbone.kwargs = {"embed_dim": size.width, "depth": size.depth, "num_heads": size.heads}
    model.input = Input(frames, [size.image, size.image])
    model.tubes = {spec.name: model.tubes[spec.name] for spec in FOLDED if fits(spec, clip)}
    return fresh(model, CLASSES, 0)


def fits(spec: TubeSpec, clip: tuple[int, int, int]) -> bool:
    """Whether a clip (T, H, W) holds one token of a tube, all places of its fold apart."""
    try:
        return bool(spec.places(clip))
    except UserError:
        return False


def training(
    size: Size, arms: Sequence[Arm], frames: int = 32, batch: int = 1, kernels: str = "auto", cached: bool = False
) -> Side:
    """Steps of ``arms`` on the same random clips, and inference by the first of them.

    Args:
        batch: clips of a step, over all ranks.
        kernels: see :mod:`scaleup.model.kernels`; ``auto``: as a run chooses.
        cached: the trunk has run before, and a step begins with what it gave; without inference.
    """
    world, recipe = join(), Recipe()
    recipe.data.batch = batch
    template = tubevit(size, frames)
    models = [template.with_arm(arm.frozen_depth, arm.gate, CLASSES).to(world.device) for arm in arms]
    clips = random_clip(size, frames, batch // world.size).to(world.device)
    set_kernels(models, kernels, world)
    trainers = [
        ArmTrainer(str(index), model, arm, recipe, world)
        for index, (model, arm) in enumerate(zip(models, arms, strict=True))
    ]
    labels = {"motion": torch.zeros(len(clips), dtype=torch.long, device=world.device)}
    deepest = max(models, key=lambda model: model.frozen_depth)

    def inputs() -> Inputs:
        return arm_inputs(deepest.trunk, deepest.preprocess(clips), [model.frozen_depth for model in models])

    kept = inputs() if cached else None

    def step() -> None:
        given = inputs() if kept is None else kept
        for trainer in trainers:
            trainer.step(0, given[trainer.model.frozen_depth], labels, None)

    @torch.inference_mode()
    def infer() -> None:
        models[0].eval()
        models[0](deepest.preprocess(clips[:1]))
        models[0].train()

    trained = sum(sizes(model)["trained_parameters"] for model in models)
    return Side(deepest.count_tokens(frames), frames, trained, step, None if cached else infer)

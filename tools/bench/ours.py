"""TubeViT in the real trainer: a step of one or several arms that share a trunk, and inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from bench.measure import Side
from bench.sides import Size, random_clips
from bench.tokenizer import FOLDED, SIZE
from scaleup.common.distributed import join
from scaleup.common.errors import UserError
from scaleup.config.schema import Arm, Backbone, Input, Model, Positions, Recipe, Trunk, Tube
from scaleup.model.build import fresh, prepare_trunks
from scaleup.model.kernel_choice import set_compile, set_kernels
from scaleup.model.kernels import set_products
from scaleup.model.trunk import Inputs
from scaleup.model.tubes import TubeSpec
from scaleup.model.tubevit import TubeViT, arm_inputs
from scaleup.training.arm_trainer import ArmTrainer, Classifier
from scaleup.training.run_inputs import pool_of, sizes

CLASSES = {"motion": [str(number) for number in range(600)]}


def described(backbone: str) -> Model:
    """A backbone with the paper's main tubes, folded, on clips of 32x224x224."""
    tubes = {s.name: Tube(list(s.kernel), list(s.stride), list(s.offset), list(s.fold)) for s in FOLDED}
    return Model(
        backbone=Backbone(backbone),
        input=Input(SIZE[0], list(SIZE[1:])),
        tubes=tubes,
        positions=Positions("backbone"),
    )


def adapted(backbone: str) -> TubeViT:
    """The model of :func:`described`, with random weights."""
    return fresh(described(backbone), CLASSES, 0)


def described_at(size: Size, frames: int) -> Model:
    """An image ViT of a size with the paper's main tubes, folded; without tubes that are longer than a clip."""
    clip, model = (frames, size.image, size.image), described("vit_b")
    model.backbone.kwargs = {"embed_dim": size.width, "depth": size.depth, "num_heads": size.heads}
    model.input = Input(frames, [size.image, size.image])
    model.tubes = {spec.name: model.tubes[spec.name] for spec in FOLDED if fits(spec, clip)}
    return model


def tubevit(size: Size, frames: int) -> TubeViT:
    """The model of :func:`described_at`, with random weights."""
    return fresh(described_at(size, frames), CLASSES, 0)


def fits(spec: TubeSpec, clip: tuple[int, int, int]) -> bool:
    """Whether a clip (T, H, W) has room for one token of a tube."""
    try:
        return bool(spec.places(clip))
    except UserError:
        return False


class Training:
    """Training steps of ``arms`` of a model, all on the same random clips, and inference with the first arm; prepared
    as for a run.

    Args:
        batch: clips of a step, over all ranks.
        kernels: see :mod:`scaleup.model.kernels`; ``auto`` chooses as a run does.
        cached: the trunk runs once, before the steps, which read its stored output.
        compile: see ``train.compile``.
        precision: of frozen blocks and arms; None for the device's own.
    """

    def __init__(
        self,
        template: TubeViT,
        arms: Sequence[Arm],
        batch: int = 1,
        kernels: str = "auto",
        cached: bool = False,
        compile: str = "off",
        precision: Literal["float32", "bfloat16"] | None = None,
    ) -> None:
        world, recipe = join(), Recipe()
        recipe.data.batch = batch
        set_products(world.device, recipe.train.tf32, recipe.train.deterministic)
        self.models = [
            template.with_arm(arm.frozen_depth, arm.gate, CLASSES, pool=pool_of(arm)).place(world.device, None)
            for arm in arms
        ]
        self.deepest = max(self.models, key=lambda model: model.frozen_depth)
        size = template.preprocess.frames, *template.preprocess.size
        self.all_clips = random_clips(*size, batch // world.size).to(world.device)
        set_kernels(self.models, kernels, world, len(self.all_clips))
        prepare_trunks(self.models, Trunk(precision), world, batch)
        set_compile(self.models, compile, world)
        self.trainers = [
            ArmTrainer(str(index), model, replace(arm, precision=arm.precision or precision), recipe, world)
            for index, (model, arm) in enumerate(zip(self.models, arms, strict=True))
        ]
        self.take(len(self.all_clips))
        self.stored = self.inputs(self.trainers) if cached else None

    def take(self, clips: int) -> None:
        """Steps are of so many clips from now on."""
        self.clips = self.all_clips[:clips]
        self.labels = {"motion": torch.zeros(clips, dtype=torch.long, device=self.clips.device)}

    def inputs(self, trainers: Sequence[ArmTrainer]) -> Inputs:
        pixels = self.deepest.preprocess(self.clips)
        return arm_inputs(self.deepest.trunk, pixels, [trainer.model for trainer in trainers])

    def update(self, inputs: Inputs, trainers: Sequence[ArmTrainer]) -> None:
        """The step of some arms."""
        for trainer in trainers:
            trainer.step(0, inputs[trainer.model.frozen_depth], self.labels, None)

    def live(self, trainers: Sequence[ArmTrainer]) -> None:
        self.update(self.inputs(trainers), trainers)

    def step(self) -> None:
        self.update(self.stored or self.inputs(self.trainers), self.trainers)

    @torch.no_grad()
    def infer(self) -> None:
        first = self.models[0].eval()
        inputs = arm_inputs(self.deepest.trunk, first.preprocess(self.clips), [first])[first.frozen_depth]
        Classifier(first.arm, self.trainers[0].settings.precision)(inputs, list(CLASSES))
        first.train()

    def side(self) -> Side:
        """For :func:`bench.measure.cost`; there is no inference if the trunk's output is stored."""
        frames = self.deepest.preprocess.frames
        trained = sum(sizes(model)["trained_parameters"] for model in self.models)
        infer = self.infer if self.stored is None else None
        return Side(self.deepest.count_tokens(frames), frames, trained, self.step, infer)

"""What is measured of one model on a GPU: steps of one arm and of several over one trunk, and inference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor

from bench.measure import held_bytes, most_bytes
from bench.ours import Training
from bench.saving import passes, swept
from scaleup.config.schema import Arm
from scaleup.model.kernel_choice import set_compile, set_graphs, set_kernels
from scaleup.model.tubevit import TubeViT
from scaleup.training.arm_trainer import ArmTrainer

HEADS = 5  # attentive ones
ALONE = " alone"


class Works:
    """All arms of a model, over one trunk: one gated arm above three quarters of the blocks, five around it
    (:func:`bench.saving.swept`), and attentive heads above all blocks.

    Args:
        batch: the largest.
    """

    def __init__(self, model: TubeViT, batch: int) -> None:
        one, five = Arm(model.depth - model.depth // 4, True, lr=1e-5), swept(model.depth).values()
        width = model.blocks[0].attn.num_heads  # type: ignore[union-attr]
        heads = [Arm(model.depth, pool="attentive", pool_heads=width, lr=1e-4)] * HEADS  # type: ignore[arg-type]
        self.training = Training(model, [one, *five, *heads], batch)
        trainers = self.training.trainers
        self.one, self.five, self.heads = trainers[:1], trainers[1:-HEADS], trainers[-HEADS:]

    def calls(self, batch: int, compile: str, graphs: str) -> dict[str, Callable[[], Any]]:
        """Name -> a function, at a batch; what ends with ``alone`` is a part of ``five arms``."""
        training, world = self.training, self.one[0].world
        set_kernels(training.models, "auto", world, batch)
        set_compile(training.models, compile, world)
        set_graphs(training.models, graphs, world, batch)
        training.take(batch)
        stored = training.inputs(self.five)
        parts = {
            f"arm {number}{ALONE}": partial(passes, trainer, stored[trainer.model.frozen_depth], training.labels)
            for number, trainer in enumerate(self.five)
        }
        return {
            "step": partial(training.live, self.one),
            "step from stored tokens": partial(training.update, stored, self.one),
            "five arms": partial(training.live, self.five),
            f"{HEADS} attentive heads": partial(training.live, self.heads),
            "inference": training.infer,
            f"trunk{ALONE}": partial(training.inputs, self.five),
            **parts,
        }

    def peak(self, work: str, call: Callable[[], Any]) -> int:
        """The largest memory of the device during a call, without what the arms hold that do not take part."""
        resting = {"five arms": self.one + self.heads, f"{HEADS} attentive heads": self.one + self.five}
        others = sum(map(held_by, resting.get(work, self.five + self.heads)))
        held_bytes()
        call()
        return most_bytes() - others


def held_by(trainer: ArmTrainer) -> int:
    """Bytes of an arm's trained weights, their gradients, and the optimizer's state."""
    trained = [parameter for parameter in trainer.model.arm.parameters() if parameter.requires_grad]
    moments = [tensor for parameter in trained for tensor in trainer.engine.optimizer.state[parameter].values()]
    return _bytes(trained) + _bytes(parameter.grad for parameter in trained) + _bytes(moments)


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)

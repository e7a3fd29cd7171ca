"""How much time freezing saves: steps of frozen, cached, shared and full training of one model, in turns in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.measure import Figures, rotate, timed
from scaleup.common.distributed import join
from scaleup.config.schema import Arm, Recipe, Trunk
from scaleup.model.build import prepare_trunks
from scaleup.model.kernel_choice import set_kernels
from scaleup.model.trunk import Taps
from scaleup.model.tubevit import TubeViT
from scaleup.training.arm_trainer import ArmTrainer, Classifier

FROZEN, FULL = "frozen", "full"  # arms: three quarters of the blocks are frozen; no block is


def swept(depth: int) -> dict[str, Arm]:
    """Five gated arms: four frozen depths around three quarters of ``depth``, and one of these at another learning
    rate."""
    frozen = depth - depth // 4
    depths = {f"frozen{number}": number for number in (frozen - 1, frozen + 1, frozen + 2)}
    arms = {name: Arm(number, True, lr=1e-5) for name, number in depths.items()}
    return {FROZEN: Arm(frozen, True, lr=1e-5), **arms, "faster": Arm(frozen, True, lr=3e-5)}


class Steps:
    """Training steps of five arms and of full fine-tuning, all of one model and on the same random clips."""

    def __init__(self, template: TubeViT, clips: Tensor, recipe: Recipe) -> None:
        self.arms, heads = swept(template.depth), template.config.heads
        settings = self.arms | {FULL: Arm(lr=1e-5)}
        self.models = {name: template.with_arm(arm.frozen_depth, arm.gate, heads) for name, arm in settings.items()}
        world = join()
        for model in self.models.values():
            model.place(world.device, None)
        self.kernels = set_kernels(self.models.values(), "auto", world, len(clips))
        prepare_trunks(self.models.values(), Trunk(), world, len(clips))
        self.trainers = {name: ArmTrainer(name, self.models[name], settings[name], recipe, world) for name in settings}
        self.clips = clips.to(world.device)
        self.labels = {head: torch.zeros(len(clips), dtype=torch.long, device=world.device) for head in heads}
        self.depths = {name: arm.frozen_depth for name, arm in self.arms.items()}
        self.stored = self.taps(*self.depths.values())

    def pixels(self) -> Tensor:
        return self.models[FULL].preprocess(self.clips)

    def taps(self, *depths: int) -> dict[int, Taps]:
        deepest = max(self.arms, key=lambda name: self.depths[name])
        trunk = self.models[deepest].trunk
        assert trunk is not None
        return trunk(self.pixels(), depths)

    def timers(self) -> dict[str, Callable[[], float]]:
        """Name -> a function that does this work and returns its seconds."""
        arms = {
            f"{name} alone": timed(partial(passes, self.trainers[name], self.stored[depth], self.labels))
            for name, depth in self.depths.items()
        }
        return {
            "full": timed(lambda: self._step(FULL, self.pixels())),
            "frozen": timed(lambda: self._live([FROZEN])),
            "cached": timed(lambda: self._step(FROZEN, self.stored[self.depths[FROZEN]])),
            "shared": timed(lambda: self._live(list(self.arms))),
            "apart": timed(self._apart),
            "trunk alone": timed(lambda: self.taps(max(self.depths.values()))),
            **arms,
        }

    def _live(self, names: list[str]) -> None:
        taps = self.taps(*(self.depths[name] for name in names))
        for name in names:
            self._step(name, taps[self.depths[name]])

    def _apart(self) -> None:
        for name in self.arms:
            self._live([name])

    def _step(self, name: str, inputs: Tensor | Taps) -> None:
        self.trainers[name].step(0, inputs, self.labels, None)


def passes(trainer: ArmTrainer, inputs: Tensor | Taps, labels: Mapping[str, Tensor]) -> None:
    """Forward and backward pass of an arm, without an update."""
    arm = trainer.model.arm
    logits = Classifier(arm, trainer.settings.precision)(inputs, list(labels))
    losses = [F.cross_entropy(logits[head], classes) for head, classes in labels.items()]
    trained = [parameter for parameter in arm.parameters() if parameter.requires_grad]
    torch.autograd.grad(torch.stack(losses).mean(), trained)


def savings(template: TubeViT, clips: Tensor, recipe: Recipe, repeats: int) -> Figures:
    """Ratios of seconds of steps (medians over the rounds), and ``bounds``: the same ratios of operations, where a
    block costs 1 forward and 2 backward.

    In ``shared_over_bound``, the bound is the forward pass of the deepest trunk, and the forward and backward passes
    of the arms: each is measured by itself in the same round, and they are added.
    """
    steps = Steps(template, clips, recipe)
    rounds = rotate(steps.timers(), repeats)
    for seconds in rounds:
        seconds["bound"] = sum(value for name, value in seconds.items() if name.endswith(" alone"))
    pairs = [("frozen", "full"), ("cached", "full"), ("shared", "apart"), ("shared", "bound")]
    depth, frozen = template.depth, steps.depths[FROZEN]
    costs = {name: at + 3 * (depth - at) for name, at in steps.depths.items()}  # in forward passes of a block
    shared_cost = max(steps.depths.values()) + sum(3 * (depth - at) for at in steps.depths.values())
    return {
        **{f"{one}_over_{two}": median(seconds[one] / seconds[two] for seconds in rounds) for one, two in pairs},
        "bounds": {
            "frozen_over_full": costs[FROZEN] / (3 * depth),
            "cached_over_full": (depth - frozen) / depth,
            "shared_over_apart": shared_cost / sum(costs.values()),
        },
        "kernels": asdict(steps.kernels),
        "seconds": {name: median(seconds[name] for seconds in rounds) for name in rounds[0]},
    }

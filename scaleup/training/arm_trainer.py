"""One arm in training: its learning rate, its loss on a batch, one update, and its state after it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scaleup.checkpoint.model_directory import HeadLoss
from scaleup.common.distributed import World
from scaleup.common.metrics import mean_of
from scaleup.common.timing import Span, late_mean
from scaleup.config.recipe import settle
from scaleup.config.schema import Arm as Settings
from scaleup.config.schema import Head, Recipe, schedule
from scaleup.model.arm import Arm, alphas
from scaleup.model.objective import Objective
from scaleup.model.trunk import Taps
from scaleup.model.tubevit import TubeViT
from scaleup.training import optimizer_state
from scaleup.training.engine import Engine
from scaleup.training.feed import WHOLE, Mix, head_loss
from scaleup.training.log import AtChance, Entry, Gap, Recent
from scaleup.training.run_inputs import flatten_keys, sizes


def lr_factor(step: int, steps: int, warmup: int) -> float:
    """Share of the base learning rate at ``step`` = 0, ..., ``steps - 1``.

    Rises linearly and reaches 1 at the last of ``warmup`` steps; falls along half a cosine that would reach 0 at
    ``steps``. No step has a rate of 0.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@dataclass
class ArmResult:
    """What came of one arm of a run."""

    directory: str | None  # of its model; None where it diverged
    frozen_depth: int
    frozen_parameters: int
    trained_parameters: int
    adapt: str  # none | lora | dora | ia3
    precision: str  # of its products: float32 | bfloat16
    arm_seconds: float | None  # of a step, without the trunk: the mean without the first few; None without a step
    loss: float | None  # mean over the last tenth of its steps; None without a step
    steps: int  # that it took
    ended: str | None  # see ArmState
    diverged: int | None  # the step at which it did
    best_step: int | None  # where it was validated, the steps after which its model was taken
    valid_accuracy: float | None  # of that model
    at_chance: dict[str, AtChance]  # heads that learn nothing
    alpha: float | None  # of the gate; where each channel has one their mean; None without a gate
    alpha_largest: float | None = None  # in size, where each channel has one
    gaps: dict[str, Gap] = field(default_factory=dict)  # heads that learn their training samples alone
    valid_measures: list[str] = field(default_factory=list)  # valid_accuracy is their mean; see ArmState


@dataclass
class ArmState:
    """Whether an arm has ended, and how good it was at its best; a checkpoint holds it as JSON."""

    ended: str | None = None  # complete | early (validations without a rise) | diverged; None while it trains
    steps: int = 0  # that it took until it ended
    best_step: int | None = None  # steps it had taken when it was best
    valid_accuracy: float | None = None  # at its best
    waited: int = 0  # validations since
    valid_measures: list[str] = field(default_factory=list)  # valid_accuracy is the mean of top1, map, r2

    def validated(self, accuracy: float, steps: int) -> bool:
        """Note the accuracy after so many steps; whether it is the best. Of equal ones the first is."""
        if self.valid_accuracy is not None and accuracy <= self.valid_accuracy:
            self.waited += 1
            return False
        self.valid_accuracy, self.best_step, self.waited = accuracy, steps, 0
        return True

    @property
    def best(self) -> str:
        """In words."""
        return f"{mean_of(self.valid_measures).words(self.valid_accuracy)} after step {self.best_step}"

    def __str__(self) -> str:
        """In words, for an arm that was just validated."""
        best = f"best {self.best}" if self.waited else "best"
        return f"{best}, ends early" if self.ended == "early" else best


class Classifier(nn.Module):
    """An arm as an engine sees it: one pass gives the logits of several heads.

    In ``bfloat16`` the products of the pass are, but those of heads: parameters, gradients and logits stay float32.
    """

    def __init__(self, arm: Arm, precision: str | None) -> None:
        super().__init__()
        self.arm, self.low = arm, precision == "bfloat16"

    def forward(self, inputs: Tensor | Taps, heads: list[str]) -> dict[str, Tensor]:
        with torch.autocast(next(self.arm.parameters()).device.type, torch.bfloat16, enabled=self.low):
            pooled = self.arm.features(inputs)  # (B, D)
        return {head: self.arm.heads[head](pooled.float()) for head in heads}


class ArmTrainer:
    """Trains the arm of one model; several can share a batch and the taps of one trunk.

    Args:
        weights: of classes, by head (:func:`scaleup.training.run_inputs.class_weights`).
    """

    def __init__(
        self,
        name: str,
        model: TubeViT,
        settings: Settings,
        recipe: Recipe,
        world: World,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        recipe, settled = settle(recipe, {name: settings}, world.device.type)
        settings = settled[name]
        self.name, self.model, self.settings, self.world = name, model, settings, world
        self.seed, self.objectives = recipe.seed, objectives_of(recipe, model, weights or {})
        self.steps, self.warmup = schedule(settings, recipe.train)
        self.standing = ArmState()
        self.best: dict[str, Tensor] = {}  # what trains, as it was when validated best; on the first rank
        model.train()
        model.arm.grad_checkpointing = settings.grad_checkpointing
        self.engine = Engine(
            Classifier(model.arm, settings.precision), settings, recipe.train, recipe.data.batch, world
        )
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def step(
        self, step: int, inputs: Tensor | Taps, labels: Mapping[str, Tensor], mix: Mix | None, rows: slice = WHOLE
    ) -> Entry:
        """One update, with the last of the micro-batches that it needs; returns what is worth logging, which
        :func:`read_numbers` turns into numbers.

        Args:
            inputs: of the ``rows`` of this rank's batch; ``labels`` and ``mix`` are of all of it.
        """
        with Span(self.world.device) as span:
            entry = self._update(step, inputs, labels, mix, rows)
        return entry | {"alpha": None} | alphas(self.model.arm.gate) | {"seconds": span}

    def _update(
        self, step: int, inputs: Tensor | Taps, labels: Mapping[str, Tensor], mix: Mix | None, rows: slice
    ) -> Entry:
        factor = lr_factor(step, self.steps, self.warmup)
        # Dropout draws alike whether or not other arms train beside this one.
        source = np.random.SeedSequence((self.seed, step, self.world.rank, rows.start))
        torch.manual_seed(int(source.generate_state(1)[0]))
        logits = self.engine(inputs, list(labels))
        losses = {head: head_loss(logits[head], labels[head], mix, self.objectives[head], rows) for head in labels}
        loss = torch.stack(list(losses.values())).mean()
        own = {head: (each if mix is None else mix.dominant(each))[rows] for head, each in labels.items()}
        entry = self._measured(loss, losses, logits, own)
        return entry | {"lr": self.settings.lr * factor, "grad_norm": self.engine.step(loss, factor)}

    def fault(self, step: int, entry: Mapping[str, Any]) -> str | None:
        """Why a whole step was one too many, if it was: what it gave is no number. The same on all ranks."""
        for what, value in (("loss", entry["loss"]), ("gradient's norm", entry["grad_norm"])):
            if not math.isfinite(value):
                return (
                    f"arm {self.name!r} diverged: its {what} is {value} at step {step}; "
                    f"try a learning rate below {self.settings.lr} or a longer warm-up than {self.warmup} steps"
                )
        return None

    def validated(self, accuracy: float | None, steps: int, measures: list[str]) -> None:
        """Note an accuracy after ``steps``, keep the best weights, and end where the patience does."""
        self.standing.valid_measures = measures
        if accuracy is not None and self.standing.validated(accuracy, steps):
            with self.engine.whole():
                weights = optimizer_state.weights(self.model.arm) if self.world.rank == 0 else {}
                self.best = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        if self.standing.waited >= self.settings.patience > 0:
            self.end("early", steps)

    @property
    def why_early(self) -> str:
        """A sentence on an arm that its patience has ended."""
        best = self.standing
        return (
            f"arm {self.name!r} ends early after step {best.steps}: the last {best.waited} validations were not better "
            f"than {best.best} (arm.patience {self.settings.patience}); its model is that of this step"
        )

    def end(self, how: str, steps: int) -> None:
        """Take no step any more. The model is final: on the first rank as it was at its best, where that is known."""
        self.standing.ended, self.standing.steps = how, steps
        self.engine.unite()
        self.engine.optimizer.state.clear()
        for name, tensor in optimizer_state.weights(self.model.arm).items() if self.best else ():
            tensor.copy_(self.best[name])
        self.best = {}

    def gather(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, on the first rank; all ranks must call."""
        return optimizer_state.gather(self.engine, self.world) | {
            f"best/{name}": each for name, each in self.best.items()
        }

    def restore(self, tensors: dict[str, Tensor], standing: Mapping[str, Any]) -> None:
        """Put back what :meth:`gather` found, and how the arm stood."""
        optimizer_state.restore(self.engine, tensors)
        self.standing = ArmState(**standing)
        if self.standing.ended:
            self.engine.unite()
        if self.world.rank == 0:
            self.best = {name.removeprefix("best/"): each for name, each in tensors.items() if name.startswith("best/")}

    def remember(self, entry: Mapping[str, Any]) -> None:
        """Count a whole step into the result."""
        self.seconds.append(entry["seconds"])
        self.losses.append(entry["loss"])

    def result(self, directory: str, recent: Recent) -> ArmResult:
        """What came of the arm, whose model is in ``directory`` unless it diverged."""
        last, diverged = self.losses[-max(1, len(self.losses) // 10) :], self.standing.ended == "diverged"
        gate = {name: value.item() for name, value in alphas(self.model.arm.gate).items()}
        return ArmResult(
            directory=None if diverged else directory,
            **sizes(self.model),
            adapt=self.settings.adapt,
            precision=str(self.settings.precision),
            arm_seconds=late_mean(self.seconds) if last else None,
            loss=statistics.fmean(last) if last else None,
            steps=self.standing.steps,
            ended=self.standing.ended,
            diverged=self.standing.steps if diverged else None,
            best_step=self.standing.best_step,
            valid_accuracy=self.standing.valid_accuracy,
            valid_measures=self.standing.valid_measures,
            at_chance=recent.at_chance,
            gaps=recent.gaps,
            alpha=gate.get("alpha"),
            alpha_largest=gate.get("alpha_largest"),
        )

    def _measured(self, loss: Tensor, losses: dict, logits: dict, labels: Mapping[str, Tensor]) -> Entry:
        """Loss, and loss and quality of each head: means over the batches of all ranks. A mixed sample is right where
        the greater part of it is named."""
        quality = [self.objectives[head].quality(logits[head], labels[head]) for head in labels]
        values = torch.stack([loss.detach(), *(value.detach() for value in losses.values()), *quality])
        mean, *rest = self.world.mean(values).unbind()
        pairs = zip(labels, rest[: len(quality)], rest[len(quality) :], strict=True)
        heads = {head: {"loss": each, self.objectives[head].measure: share} for head, each, share in pairs}
        return {"loss": mean, "heads": heads}


def objectives_of(recipe: Recipe, model: TubeViT, weights: Mapping[str, Tensor]) -> dict[str, Objective]:
    """What each head of a model learns in a run."""
    losses, settings = model.config.losses, {head: recipe.heads.get(head, Head()) for head in model.config.heads}
    return {
        head: Objective(losses.get(head, HeadLoss()), recipe.train.label_smoothing, each.focal, weights.get(head))
        for head, each in settings.items()
    }


def read_numbers(entries: list[Entry]) -> list[Entry]:
    """The same with a number for each tensor of one element and each time. The host waits once for the device."""
    tensors = [leaf for entry in entries for leaf in flatten_keys(entry).values() if isinstance(leaf, Tensor)]
    numbers = iter(torch.stack(tensors).tolist())
    return [_filled(entry, numbers) for entry in entries]


def _filled(value: Any, numbers: Iterator[float]) -> Any:
    """``value`` with the next numbers in the place of its tensors."""
    if isinstance(value, dict):
        return {name: _filled(each, numbers) for name, each in value.items()}
    if isinstance(value, Tensor):
        return next(numbers)
    return value.seconds if isinstance(value, Span) else value


def whole_step(entries: list[Entry]) -> Entry:
    """What is logged of a step, from what was of its micro-batches, which are alike in size."""
    return {name: _joined(name, [entry[name] for entry in entries]) for name in entries[-1]}


def _joined(name: str, values: list[Any]) -> Any:
    if isinstance(values[-1], dict):
        return whole_step(values)
    if name in ("loss", "accuracy", "r2"):
        return statistics.fmean(values)
    return sum(values) if name.endswith("seconds") else values[-1]

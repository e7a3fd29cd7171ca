"""One training step of one arm: its loss on a batch, and one update."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scaleup.arm import Arm
from scaleup.clock import now
from scaleup.errors import UserError
from scaleup.model import TubeViT
from scaleup.recipe import Arm as Settings
from scaleup.recipe import Recipe
from scaleup.training.engine import Engine, World
from scaleup.training.mix import WHOLE, Mix, head_loss
from scaleup.training.schedule import lr_factor
from scaleup.trunk import Taps


class Classifier(nn.Module):
    """An arm as an engine sees it: one pass gives the logits of several heads.

    In ``bfloat16`` the products of the pass are; parameters, their gradients and the logits stay float32.
    """

    def __init__(self, arm: Arm, precision: str) -> None:
        super().__init__()
        self.arm, self.low = arm, precision == "bfloat16"

    def forward(self, inputs: Tensor | Taps, heads: list[str]) -> dict[str, Tensor]:
        with torch.autocast(next(self.arm.parameters()).device.type, torch.bfloat16, enabled=self.low):
            pooled = self.arm.features(inputs)  # (B, D)
            return {head: self.arm.heads[head](pooled).float() for head in heads}


class ArmTrainer:
    """Trains the arm of one model; several can share a batch and the taps of one trunk."""

    def __init__(self, name: str, model: TubeViT, settings: Settings, recipe: Recipe, world: World) -> None:
        self.name, self.model, self.settings, self.world = name, model, settings, world
        self.train, self.seed = recipe.train, recipe.seed
        model.train()
        model.arm.grad_checkpointing = settings.grad_checkpointing
        self.engine = Engine(
            Classifier(model.arm, settings.precision), settings, recipe.train, recipe.data.batch, world
        )
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def step(
        self, step: int, inputs: Tensor | Taps, labels: Mapping[str, Tensor], mix: Mix | None, rows: slice = WHOLE
    ) -> dict[str, Any]:
        """One update, with the last of the micro-batches that it needs; returns what is worth logging.

        Args:
            inputs: of the ``rows`` of this rank's batch; ``labels`` and ``mix`` are of all of it.
        """
        began = now(self.world.device)
        factor = lr_factor(step, self.train.steps, self.train.warmup)
        # Dropout draws alike whether or not other arms train beside this one.
        source = np.random.SeedSequence((self.seed, step, self.world.rank, rows.start))
        torch.manual_seed(int(source.generate_state(1)[0]))
        logits, smoothing = self.engine(inputs, list(labels)), self.train.label_smoothing
        losses = {head: head_loss(logits[head], labels[head], mix, smoothing, rows) for head in labels}
        loss = torch.stack(list(losses.values())).mean()
        entry = self._measured(loss, losses, logits, {head: each[rows] for head, each in labels.items()})
        if not math.isfinite(entry["loss"]):
            raise UserError(
                f"arm {self.name!r} diverged: its loss is {entry['loss']} at step {step}; "
                f"try a learning rate below {self.settings.lr} or a longer warm-up than {self.train.warmup} steps"
            )
        entry |= {"lr": self.settings.lr * factor, "grad_norm": self.engine.step(loss, factor)}
        return entry | {"alpha": self._alpha(), "seconds": now(self.world.device) - began}

    def remember(self, entry: Mapping[str, Any]) -> None:
        """Count a whole step into the result."""
        self.seconds.append(entry["seconds"])
        self.losses.append(entry["loss"])

    def result(self) -> dict[str, Any]:
        """What a report says of the arm; the loss is the mean over the last tenth of the steps."""
        last = self.losses[-max(1, len(self.losses) // 10) :]
        found = {"arm_seconds": settled_mean(self.seconds), "loss": statistics.fmean(last), "alpha": self._alpha()}
        return {"adapt": self.settings.adapt, "precision": self.settings.precision, **found}

    def _alpha(self) -> float | None:
        gate = self.model.arm.gate
        return None if gate is None else gate.alpha.item()

    def _measured(self, loss: Tensor, losses: dict, logits: dict, labels: Mapping[str, Tensor]) -> dict[str, Any]:
        """Loss, and loss and accuracy of each head: means over the batches of all ranks."""
        right = [(logits[head].argmax(dim=1) == labels[head]).float().mean() for head in labels]
        values = torch.stack([loss.detach(), *(value.detach() for value in losses.values()), *right])
        mean, *rest = self.world.mean(values).tolist()
        pairs = zip(labels, rest[: len(right)], rest[len(right) :], strict=True)
        return {"loss": mean, "heads": {head: {"loss": each, "accuracy": share} for head, each, share in pairs}}


def whole_step(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """What is logged of a step, from what was of its micro-batches, which are alike in size."""
    return {name: _joined(name, [entry[name] for entry in entries]) for name in entries[-1]}


def _joined(name: str, values: list[Any]) -> Any:
    if isinstance(values[-1], dict):
        return whole_step(values)
    if name in ("loss", "accuracy"):
        return statistics.fmean(values)
    return sum(values) if name.endswith("seconds") else values[-1]


def settled_mean(seconds: list[float]) -> float:
    """The mean without the first few steps, which pay for warming up."""
    return statistics.fmean(seconds[min(5, len(seconds) // 2) :])

"""How good heads are, from their logits on samples; exact over all ranks."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from scaleup.checkpoint.model_directory import HeadLoss
from scaleup.common.distributed import World
from scaleup.common.metrics import MEASURES, leading, mean_average_precision
from scaleup.model.objective import Objective, multi_hot


@dataclass
class Score:
    """The measures of one head, shares as shares of 1."""

    @property
    def lead(self) -> float:
        """The one by which arms are compared: mAP, R2 or top-1."""
        measures = asdict(self)
        return measures[leading(measures)]

    def __str__(self) -> str:
        measures = asdict(self)
        words = [
            f"{measure.title} {measure.words(measures[name])}" for name, measure in MEASURES.items() if name in measures
        ]
        return ", ".join(words) + (f" (chance {measures['chance']:.2%})" if "chance" in measures else "")


@dataclass
class HeadScore(Score):
    """Of a head that names one class."""

    top1: float
    top5: float
    loss: float  # mean of -log of the probability of the right class
    chance: float  # top-1 of random guesses


@dataclass
class SeveralScore(Score):
    """Of a head that names any number of classes."""

    map: float  # mean of the average precision over the classes that a sample has
    top1: float  # samples whose most probable class is one of theirs
    top5: float  # samples with one of their classes among the five most probable
    loss: float  # binary cross entropy, the mean over classes
    chance: float  # mAP of random guesses


@dataclass
class NumberScore(Score):
    """Of a head that gives a number; errors are in the units of the label."""

    r2: float  # 1 - mean squared error over the variance of the labels; 0 where all labels are the same
    mae: float  # mean absolute error
    rmse: float  # root of the mean squared error
    loss: float  # as in training, in standard deviations of the training labels


class Tally(Protocol):
    """The samples of one head that this rank has seen."""

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count samples: logits (B, V, C) of all views, labels as in a batch."""

    def score(self, world: World) -> Score:
        """The score over the samples of all ranks, which must all call this."""


def tally(loss: HeadLoss, classes: int) -> Tally:
    if loss.kind == "softmax":
        return ClassTally(classes)
    return SeveralTally() if loss.kind == "sigmoid" else NumberTally(loss)


class ClassTally:
    """Probabilities are averaged over the views."""

    def __init__(self, classes: int) -> None:
        self.chance = 1 / classes
        self.sums = torch.zeros(4, dtype=torch.float64)  # first right, right among five, loss, samples

    def add(self, logits: Tensor, labels: Tensor) -> None:
        best = logits.softmax(-1).mean(1).topk(min(5, logits.shape[-1])).indices == labels[:, None]  # (B, 5)
        loss = F.nll_loss(logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1]), labels, reduction="none")
        counts = [best[:, 0].double().sum(), best.double().sum(), loss.double().sum(), torch.tensor(len(labels))]
        self.sums += torch.stack(counts)

    def score(self, world: World) -> HeadScore:
        *sums, samples = torch.stack(world.gather(self.sums)).sum(0)
        top1, top5, loss = (torch.stack(sums) / max(samples.item(), 1)).tolist()
        return HeadScore(top1, top5, loss, self.chance)


class Gathered:
    """All outputs (N, C) and labels of a head, which measures of the whole set need."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []
        self.labels: list[Tensor] = []

    def keep(self, outputs: Tensor, labels: Tensor) -> None:
        self.outputs.append(outputs)
        self.labels.append(labels)

    def all(self, world: World) -> tuple[Tensor, Tensor] | None:
        """Of all ranks; None without a sample."""
        outputs, labels = (world.join_lists(each) for each in (self.outputs, self.labels))
        return (torch.cat(outputs), torch.cat(labels)) if outputs else None


class SeveralTally(Gathered):
    """Probabilities of each class are averaged over the views."""

    def add(self, logits: Tensor, labels: Tensor) -> None:
        self.keep(logits.sigmoid().mean(1), multi_hot(labels, logits.shape[2]))

    def score(self, world: World) -> SeveralScore:
        if (gathered := self.all(world)) is None:
            return SeveralScore(0.0, 0.0, 0.0, 0.0, 0.0)
        probabilities, labels = gathered
        best = labels.gather(1, probabilities.topk(min(5, labels.shape[1])).indices)  # (N, 5)
        precision, chance = mean_average_precision(probabilities.numpy(), labels.numpy())
        loss = F.binary_cross_entropy(probabilities, labels).item()
        return SeveralScore(precision, best[:, 0].mean().item(), best.amax(1).mean().item(), loss, chance)


class NumberTally(Gathered):
    """Numbers are averaged over the views."""

    def __init__(self, loss: HeadLoss) -> None:
        super().__init__()
        self.objective = Objective(loss)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        self.keep(logits.mean(1), labels)

    def score(self, world: World) -> NumberScore:
        if (gathered := self.all(world)) is None:
            return NumberScore(0.0, 0.0, 0.0, 0.0)
        numbers, labels = gathered[0].double(), gathered[1].double()
        errors, spread = numbers[:, 0] - labels, labels.var(correction=0).item()
        squared = errors.square().mean().item()
        r2 = 1 - squared / spread if spread else 0.0
        return NumberScore(r2, errors.abs().mean().item(), squared**0.5, self.objective(numbers, labels).item())

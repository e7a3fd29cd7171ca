"""How good heads are, from their logits on samples; exact over all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scaleup.checkpoint.model_directory import HeadLoss
from scaleup.common.distributed import World
from scaleup.common.metrics import MEASURES, average_precisions, leading, mean_average_precision
from scaleup.evaluation.spool import Spool
from scaleup.model.objective import Objective, multi_hot

SORTED = 2**24  # outputs that are in memory for average precision, or those of one class


@dataclass
class Score:
    """The measures of one head, shares as shares of 1."""

    @property
    def lead(self) -> float:
        """The one by which arms are compared: mAP, R2 or top-1; nan for mAP where no sample has a class."""
        measures = asdict(self)
        value = measures[leading(measures)]
        return math.nan if value is None else value

    def __str__(self) -> str:
        measures = asdict(self)
        words = [
            f"{measure.title} {measure.words(measures[name])}" for name, measure in MEASURES.items() if name in measures
        ]
        if measures[leading(measures)] is None:
            return ", ".join(words) + " (no sample has a class, so there is no mAP)"
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

    map: float | None  # mean of the average precision over the classes that a sample has; None if none has one
    top1: float | None  # samples whose most probable class is one of theirs; None as map
    top5: float | None  # samples with one of their classes among the five most probable
    loss: float  # binary cross entropy, the mean over classes
    chance: float | None  # mAP of random guesses


@dataclass
class NumberScore(Score):
    """Of a head that gives a number; errors are in the units of the label."""

    r2: float  # 1 - mean squared error over the variance of the labels; 0 where all labels are the same
    mae: float  # mean absolute error
    rmse: float  # root of the mean squared error
    loss: float  # as in training, in standard deviations of the training labels


@dataclass
class ClassScore:
    """How well a head names one class."""

    name: str
    samples: int  # that have it
    value: float | None  # None without a sample

    def __str__(self) -> str:
        return f"{self.name} {'-' if self.value is None else f'{self.value:.2%}'} ({self.samples})"


@dataclass
class ByClass:
    """How well a head names each class, the worst first and those without a sample last."""

    measure: str  # recall, of a head that names one class | average precision, of one that names any number
    classes: list[ClassScore]

    @classmethod
    def of(cls, measure: str, values: Tensor, samples: Tensor, names: Sequence[str]) -> ByClass:
        """From values (C,), of which those without a sample do not count, and numbers of samples (C,)."""
        rows = zip(names, samples.long().tolist(), values.tolist(), strict=True)
        scores = [ClassScore(name, count, value if count else None) for name, count, value in rows]
        return cls(measure, sorted(scores, key=lambda each: math.inf if each.value is None else each.value))


class Tally(Protocol):
    """The samples of one head that this rank has seen."""

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count samples: logits (B, V, C) of all views, labels as in a batch."""

    def score(self, world: World, names: Sequence[str]) -> tuple[Score, ByClass | None]:
        """The score over the samples of all ranks, which must all call this; and that of each of the classes ``names``,
        None for numbers."""


def tally(loss: HeadLoss, classes: int) -> Tally:
    if loss.kind == "softmax":
        return ClassTally(classes)
    return SeveralTally(classes) if loss.kind == "sigmoid" else NumberTally(loss)


class ClassTally:
    """Probabilities are averaged over the views."""

    def __init__(self, classes: int) -> None:
        self.chance = 1 / classes
        self.sums = torch.zeros(2, dtype=torch.float64)  # right among five, loss
        self.counts = torch.zeros(2, classes, dtype=torch.float64)  # of each class: first right, samples

    def add(self, logits: Tensor, labels: Tensor) -> None:
        best = logits.softmax(-1).mean(1).topk(min(5, logits.shape[-1])).indices == labels[:, None]  # (B, 5)
        loss = F.nll_loss(logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1]), labels, reduction="none")
        self.sums += torch.stack([best.double().sum(), loss.double().sum()])
        self.counts[0] += labels[best[:, 0]].bincount(minlength=self.counts.shape[1])
        self.counts[1] += labels.bincount(minlength=self.counts.shape[1])

    def score(self, world: World, names: Sequence[str]) -> tuple[HeadScore, ByClass]:
        right, samples = torch.stack(world.gather(self.counts)).sum(0)
        sums = torch.stack([right.sum(), *torch.stack(world.gather(self.sums)).sum(0)])
        top1, top5, loss = (sums / max(samples.sum().item(), 1)).tolist()
        return HeadScore(top1, top5, loss, self.chance), ByClass.of("recall", right / samples, samples, names)


class SeveralTally:
    """Probabilities of each class are averaged over the views. Average precision sorts all samples by them, a few
    classes at a time; until then they are on disk if they are many."""

    def __init__(self, classes: int) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64)  # samples, first right, right among five, loss
        self.counts = torch.zeros(classes, dtype=torch.float64)  # samples of each class
        self.outputs, self.labels = Spool(), Spool()

    def add(self, logits: Tensor, labels: Tensor) -> None:
        probabilities, hot = logits.sigmoid().mean(1), multi_hot(labels, logits.shape[2])
        best = hot.gather(1, probabilities.topk(min(5, hot.shape[1])).indices)  # (B, 5)
        loss = len(hot) * F.binary_cross_entropy(probabilities, hot)
        self.sums += torch.stack([torch.tensor(len(hot)), best[:, 0].sum(), best.amax(1).sum(), loss])
        self.counts += hot.sum(0)
        self.outputs.add(probabilities.numpy())
        self.labels.add(hot.bool().numpy())

    def score(self, world: World, names: Sequence[str]) -> tuple[SeveralScore, ByClass]:
        total, *sums = torch.stack(world.gather(self.sums)).sum(0).tolist()
        counts = torch.stack(world.gather(self.counts)).sum(0)
        precisions = np.concatenate(list(self._precisions(world, int(total), len(names))))
        mean, chance = mean_average_precision(precisions, counts.numpy(), int(total))
        first, among, loss = (each / max(total, 1) for each in sums)
        top1, top5 = (None, None) if mean is None else (first, among)
        by_class = ByClass.of("average precision", torch.from_numpy(precisions), counts, names)
        return SeveralScore(mean, top1, top5, loss, chance), by_class

    def _precisions(self, world: World, total: int, classes: int) -> Iterator[np.ndarray]:
        """The average precisions of all classes, over the samples of all ranks."""
        step = max(1, SORTED // max(total, 1))
        for begin in range(0, classes, step):
            end = min(begin + step, classes)
            own = [each.columns(begin, end) for each in (self.outputs, self.labels)] if self.sums[0] else None
            parts = [each for each in world.gather(own) if each is not None]
            if not parts:
                yield np.zeros(end - begin)
                continue
            outputs, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
            yield average_precisions(outputs, labels)


class NumberTally:
    """Numbers are averaged over the views."""

    def __init__(self, loss: HeadLoss) -> None:
        self.objective = Objective(loss)
        self.sums = torch.zeros(4, dtype=torch.float64)  # samples, absolute and squared errors, losses
        self.spread = torch.zeros(3, dtype=torch.float64)  # of the labels: samples, mean, sum of squared deviations

    def add(self, logits: Tensor, labels: Tensor) -> None:
        numbers, labels = logits.mean(1).double(), labels.double()
        errors, count = numbers[:, 0] - labels, len(labels)
        loss = count * self.objective(numbers, labels)
        self.sums += torch.stack([torch.tensor(count), errors.abs().sum(), errors.square().sum(), loss])
        self.spread = _joined([self.spread, torch.stack([torch.tensor(count), labels.mean(), _deviations(labels)])])

    def score(self, world: World, names: Sequence[str]) -> tuple[NumberScore, None]:
        count, absolute, squared, loss = torch.stack(world.gather(self.sums)).sum(0).tolist()
        if not count:
            return NumberScore(0.0, 0.0, 0.0, 0.0), None
        deviations = _joined(world.gather(self.spread))[2].item()
        r2 = 1 - squared / deviations if deviations else 0.0
        return NumberScore(r2, absolute / count, (squared / count) ** 0.5, loss / count), None


def _deviations(values: Tensor) -> Tensor:
    return (values - values.mean()).square().sum()


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """(samples, mean, sum of squared deviations) of several parts together."""
    counts, means, deviations = torch.stack(list(parts)).unbind(1)
    mean = (counts * means).sum() / counts.sum().clamp(1)
    return torch.stack([counts.sum(), mean, (deviations + counts * (means - mean).square()).sum()])

"""What a head learns: its loss on a batch, what its outputs mean, and how well it does while it trains.

- softmax: one class of each sample, by cross entropy.
- sigmoid: any number of classes of each sample, by binary cross entropy, whose mean over all classes is taken.
- l2, l1: a number, by the squared or absolute error in standard deviations of the training labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from scaleup.checkpoint.model_directory import HeadLoss


def meaning(logits: Tensor, loss: str) -> Tensor:
    """Probabilities (..., C) of classes, or numbers (..., 1)."""
    if loss == "softmax":
        return logits.softmax(-1)
    return logits.sigmoid() if loss == "sigmoid" else logits


def log_meaning(logits: Tensor, loss: str) -> Tensor:
    """Logarithms of the probabilities, or the numbers."""
    if loss == "softmax":
        return logits.log_softmax(-1)
    return F.logsigmoid(logits) if loss == "sigmoid" else logits


def multi_hot(labels: Tensor, classes: int) -> Tensor:
    """(B, C) from multi-hot labels, or from the one class of each sample (B,)."""
    return labels if labels.dim() == 2 else F.one_hot(labels, classes).float()


@dataclass
class Objective:
    """The loss of one head.

    Args:
        gamma: of the focal loss (arXiv 1708.02002): what a sample, or one of its classes, counts for is
            (1 - p)^gamma, where p is the probability of what is true. 0: no focal loss.
        weights: (C,), of the samples of each class (softmax), or of the samples that have a class (sigmoid).
    """

    head: HeadLoss = field(default_factory=HeadLoss)
    smoothing: float = 0.0  # of labels; a number has none
    gamma: float = 0.0
    weights: Tensor | None = None

    @property
    def measure(self) -> str:
        """What :meth:`quality` is called."""
        return "accuracy" if self.head.kind in ("softmax", "sigmoid") else "r2"

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over the batch; logits (B, C), labels (B,) or multi-hot (B, C)."""
        if self.head.kind == "softmax":
            return self._softmax(logits, labels)
        if self.head.kind == "sigmoid":
            return self._sigmoid(logits, multi_hot(labels, logits.shape[1]))
        errors = self._errors(logits, labels)
        return errors.square().mean() if self.head.kind == "l2" else errors.abs().mean()

    def quality(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The share of samples whose first class is right (one of theirs); of numbers, the share of the variance of the
        training labels that is explained."""
        if self.measure == "r2":
            return 1 - self._errors(logits, labels).square().mean()
        first = logits.argmax(dim=1)
        right = first == labels if labels.dim() == 1 else labels.gather(1, first[:, None])
        return right.float().mean()

    def _softmax(self, logits: Tensor, labels: Tensor) -> Tensor:
        if not self.gamma and self.weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        losses = F.cross_entropy(logits, labels, label_smoothing=self.smoothing, reduction="none")
        if self.gamma:
            truth = logits.softmax(1).gather(1, labels[:, None])[:, 0]
            losses = losses * (1 - truth) ** self.gamma
        return (losses if self.weights is None else losses * self.weights[labels]).mean()

    def _sigmoid(self, logits: Tensor, targets: Tensor) -> Tensor:
        smooth = targets * (1 - self.smoothing) + self.smoothing / logits.shape[1]
        losses = F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=self.weights, reduction="none")
        if self.gamma:
            truth = torch.where(targets > 0.5, logits.sigmoid(), (-logits).sigmoid())
            losses = losses * (1 - truth) ** self.gamma
        return losses.mean()

    def _errors(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits[:, 0] - labels) / self.head.std

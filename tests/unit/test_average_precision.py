"""Scores of heads against slow references, and over several ranks."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from scaleup.checkpoint.model_directory import HeadLoss
from scaleup.common.distributed import World
from scaleup.common.metrics import average_precision, mean_average_precision
from scaleup.evaluation.scores import Tally, tally


def slow_precision(scores: list[float], positive: list[float]) -> float:
    """Threshold after threshold, from the highest: precision, times what recall rises by."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        passed = [p for s, p in zip(scores, positive, strict=True) if s >= threshold]
        now = sum(passed) / sum(positive)
        total, recall = total + sum(passed) / len(passed) * (now - recall), now
    return total


@pytest.mark.parametrize("steps", [3, 1000])  # values of a score: many are equal, or none
def test_average_precision_is_its_definition(steps: int) -> None:
    source = np.random.default_rng(steps)
    for _ in range(20):
        scores, positive = source.integers(0, steps, 40) / steps, source.random(40) < 0.3
        positive[0] = True
        assert average_precision(scores, positive) == pytest.approx(slow_precision(scores.tolist(), positive.tolist()))


def test_known_precisions() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    assert average_precision(scores, np.array([1, 0, 1, 0])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.zeros(4), np.array([1, 0, 0, 0])) == 0.25  # says nothing


def test_the_mean_is_over_classes_that_a_sample_has() -> None:
    scores = np.array([[0.9, 0.1, 0.5], [0.1, 0.9, 0.5]])
    positive = np.array([[1, 1, 0], [0, 0, 0]])
    assert mean_average_precision(scores, positive) == (pytest.approx((1 + 0.5) / 2), 0.5)
    assert mean_average_precision(scores, np.zeros((2, 3))) == (0, 0)


class Ranks:
    """The world of several ranks, each with a tally of its own."""

    def __init__(self, tallies: list[Any]) -> None:
        self.tallies = tallies

    def gather(self, value: Tensor) -> list[Tensor]:
        return [each.sums for each in self.tallies]

    def join_lists(self, values: list[Tensor]) -> list[Tensor]:
        name = "outputs" if values is self.tallies[0].outputs else "labels"
        return [value for each in self.tallies for value in getattr(each, name)]


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "l2", "l1"])
def test_ranks_together_score_as_one_does(kind: str) -> None:
    def new() -> Tally:
        return tally(HeadLoss(kind, 1.0, 2.0), 7)  # type: ignore[arg-type]

    source, one, three = torch.Generator().manual_seed(0), new(), [new() for _ in range(3)]
    for number in range(6):
        logits = torch.randn(5, 2, 1 if kind.startswith("l") else 7, generator=source)
        labels = torch.randint(0, 7, (5,), generator=source)
        if kind == "sigmoid":
            labels = (torch.rand(5, 7, generator=source) < 0.3).float()
        each = labels.float() if kind.startswith("l") else labels
        one.add(logits, each)
        three[number % 3].add(logits, each)
    alone, together = one.score(World(0, 1, torch.device("cpu"))), three[0].score(cast(World, Ranks(three)))
    assert vars(together) == pytest.approx(vars(alone), rel=1e-6) and together.lead == pytest.approx(alone.lead)


def test_errors_of_numbers() -> None:
    counted = tally(HeadLoss("l2", 10.0, 2.0), 1)
    counted.add(torch.tensor([[[1.0], [3.0]], [[4.0], [4.0]]]), torch.tensor([1.0, 5.0]))  # means of views: 2 and 4
    score = counted.score(World(0, 1, torch.device("cpu")))
    assert vars(score) == pytest.approx({"r2": 1 - 1 / 4, "mae": 1.0, "rmse": 1.0, "loss": 1 / 4})
    assert str(score) == "R2 0.75, MAE 1, RMSE 1"


def test_scores_of_several_classes() -> None:
    counted = tally(HeadLoss("sigmoid"), 6)
    logits = torch.tensor([[3.0, 2, 1, 0, -1, -2], [3.0, 2, 1, 0, -1, -2]])[:, None]
    hot = torch.zeros(2, 6)
    hot[0, [0, 5]] = hot[1, 5] = 1
    counted.add(logits, hot)
    score = counted.score(World(0, 1, torch.device("cpu")))
    assert (score.top1, score.top5) == (0.5, 0.5)  # type: ignore[attr-defined]
    assert score.lead == pytest.approx((0.5 + 1) / 2)
    p = logits[:, 0].double().sigmoid()
    loss = -(hot * p.log() + (1 - hot) * (1 - p).log()).mean().item()
    assert score.loss == pytest.approx(loss, rel=1e-5)  # type: ignore[attr-defined]
    assert str(score) == "mAP 75.00%, top-1 50.00%, top-5 50.00% (chance 75.00%)"

"""Scores of heads against slow references, and over several ranks."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from threading import Barrier, get_ident
from typing import Any, cast

import numpy as np
import pytest
import torch

from scaleup.checkpoint.model_directory import HeadLoss
from scaleup.common.distributed import World
from scaleup.common.metrics import average_precision, average_precisions, mean_average_precision, mean_of
from scaleup.evaluation import scores, spool
from scaleup.evaluation.scores import Tally, tally
from scaleup.evaluation.spool import Spool


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
    precisions = average_precisions(scores, positive)
    assert precisions.tolist() == pytest.approx([1, 0.5, np.nan], nan_ok=True)
    assert mean_average_precision(precisions, positive.sum(0), 2) == (pytest.approx((1 + 0.5) / 2), 0.5)
    assert mean_average_precision(precisions, np.zeros(3), 2) == (None, None)


class Ranks:
    """The world of several ranks, which are threads."""

    def __init__(self, count: int) -> None:
        self.given, self.all_gave = dict[int, Any](), Barrier(count)

    def gather(self, value: Any) -> list[Any]:
        self.given[get_ident()] = value
        self.all_gave.wait(timeout=20)
        everyone = [self.given[rank] for rank in sorted(self.given)]
        self.all_gave.wait(timeout=20)
        return everyone


ALONE, NAMES = World(0, 1, torch.device("cpu")), list("abcdefg")


def test_classes_are_scored_one_by_one_and_the_worst_is_first() -> None:
    """Of 7 classes g has no sample; two views, whose probabilities are averaged."""
    source = torch.Generator().manual_seed(1)
    logits, numbers = torch.randn(40, 2, 7, generator=source), torch.randint(0, 6, (40,), generator=source)
    logits = logits + torch.nn.functional.one_hot(numbers, 7)[:, None]
    hot = (torch.rand(40, 7, generator=source) < 0.3).float() * torch.tensor([1.0] * 6 + [0])
    for kind, labels in (("softmax", numbers), ("sigmoid", hot)):
        counted = tally(HeadLoss(kind), 7)  # type: ignore[arg-type]
        counted.add(logits, labels)
        by_class = counted.score(ALONE, NAMES)[1]
        assert by_class is not None
        values = {each.name: each.value for each in by_class.classes}
        for c, name in enumerate("abcdef"):
            has = (numbers == c) if kind == "softmax" else hot[:, c] > 0
            assert has.sum() == next(each.samples for each in by_class.classes if each.name == name) > 0
            if kind == "softmax":
                guesses = [logits[row].softmax(-1).mean(0).argmax().item() for row in range(40) if has[row]]
                slow = guesses.count(c) / len(guesses)
            else:
                slow = slow_precision(logits.sigmoid().mean(1)[:, c].tolist(), has.tolist())
            assert values[name] == pytest.approx(slow)
        assert by_class.classes[-1].name == "g" and values.pop("g") is None
        shares = list(values.values())
        assert shares == sorted(shares)  # type: ignore[type-var]
        assert len(set(shares)) > 3


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "l2", "l1"])
def test_ranks_together_score_as_one_does(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three classes at a time are sorted, two of the outputs' rows written."""
    monkeypatch.setattr(scores, "SORTED", 90)
    monkeypatch.setattr(spool, "ROWS", 7)

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
    names = NAMES if kind in ("softmax", "sigmoid") else ["number"]
    alone, single = one.score(ALONE, names)
    world = cast(World, Ranks(3))
    with ThreadPoolExecutor(3) as pool:
        (together, joined), *others = pool.map(lambda each: each.score(world, names), three)
    assert others == [(together, joined)] * 2
    assert repr(joined) == repr(single) and (single is None) == kind.startswith("l")
    assert vars(together) == pytest.approx(vars(alone), rel=1e-6) and together.lead == pytest.approx(alone.lead)


def test_errors_of_numbers() -> None:
    counted = tally(HeadLoss("l2", 10.0, 2.0), 1)
    for views, label in (([[1.0], [3.0]], 1.0), ([[4.0], [4.0]], 5.0)):  # means of views: 2 and 4
        counted.add(torch.tensor([views]), torch.tensor([label]))
    score, _ = counted.score(ALONE, ["number"])
    assert vars(score) == pytest.approx({"r2": 1 - 1 / 4, "mae": 1.0, "rmse": 1.0, "loss": 1 / 4})
    assert str(score) == "R2 0.75, MAE 1, RMSE 1"


def test_scores_of_several_classes() -> None:
    counted = tally(HeadLoss("sigmoid"), 6)
    logits = torch.tensor([[3.0, 2, 1, 0, -1, -2], [3.0, 2, 1, 0, -1, -2]])[:, None]
    hot = torch.zeros(2, 6)
    hot[0, [0, 5]] = hot[1, 5] = 1
    counted.add(logits, hot)
    score, _ = counted.score(ALONE, list("abcdef"))
    assert (score.top1, score.top5) == (0.5, 0.5)  # type: ignore[attr-defined]
    assert score.lead == pytest.approx((0.5 + 1) / 2)
    p = logits[:, 0].double().sigmoid()
    loss = -(hot * p.log() + (1 - hot) * (1 - p).log()).mean().item()
    assert score.loss == pytest.approx(loss, rel=1e-5)  # type: ignore[attr-defined]
    assert str(score) == "mAP 75.00%, top-1 50.00%, top-5 50.00% (chance 75.00%)"


def test_without_a_class_there_is_no_precision() -> None:
    counted = tally(HeadLoss("sigmoid"), 3)
    counted.add(torch.zeros(2, 1, 3), torch.zeros(2, 3))
    score, _ = counted.score(ALONE, list("abc"))
    assert str(score) == "mAP -, top-1 -, top-5 - (no sample has a class, so there is no mAP)"
    assert math.isnan(score.lead) and json.loads(json.dumps(asdict(score), allow_nan=False))["map"] is None


def test_a_mean_is_named_by_its_measures() -> None:
    assert mean_of(["top1"]).words(0.5) == "50.00%" and mean_of(["top1"]).title == "top-1"
    assert mean_of(["r2"]).words(-0.1635) == "-0.1635" and mean_of(["r2"]).column == "R2"
    assert mean_of(["top1", "map"]).column == "mean of mAP and top-1 %"
    assert mean_of(["r2", "top1"]).words(0.25) == "0.25" and mean_of(["map"]).words(None) == "-"


def test_a_spool_gives_columns_back_from_memory_and_from_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).random((50, 6), np.float32)
    for most in (10, 10**6):
        monkeypatch.setattr(spool, "IN_MEMORY", most)
        monkeypatch.setattr(spool, "ROWS", 8)
        kept = Spool()
        for begin in range(0, 50, 3):
            kept.add(rows[begin : begin + 3])
            assert np.array_equal(kept.columns(2, 5), rows[: begin + 3, 2:5])
        assert kept._file._rolled == (most == 10)  # type: ignore[attr-defined]

"""Losses of heads against slow references, sample by sample and class by class."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from scaleup.checkpoint.model_directory import HeadLoss
from scaleup.config.schema import Recipe
from scaleup.data.shards import Shards
from scaleup.model.arm import NumberHead
from scaleup.model.objective import Objective
from scaleup.training.run import Run
from scaleup.training.run_inputs import class_weights

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0]])
HOT = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_binary_cross_entropy_is_a_mean_over_samples_and_classes(smoothing: float) -> None:
    total = 0.0
    for logits, hot in zip(LOGITS.tolist(), HOT.tolist(), strict=True):
        for x, label in zip(logits, hot, strict=True):
            target = label * (1 - smoothing) + smoothing / 3
            total -= target * math.log(sigmoid(x)) + (1 - target) * math.log(1 - sigmoid(x))
    assert Objective(HeadLoss("sigmoid"), smoothing)(LOGITS, HOT).item() == pytest.approx(total / 6)


def test_one_class_is_a_row_with_one_for_a_sigmoid_head() -> None:
    loss, labels = Objective(HeadLoss("sigmoid")), torch.tensor([2, 0])
    assert torch.equal(loss(LOGITS, labels), loss(LOGITS, torch.tensor([[0.0, 0, 1], [1, 0, 0]])))


@pytest.mark.parametrize(("kind", "expected"), [("l2", (1 + 0.25) / 2), ("l1", (1 + 0.5) / 2)])
def test_errors_are_in_standard_deviations(kind: str, expected: float) -> None:
    objective = Objective(HeadLoss(kind, mean=3.0, std=2.0))  # type: ignore[arg-type]
    logits, labels = torch.tensor([[1.0], [4.0]]), torch.tensor([3.0, 5.0])
    assert objective(logits, labels).item() == pytest.approx(expected)
    assert objective.measure == "r2" and objective.quality(logits, labels).item() == pytest.approx(1 - (1 + 0.25) / 2)


def test_a_first_class_is_right_where_it_is_one_of_several() -> None:
    several = Objective(HeadLoss("sigmoid"))
    assert several.measure == "accuracy" and several.quality(LOGITS, HOT).item() == 0.5
    assert Objective().quality(LOGITS, torch.tensor([0, 0])).item() == 0.5


def test_a_number_comes_in_the_units_of_its_label() -> None:
    head, plain = NumberHead(4, mean=1000.0, std=50.0), nn.Linear(4, 1)
    head.load_state_dict(plain.state_dict())
    x = torch.randn(3, 4)
    torch.testing.assert_close(head(x), 1000 + 50 * plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert head(x).dtype == torch.float32  # 1000 and a bit, which bfloat16 cannot hold


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_losses(gamma: float) -> None:
    labels, total = torch.tensor([0, 2]), 0.0
    for logits, label in zip(LOGITS.tolist(), labels.tolist(), strict=True):
        p = math.exp(logits[label]) / sum(map(math.exp, logits))
        total -= (1 - p) ** gamma * math.log(p)
    assert Objective(gamma=gamma)(LOGITS, labels).item() == pytest.approx(total / 2)
    total = 0.0
    for logits, hot in zip(LOGITS.tolist(), HOT.tolist(), strict=True):
        for x, label in zip(logits, hot, strict=True):
            p = sigmoid(x) if label else 1 - sigmoid(x)
            total -= (1 - p) ** gamma * math.log(p)
    assert Objective(HeadLoss("sigmoid"), gamma=gamma)(LOGITS, HOT).item() == pytest.approx(total / 6)


def test_weights_of_classes() -> None:
    weights, labels = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0, 1])
    each = [Objective()(LOGITS[i : i + 1], labels[i : i + 1]).item() for i in range(2)]
    assert Objective(weights=weights)(LOGITS, labels).item() == pytest.approx((each[0] + 2 * each[1]) / 2)
    total = 0.0
    for logits, hot in zip(LOGITS.tolist(), HOT.tolist(), strict=True):
        for x, label, weight in zip(logits, hot, weights.tolist(), strict=True):
            total -= weight * math.log(sigmoid(x)) if label else math.log(1 - sigmoid(x))
    assert Objective(HeadLoss("sigmoid"), weights=weights)(LOGITS, HOT).item() == pytest.approx(total / 6)


@pytest.mark.parametrize(("balance", "power"), [("sqrt", 0.5), ("full", 1.0)])
def test_weights_come_from_the_counts_of_the_training_index(
    tiny: Callable[..., Recipe], balance: str, power: float
) -> None:
    recipe = tiny(f"heads.motion.balance={balance}", f"heads.shape={{loss: sigmoid, balance: {balance}}}")
    shards = Shards.open(recipe.data.train["videos"].shards)
    weights, motions = class_weights(recipe), shards.labels["motion"].tolist()
    assert sum(weights["motion"][each].item() for each in motions) == pytest.approx(len(motions))  # the mean is 1
    for a in set(motions):
        for b in set(motions):
            ratio = (weights["motion"][a] / weights["motion"][b]).item()
            assert ratio == pytest.approx((motions.count(b) / motions.count(a)) ** power)
    shapes = shards.labels["shape"].tolist()
    for a in set(shapes):
        assert weights["shape"][a].item() == pytest.approx(((len(shapes) - shapes.count(a)) / shapes.count(a)) ** power)
    assert "image_shape" not in weights
    run = Run(recipe, {"model": recipe.arm})
    used = run.trainers["model"].objectives["motion"].weights
    run.close()
    assert used is not None and torch.equal(used, weights["motion"])

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from scaleup.config.schema import Recipe
from scaleup.training.feed import Mix
from scaleup.training.log import Recent, line
from scaleup.training.run import Run

SHARES = {"videos": {"shape": 1 / 8, "motion": 1 / 8}, "images": {"size": 1 / 4}}
BATCH, STEPS, WARMUP = 16, 2000, 100


def recent(arm: str = "model", shares: dict[str, dict[str, float]] = SHARES) -> Recent:
    return Recent(arm, shares, BATCH, STEPS, WARMUP)


def heads(loss: float = 2.0, **accuracies: float) -> dict[str, dict[str, float]]:
    return {head: {"loss": loss, "accuracy": accuracy} for head, accuracy in accuracies.items()}


def said(seen: Recent, steps: range, accuracy: float, seed: int = 0) -> list[str]:
    """What is said while a head is right with a probability."""
    right = np.random.default_rng(seed).binomial(BATCH, accuracy, len(steps)) / BATCH
    return [
        each for step, share in zip(steps, right, strict=True) for each in seen.add(step, "videos", heads(motion=share))
    ]


def test_the_line_of_progress_has_loss_and_accuracy_of_each_head_of_late() -> None:
    seen = recent()
    for step in range(100):
        seen.add(step, "videos", heads(9.0 if step < 80 else 0.25, shape=float(step >= 80), motion=0.125))
    assert line([seen]) == "model shape 0.25 100%, motion 0.25 12%"
    seen.add(100, "images", heads(1.5, size=0.5))
    assert line([seen]).endswith(", size 1.50 50%")


def test_the_line_stays_short() -> None:
    arms = [recent(f"arm{number}") for number in range(13)]
    for arm in arms:
        arm.add(0, "videos", heads(shape=0.5, motion=0.5))
        arm.add(1, "images", heads(size=0.5))
    assert line(arms).count("%") == 8 and line(arms).endswith("; arm2 shape 2.00 50%, motion 2.00 50%, ...")
    many = recent(shares={"videos": {f"h{number}": 0.5 for number in range(9)}})
    many.add(0, "videos", heads(**{f"h{number}": 0.5 for number in range(9)}))
    assert line([many]).endswith("h7 2.00 50%, ...")


def test_a_head_at_chance_is_named_once_and_no_longer_noted_when_it_has_risen() -> None:
    seen = recent("last2")
    first = WARMUP + (STEPS - WARMUP) // 4
    assert said(seen, range(first + 111), 1 / 8) == [] and not seen.at_chance  # 112 batches are 1,792 samples
    (sentence,) = said(seen, range(first + 111, STEPS), 1 / 8)
    assert sentence.startswith(
        f"head 'motion' of arm 'last2' is still at chance after {first + 112} steps: it is right"
    )
    assert "1,792 samples, and the most frequent class is that of 12.5%" in sentence
    assert seen.at_chance["motion"].accuracy == pytest.approx(1 / 8, abs=1 / 32)
    assert said(seen, range(STEPS, STEPS + 112 * 2), 1 / 4) == [] and not seen.at_chance


def test_luck_names_no_head_that_learns_and_hides_none_that_does_not() -> None:
    for chance in (1 / 2, 1 / 8, 1 / 50, 0.9):
        margin, named = min(chance, 1 - chance) / 4, []
        for accuracy in (chance, chance + 2 * margin):
            runs = [recent(shares={"videos": {"motion": chance}}) for _ in range(40)]
            named.append(sum(bool(said(each, range(600, 1600), accuracy, seed)) for seed, each in enumerate(runs)))
        assert named[0] == 40 and named[1] <= 1


def test_a_head_of_one_class_is_not_judged() -> None:
    assert not said(recent(shares={"videos": {"motion": 1.0}}), range(STEPS), 1.0)


def test_heads_that_learn_from_several_sets_are_told_apart() -> None:
    seen = recent(shares={"videos": {"motion": 1 / 8}, "more": {"motion": 1 / 8}})
    seen.add(0, "videos", heads(0.1, motion=1.0))
    seen.add(1, "more", heads(2.0, motion=0.1))
    assert line([seen]) == "model motion of videos 0.10 100%, motion of more 2.00 10%"


def entries(accuracy: float, steps: range) -> list[dict]:
    def arm(step: int) -> dict:
        return {"seconds": 0.1, "loss": 2.0, "heads": heads(shape=0.9, motion=accuracy)}

    return [{"step": s, "dataset": "videos", "trunk_seconds": 0.1, "arms": {"model": arm(s)}} for s in steps]


def test_a_run_names_heads_at_chance_and_one_that_goes_on_knows_which(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("train.steps=3000")
    run, again = (Run(recipe, {"model": replace(recipe.arm, frozen_depth=1)}) for _ in range(2))
    (sentence,) = run.remember(entries(1 / 6, range(2000)))
    assert "head 'motion' of arm 'model' is still at chance after" in sentence
    assert list(run.recent["model"].at_chance) == ["motion"]
    again.remember(entries(1 / 6, range(1500)))
    assert again.remember(entries(1 / 6, range(1500, 2000))) == []
    assert again.recent["model"].at_chance == run.recent["model"].at_chance


def test_a_mixed_sample_is_named_by_the_greater_part_of_it() -> None:
    labels, order = torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1])
    assert Mix(order, 0.7).dominant(labels).tolist() == [0, 1, 2]
    assert Mix(order, 0.3).dominant(labels).tolist() == [2, 0, 1]


def valid(samples: int = 1000, **top1: float) -> dict:
    return {"samples": samples, "heads": {head: {"top1": share, "top5": 1.0} for head, share in top1.items()}}


def test_a_gap_between_training_and_validation_is_named_once_for_each_head() -> None:
    both = recent("last2")
    for step in range(30):
        both.add(step, "videos", heads(shape=0.9, motion=0.95))
    assert both.compare(30, valid(shape=0.85, motion=0.93)) == [] and not both.gaps  # small
    assert both.compare(30, valid(10, shape=0.9, motion=0.6)) == []  # luck, of ten samples
    (sentence,) = both.compare(40, valid(shape=0.88, motion=0.6))
    assert sentence.startswith("head 'motion' of arm 'last2' learns its training samples better than others")
    assert "95.0% on the training samples" in sentence and "60.0% on the validation samples, after 40 steps" in sentence
    assert both.compare(50, valid(shape=0.88, motion=0.5)) == [] and both.gaps["motion"].valid == 0.5
    several = {"samples": 9, "heads": {"motion": {"map": None, "top1": None, "top5": None}}}
    assert both.compare(55, several) == [] and not both.gaps  # no sample has a class
    both.compare(60, valid(shape=0.88, motion=0.94))
    assert not both.gaps  # it has closed


def number(r2: float, steps: range, seen: Recent) -> list[str]:
    return [each for step in steps for each in seen.add(step, "videos", {"height": {"loss": 1 - r2, "r2": r2}})]


def test_a_head_that_gives_a_number_is_at_chance_while_it_explains_nothing() -> None:
    dead, alive = (recent(shares={"videos": {"height": 0.0}}) for _ in range(2))
    (sentence,) = number(0.01, range(STEPS), dead)
    assert (
        "its R2 is 0.01 on the last 10,000 labels, and that of their mean is 0;" in sentence
        and "height" in dead.at_chance
    )
    assert number(0.3, range(STEPS), alive) == [] and line([alive]) == "model height 0.70 R2 0.30"
    (gap,) = alive.compare(STEPS, {"samples": 900, "heads": {"height": {"r2": -0.5}}})
    assert "its R2 is 0.30 on the training samples of late, and -0.50 on the validation samples" in gap

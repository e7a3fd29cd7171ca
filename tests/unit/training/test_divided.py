"""ZeRO 3: ranks divide the weights that train; what comes of a run is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import bits, metrics

from scaleup.common.errors import UserError
from scaleup.config.schema import Arm, Recipe
from scaleup.training import engine
from scaleup.training.run import Run, train

Tiny = Callable[..., Recipe]
LATE = Arm(frozen_depth=1, gate=True, lr=0.01)
ARMS = {
    "gated": LATE,
    "channel": Arm(frozen_depth=2, gate="channel", lr=0.01, grad_checkpointing=True, steps=3),
    "read": Arm(frozen_depth=3, taps=[1], lr=0.01, pool="attentive", pool_queries=3, pool_heads=4, patience=1),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of a tiny model are divided too."""
    monkeypatch.setitem(engine.DIVIDED, "stage3_param_persistence_threshold", 32)


@pytest.fixture
def recipe(tiny: Tiny, tmp_path: Path) -> Callable[..., Recipe]:
    """Of four steps; arms are validated after two, and one ends there, one a step later."""
    valid = f"data.valid.shards={tiny().data.train['videos'].shards}"

    def of(name: str, *changes: str) -> Recipe:
        common = ["train.valid_every=2", valid, "arms={}", "arm.frozen_depth=1"]
        return tiny(f"out={tmp_path / name}", *common, *changes)

    return of


def test_arms_are_those_of_other_stages(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """Heads that rest in a step count in no norm; and a run in pieces ends with the same bytes."""
    for name, stage in (("whole", 0), ("divided", 3)):
        train(recipe(name, f"train.zero_stage={stage}"), ARMS)
    assert train(recipe("pieces", "train.zero_stage=3"), ARMS, stop_after=0).stopped
    train(recipe("pieces", "train.zero_stage=3"), ARMS)
    assert bits(tmp_path / "pieces") == bits(tmp_path / "divided")
    assert bits(tmp_path / "divided").keys() == bits(tmp_path / "whole").keys()
    lines = [metrics(tmp_path / name) for name in ("whole", "divided")]
    assert {line["dataset"] for line in lines[0]} == {"videos", "images"}
    for one, other in zip(*lines, strict=True):
        assert numbers(other) == pytest.approx(numbers(one), rel=1e-3, abs=1e-5)


def numbers(line: dict[str, Any]) -> dict[str, float]:
    keys = ("loss", "grad_norm", "alpha")
    found = {f"{name} {key}": arm[key] for name, arm in line["arms"].items() for key in keys if arm[key] is not None}
    return found | {f"{name} valid": arm["valid"]["accuracy"] for name, arm in line["arms"].items() if "valid" in arm}


def test_a_checkpoint_goes_on_at_another_stage(recipe: Callable[..., Recipe]) -> None:
    runs = [Run(recipe(f"at{stage}", f"train.zero_stage={stage}"), {"gated": LATE}) for stage in (3, 0, 3)]
    feed = iter(runs[0].feed)
    for step in range(2):
        runs[0].step(step, next(feed))
    tensors = runs[0].trainers["gated"].gather()
    assert all(tensors[f"{key}/blocks.1.attn.qkv.weight"].any() for key in ("arm", "exp_avg", "exp_avg_sq"))
    for run in runs[1:]:
        trainer = run.trainers["gated"]
        trainer.restore(tensors, {})
        again = trainer.gather()
        assert again.keys() == tensors.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    for run in runs:
        run.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            ["arm.frozen_depth=1", "arm.adapt=lora"],
            "adapt: lora leaves blocks frozen that arms share with the trunk",
        ),
        (["arm.frozen_depth=0"], "frozen_depth: 0 trains the tokenizer"),
        (["arm.frozen_depth=1", "train.compile=blocks"], "train.compile: blocks needs whole weights"),
    ],
)
def test_what_cannot_be_divided_is_refused(tiny: Tiny, changes: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny("arms={}", "train.zero_stage=3", *changes)

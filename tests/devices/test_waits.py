"""In a step the host waits once for the device, however many arms train, and copies nothing to it but the batch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pretended import gpu
from test_placed import ARMS, FROZEN

from scaleup.config.schema import Arm, Recipe
from scaleup.training import token_cache
from scaleup.training.run import Run

CLIPPED = {"clipped": Arm(frozen_depth=2, gate=True, clip=0.01, lr=0.01)}


def check_a_step(recipe: Recipe, arms: dict[str, Arm]) -> None:
    """Check the fifth step; the steps before it build what stays."""
    with gpu() as events:
        run = Run(recipe, arms)
        feed = iter(run.feed)
        for step in range(4):
            run.step(step, next(feed))
        events.take()
        run.step(4, next(feed))
        counts = events.take()
        run.close()
    assert sum(count for (kind, _), count in counts.items() if kind == "wait") == 1, counts
    assert all("/upload.py:" in line for kind, line in counts if kind == "upload"), counts


@pytest.mark.parametrize("changes", [[], ["train.mixup=0.4"], ["train.accumulate=2"]])
def test_a_step_of_many_arms_waits_once(tiny: Callable[..., Recipe], changes: list[str]) -> None:
    check_a_step(tiny("train.steps=8", *changes), ARMS | CLIPPED)


def test_a_step_from_a_cache_waits_once(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    read = tiny("train.steps=8", "train.mixup=0", "arms.full=null")
    token_cache.make(read, [1, 2, 3], tmp_path / "cache")
    check_a_step(replace(read, trunk=replace(read.trunk, cache=str(tmp_path / "cache"))), FROZEN | CLIPPED)

"""Arms that train from a cache are validated on videos, by the trunk that made the cache."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scaleup.config.schema import Recipe
from scaleup.training.run import train
from scaleup.training.token_cache import make

KEYS = ("steps", "ended", "best_step", "valid_accuracy")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_validation_beside_a_cache_is_validation_live(
    frozen: Callable[..., Recipe], tmp_path: Path, precision: str
) -> None:
    shards = frozen().data.train["videos"].shards
    changes = ["train.steps=4", "train.valid_every=1", f"data.valid.shards={shards}", f"trunk.precision={precision}"]
    arm = replace(frozen().arm, frozen_depth=1, gate=True)
    arms = {"deep": replace(arm, frozen_depth=3, steps=2), "idle": replace(arm, lr=1e-12, gate_lr=1e-12, patience=2)}
    arms["gated"] = arm
    live = train(frozen(*changes), arms).arms
    make(frozen(*changes), [1, 3], tmp_path / "cache", precision="float32")
    cached = train(frozen(*changes, f"trunk.cache={tmp_path / 'cache'}", f"out={tmp_path / 'cached'}"), arms).arms
    assert {name: [getattr(arm, key) for key in KEYS] for name, arm in cached.items()} == {
        name: [getattr(arm, key) for key in KEYS] for name, arm in live.items()
    }
    assert [cached[name].steps for name in arms] == [2, 3, 4] and cached["idle"].ended == "early"
    for line in (tmp_path / "cached" / "metrics.jsonl").read_text().splitlines():
        assert all(arm["valid"]["samples"] == 12 for arm in json.loads(line)["arms"].values())

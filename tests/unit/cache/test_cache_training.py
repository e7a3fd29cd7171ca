"""Training from a cache is training live on the same views, without the trunk and without videos."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scaleup.cache.make import make
from scaleup.recipe import Recipe, sweep_arms
from scaleup.training.run import run

Frozen = Callable[..., Recipe]
ARMS = ["last", "gated"]


def trained(recipe: Recipe) -> dict[str, dict[str, torch.Tensor]]:
    run(recipe, sweep_arms(recipe))
    return {arm: load_file(Path(recipe.out) / arm / "model.safetensors") for arm in ARMS}


@pytest.mark.parametrize("changes", [[], ["train.accumulate=2"], ["data.window=5", "data.workers=2"]])
def test_training_from_a_cache_is_training_live(frozen: Frozen, tmp_path: Path, changes: list[str]) -> None:
    """Two epochs, two views, dropout, videos and images: bit for bit the same weights."""
    changes = ["train.steps=9", *changes]
    live = trained(frozen(*changes))
    make(frozen(*changes), [1, 3], tmp_path / "cache", views=2, precision="float32")
    cached = trained(frozen(*changes, f"trunk.cache={tmp_path / 'cache'}", f"out={tmp_path / 'cached'}"))
    for arm in ARMS:
        assert cached[arm].keys() == live[arm].keys()
        for name, tensor in cached[arm].items():
            torch.testing.assert_close(tensor, live[arm][name], rtol=1e-5, atol=1e-6)

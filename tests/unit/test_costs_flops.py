"""The FLOPs that are planned against a counter around the real modules, at real shapes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.marks import at_length
from torch.utils.flop_counter import FlopCounterMode

from scaleup.config import recipe
from scaleup.config.schema import Recipe
from scaleup.sweeps import costs
from scaleup.sweeps.trace import counter
from scaleup.training.run import Run
from scaleup.training.run_inputs import models_on_meta

TUBES = """
  tubes:
    a: {kernel: [8, 8, 8], stride: [16, 32, 32], fold: [2, 1, 1]}
    b: {kernel: [16, 4, 4], stride: [6, 32, 32], offset: [4, 8, 8], fold: [1, 2, 2]}
    c: {kernel: [4, 12, 12], stride: [16, 32, 32], offset: [0, 16, 16]}
"""
GATED = ["arms={}", "arm.gate=true", "train.warmup=0", "data.batch=1"]


def read(tiny_path: Path, name: str, frozen: int, frames: int, side: int, *changes: str) -> Recipe:
    """The paper's main tubes on one clip of such a size, and three quarters of the blocks frozen."""
    text = "\n".join(line for line in tiny_path.read_text().splitlines() if "images" not in line)
    model = f"model:\n  input: {{frames: {frames}, size: [{side}, {side}]}}\n  positions: {{kind: backbone}}"
    path = tiny_path.with_name(f"{name}-{frames}-{side}.yaml")
    path.write_text(model + TUBES + text[text.index("data:") :])
    return recipe.load(path, [*GATED, f"model.backbone.name={name}", f"arm.frozen_depth={frozen}", *changes])


def planned(read: Recipe) -> int:
    return costs.plan(read, {"model": read.arm}, gflops=1).flops["video"].step * read.data.batch


@pytest.mark.all
def test_a_real_step_of_vit_b_takes_what_is_planned(tiny_path: Path) -> None:
    """Loader, trunk, arm, update, as tools/train.py has them."""
    vit_b = read(tiny_path, "vit_b", 9, 32, 224)
    run = Run(vit_b, {"model": vit_b.arm})
    fed: Any = next(iter(run.feed))
    with counter() as counted:
        run.step(0, fed)
    assert planned(vit_b) == pytest.approx(counted.get_total_flops(), rel=0.1)


@pytest.mark.parametrize(
    ("name", "depth", "frozen", "frames", "side"),
    [("vit_l", 4, 3, 64, 336), *at_length(("vit_l", 24, 18, 64, 336), ("vit_h", 32, 24, 32, 224))],
)
def test_the_modules_of_larger_models_take_what_is_planned(
    tiny_path: Path, name: str, depth: int, frozen: int, frames: int, side: int
) -> None:
    """On the meta device, where nothing is computed and attention is products, which every torch counts by itself."""
    large = read(tiny_path, name, frozen, frames, side, f"model.backbone.kwargs.depth={depth}")
    model = models_on_meta(large, {"model": large.arm})["model"]
    assert model.trunk is not None
    model.arm.kernels = model.trunk.kernels = "lean"
    x = torch.empty(large.data.batch, 3, frames, side, side, device="meta")
    with FlopCounterMode(display=False) as counted:
        pooled = model.arm.features(model.arm_inputs(x))
        sum(head(pooled).sum() for head in model.arm.heads.values()).backward()
    assert planned(large) == pytest.approx(counted.get_total_flops(), rel=0.1)

"""What tests of whole runs share: tiny shards of moving shapes, and a tiny recipe on them.

Torch is imported inside functions: the process that only hands tests to workers does without.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from scaleup.config.schema import Recipe

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models on shared cores: threads would only wait for each other

TINY = """
seed: 1
model:
  backbone:
    name: timm:vit_tiny_patch16_224
    kwargs: {patch_size: 8, embed_dim: 24, depth: 3, num_heads: 2, proj_drop_rate: 0.1, drop_path_rate: 0.1}
  input: {frames: 8, size: [32, 32], fps: 8}
  frames: {stride: 4}
  tubes:
    long: {kernel: [4, 4, 4], stride: [4, 16, 16]}
data:
  batch: 4
  workers: 0
  train:
    videos: {shards: SHARDS/videos-train, heads: {shape: shape, motion: motion}}
    images: {shards: SHARDS/images-train, heads: {image_shape: shape}, weight: 0.5}
train: {steps: 4, warmup: 1, mixup: 0.2, label_smoothing: 0.1}
arm: {lr: 0.01, weight_decay: 0.1}
arms:
  full: {}
  last: {frozen_depth: 3}
  gated: {frozen_depth: 1, gate: true}
"""

FAMILIES = {  # those of tests/families that make test tries, of each library and kind; make test-all tries all
    *("vit_base_patch16_224.augreg_in21k", "vit_medium_patch16_reg4_gap_256", "vit_base_patch16_siglip_224.webli"),
    *("vit_giant_patch14_dinov2", "vit_pwee_patch16_reg1_gap_256", "eva02_small_patch14_224"),
    *("vit_small_patch16_dinov3", "vit_pe_core_base_patch16_224", "vit_small_patch16_rope_mixed_ape_224"),
    *("ViT-B-32-quickgelu", "coca_ViT-L-14", "EVA02-L-14"),
}


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):  # the workers do the work
        return
    import_module("support.quick")
    if hasattr(config, "workerinput"):
        import_module("support.tools").fork_server()


def pytest_collection_finish() -> None:
    """What is imported stays: garbage is looked for among the rest alone."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        family = getattr(item, "callspec", None) and item.callspec.params.get("family")  # type: ignore[attr-defined]
        if family and family.id not in FAMILIES:
            item.add_marker("all")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file of three arms on a model of width 24, on a dozen videos and images."""
    from scaleup.data.shapes import make_shapes

    directory = tmp_path_factory.mktemp("tiny")
    make_shapes(directory / "shapes", {"train": 12}, {"train": 12}, frames=8, processes=1)
    path = directory / "tiny.yaml"
    path.write_text(TINY.replace("SHARDS", str(directory / "shapes")))
    return path


@pytest.fixture
def tiny(tiny_path: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """``tiny("train.steps=2", ...)``: the recipe with changes; it writes to ``tmp_path / "out"``."""
    from scaleup.config import recipe

    return lambda *changes: recipe.load(tiny_path, [f"out={tmp_path / 'out'}", *changes])


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The shapes of the weights of every convolution from now on."""
    import torch.nn.functional as F

    seen: list[tuple] = []
    original = F.conv2d

    def counted(input: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(weight.shape))
        return original(input, weight, *args, **kwargs)

    monkeypatch.setattr(F, "conv2d", counted)
    return seen

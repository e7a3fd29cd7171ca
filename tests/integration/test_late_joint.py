"""Late blocks of an adapted model trained on images and videos together: live, from a cache, and on videos alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.runs import metrics, weights
from support.tools import AT_ONCE, tool

import scaleup
from scaleup.config import schema
from scaleup.config.recipe import load, sweep_arms
from scaleup.data.shapes import make_shapes
from scaleup.evaluation.accuracy import evaluate
from scaleup.model.build import fresh
from scaleup.training.run import train
from scaleup.training.token_cache import make
from scaleup.transplants.adapted_model import transplant
from scaleup.transplants.transplant_plan import Options

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes/sweeps/joint.yaml"
HEADS = {"videos": {"shape", "motion"}, "images": {"shape", "position", "size"}}
ARMS = ("head", "last2", "last2_gate")


def model(width: int, depth: int, tubes: dict[str, schema.Tube]) -> Any:
    kwargs = {"patch_size": 8, "embed_dim": width, "depth": depth, "num_heads": 2}
    settings = schema.Model(
        backbone=schema.Backbone("timm:vit_tiny_patch16_224", kwargs),
        input=schema.Input(frames=8, size=[32, 32], fps=8),
        frames=schema.Frames(stride=8),
        tubes=tubes,
    )
    return fresh(settings, {}, 3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and an adapted model of 6 blocks."""
    path = tmp_path_factory.mktemp("joint")
    make_shapes(path / "data", {"train": 12, "val": 6}, {"train": 12, "val": 7}, frames=8, processes=1)
    model(24, 1, {"long": schema.Tube([4, 8, 8], [4, 16, 16])}).save_pretrained(path / "small")
    model(24, 6, {}).save_pretrained(path / "large", kind="full")
    transplant(str(path / "small"), str(path / "large"), path / "adapted", Options())
    return path


def changes(prepared: Path, out: Path, late: str, *more: str) -> list[str]:
    shards = {name: f"data.train.{name}.shards={prepared}/data/{name}-train" for name in HEADS}
    given = [f"out={out}", f"model.load={prepared}/adapted", "data.batch=4", "data.workers=0", "train.steps=8"]
    given += ["train.warmup=1", "train.kernels=library", *more, shards["videos"]]
    return ["scale=desk", f"late={late}", *given, *([shards["images"]] if late == "joint" else [])]


@pytest.fixture(scope="module")
def joint(prepared: Path) -> Path:
    """A sweep of late blocks on both."""
    out = prepared / "joint"
    done = tool("sweep", RECIPE, *changes(prepared, out, "joint"), before=AT_ONCE)
    assert done.returncode == 0, done.stderr
    return out


def test_both_heads_learn_by_their_weights_and_both_are_evaluated(prepared: Path, joint: Path) -> None:
    logged = metrics(joint)
    datasets = [line["dataset"] for line in logged]
    assert datasets.count("videos") == 6 and datasets.count("images") == 2  # 3 to 1
    for line in logged:
        assert all(set(line["arms"][arm]["heads"]) == HEADS[line["dataset"]] for arm in ARMS)
    models = {arm: scaleup.load(joint / arm) for arm in ARMS}
    for name in HEADS:
        heads = {head: head for head in HEADS[name]}
        scores = evaluate(models, prepared / f"data/{name}-val", "1x1", heads, batch=4)
        assert all(set(scores[arm].heads) == HEADS[name] for arm in ARMS)
    assert models["last2_gate"].arm.gate.alpha.item() != 0


def test_images_change_what_late_blocks_learn_and_frozen_blocks_stay(
    prepared: Path, joint: Path, tmp_path: Path
) -> None:
    read = load(RECIPE, changes(prepared, tmp_path / "videos", "videos"))
    train(read, sweep_arms(read))
    both, videos = (weights(out / "last2") for out in (joint, tmp_path / "videos"))
    assert {name for name in both if name.startswith("blocks.")} == {n for n in videos if n.startswith("blocks.")}
    assert all(name.split(".")[1] in ("4", "5") for name in both if name.startswith("blocks."))
    assert both["blocks.5.mlp.fc1.weight"] != videos["blocks.5.mlp.fc1.weight"]
    assert all(both[name] == videos[name] for name in both if name.startswith("tubes."))
    assert {name.split(".")[1] for name in both.keys() - videos.keys()} == {"position", "size"}
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    taps = [scaleup.load(at).trunk(x, [4])[4].h for at in (prepared / "adapted", joint / "last2")]
    assert torch.equal(*taps)


def test_a_cache_of_both_trains_as_they_do_live(prepared: Path, joint: Path, tmp_path: Path) -> None:
    read = load(RECIPE, changes(prepared, tmp_path / "live", "joint"))
    make(read, [4, 6], tmp_path / "cache", views=1, precision="float32")
    cached = load(RECIPE, changes(prepared, tmp_path / "cached", "joint", f"trunk.cache={tmp_path / 'cache'}"))
    train(cached, sweep_arms(cached))
    assert {line["dataset"] for line in metrics(tmp_path / "cached")} == set(HEADS)
    for arm in ARMS:
        live, again = (load_file(out / arm / "delta.safetensors") for out in (joint, tmp_path / "cached"))
        assert live.keys() == again.keys()
        for name in live:
            torch.testing.assert_close(again[name], live[name], rtol=1e-4, atol=1e-5)

"""The main job at real size: tubes of a ViT-Ti into a ViT-H of 632 M, and one step of its last eight blocks."""

import json
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open

import scaleup
from scaleup.bench.transplant import small_model
from scaleup.bench.turns import python
from scaleup.data.shapes import make_shapes

TOOLS = Path(__file__).parents[2] / "tools"
GIB = 2**30


def recipe(directory: Path) -> Path:
    """One step of 24 frozen blocks of 32, gated, on two clips of 32x224x224."""
    content = {
        "out": str(directory / "run"),
        "model": {"load": str(directory / "adapted")},
        "data": {
            "batch": 2,
            "workers": 0,
            "train": {"videos": {"shards": str(directory / "shapes/videos-train"), "heads": {"motion": "motion"}}},
        },
        "train": {"steps": 1, "warmup": 0},
        "arm": {"frozen_depth": 24, "gate": True, "lr": 1e-5, "gate_lr": 5e-5},
    }
    path = directory / "recipe.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    return path


@pytest.mark.slow
def test_one_step_of_a_transplanted_vit_h(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    make_shapes(tmp_path / "shapes", {"train": 2}, {}, size=224, frames=32)
    small = small_model(tmp_path / "small")
    python(TOOLS / "transplant.py", small, "vit_h", "--random-init", "--gate-at", 24, "--out", tmp_path / "adapted")
    report = json.loads((tmp_path / "adapted/report.json").read_text())
    assert report["image_max_abs_diff"] == 0 and report["gate"]["closed_max_abs_diff"] == 0
    assert report["gate"]["alpha_grad"] > 0
    assert all(tube["token_max_abs_diff"] < 1e-4 for tube in report["tubes"].values())

    trained = python(TOOLS / "train.py", recipe(tmp_path))
    print(f"one step: {trained.seconds:.0f} s, {trained.peak_bytes / GIB:.2f} GiB", file=sys.stderr)
    assert trained.peak_bytes < 14 * GIB

    with safe_open(tmp_path / "run/model/delta.safetensors", "pt") as delta:
        late = {name.split(".")[1] for name in delta.keys() if name.startswith("blocks.")}  # noqa: SIM118
        others = {name.split(".")[0] for name in delta.keys()} - {"blocks"}  # noqa: SIM118
    assert late == {str(block) for block in range(24, 32)}  # the bytes of all frozen blocks are the base's
    assert others <= {"tubes", "gate", "heads", "norm", "fc_norm"}
    before = scaleup.load(tmp_path / "adapted")
    model = scaleup.load(tmp_path / "run/model")  # refused if the base had another sha256
    for mine, theirs in zip(model.tokenizer.state_dict().values(), before.tokenizer.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(model.blocks[24:], before.blocks[24:], strict=True):
        assert not torch.equal(mine.attn.qkv.weight, theirs.attn.qkv.weight)  # type: ignore[union-attr,arg-type]
    alpha = model.arm.gate.alpha.item()  # type: ignore[union-attr]
    assert abs(alpha) == pytest.approx(5e-5, rel=1e-3)  # Adam's first step is of the length of its rate

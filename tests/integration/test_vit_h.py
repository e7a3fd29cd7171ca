"""The main job at real size: tubes of a ViT-Ti into a ViT-H of 632 M, and one step of its last eight blocks."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import scaleup
from bench.measure import run_python
from bench.stream import one_step
from bench.transplant import small_model

TOOLS = Path(__file__).parents[2] / "tools"
GIB = 2**30


@pytest.mark.slow
def test_one_step_of_a_transplanted_vit_h(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    small = small_model(tmp_path / "small")
    run_python(TOOLS / "transplant.py", small, "vit_h", "--random-init", "--gate-at", 24, "--out", tmp_path / "adapted")
    report = json.loads((tmp_path / "adapted/report.json").read_text())
    assert report["image_max_abs_diff"] == 0 and report["gate"]["closed_max_abs_diff"] == 0
    assert report["gate"]["alpha_grad"] > 0
    assert all(tube["token_max_abs_diff"] < 1e-4 for tube in report["tubes"].values())

    trained = run_python(TOOLS / "train.py", one_step(tmp_path, 24))
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

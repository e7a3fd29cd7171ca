import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from scaleup.recipe import Recipe, sweep_arms
from scaleup.training.run import run

TOOLS = Path(__file__).parents[2] / "tools"


def bits(model: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(model / "model.safetensors").items()}


@pytest.mark.parametrize("stage", [0, 2])
def test_an_arm_of_a_sweep_ends_as_the_same_arm_alone(tiny: Callable[..., Recipe], tmp_path: Path, stage: int) -> None:
    """Bit for bit, with dropout, drop path and mixup, whatever trains beside it."""
    recipe = tiny(f"train.zero_stage={stage}", f"out={tmp_path / 'together'}")
    arms = sweep_arms(recipe)
    run(recipe, arms)
    heads = []
    for name, arm in arms.items():
        run(tiny(f"train.zero_stage={stage}", f"out={tmp_path / name}"), {"alone": arm})
        weights = bits(tmp_path / name / "alone")
        assert weights == bits(tmp_path / "together" / name), name
        heads.append(weights["heads.motion.weight"])
    assert len(set(heads)) == len(arms)  # they did learn, each in its own way


def test_the_tool_trains_the_arms_of_the_recipe(tiny_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, TOOLS / "sweep.py", tiny_path, f"out={tmp_path / 'out'}", "train.steps=2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    for name in ("full", "last", "gated"):
        assert f"{name}: frozen depth" in done.stdout
        assert (tmp_path / "out" / name / "config.json").is_file()
    assert "alpha" in done.stdout and "trunk" in done.stdout and "training: 2/2" in done.stderr

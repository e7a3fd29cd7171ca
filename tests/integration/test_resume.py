"""A run that is killed and run again ends as one that was not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

TOOLS = Path(__file__).parents[2] / "tools"
KILLED = Path(__file__).with_name("killed.py")


def bits(run: Path, *arms: str) -> dict[str, bytes]:
    files = [(arm, load_file(file)) for arm in arms for file in sorted((run / arm).rglob("*.safetensors"))]
    return {f"{arm}/{name}": tensor.numpy().tobytes() for arm, file in files for name, tensor in file.items()}


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def killed(out: Path, kills: int, ranks: int, *tool: object) -> dict:
    command = [sys.executable, KILLED, out, f"--kills={kills}", f"--ranks={ranks}", *tool, f"out={out}"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=280)
    log = out.with_suffix(".log")
    assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")
    return json.loads(done.stdout)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 2)])
def test_a_run_killed_twenty_times_ends_with_the_same_bytes(
    tiny_path: Path, tmp_path: Path, ranks: int, stage: int
) -> None:
    tool = [TOOLS / "sweep.py", tiny_path, "train.steps=80", "train.save_every=2", f"train.zero_stage={stage}"]
    whole = killed(tmp_path / "whole", 0, ranks, *tool)
    cut = killed(tmp_path / "cut", 20, ranks, *tool)
    assert whole == {"codes": [0] * ranks, "resumed": []} and cut["codes"] == [0] * ranks
    assert len(cut["resumed"]) >= 10 and len(set(cut["resumed"])) >= 8, cut
    for run in (tmp_path / "whole", tmp_path / "cut"):
        assert steps(run) == list(range(80))
        assert {path.name for path in run.iterdir()} == {
            "recipe.yaml", "metrics.jsonl", "tensorboard", "full", "last", "gated",
        }  # fmt: skip
    arms = ("full", "last", "gated")
    assert bits(tmp_path / "cut", *arms) == bits(tmp_path / "whole", *arms)
    assert len(bits(tmp_path / "cut", *arms)) > 50

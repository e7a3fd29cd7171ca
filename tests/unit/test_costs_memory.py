"""The memory that is planned against the peak of processes that really train."""

import os
import sys
from pathlib import Path

import pytest
from support.tools import Running

from scaleup.config import recipe
from scaleup.sweeps import costs
from scaleup.sweeps.memory import with_gaps

PEAK = Path(__file__).with_name("costs_peak.py")
PAPER = """
  tubes:
    a: {kernel: [8, 8, 8], stride: [16, 32, 32], fold: [2, 1, 1]}
    b: {kernel: [16, 4, 4], stride: [6, 32, 32], offset: [4, 8, 8], fold: [1, 2, 2]}
    c: {kernel: [4, 12, 12], stride: [16, 32, 32], offset: [0, 16, 16]}
"""
COMMON = ["data.batch=2", "train.kernels=library", "train.warmup=0", "arms={}"]


def peaks(freed: str, path: Path, *changes: str) -> tuple[int, int]:
    """Bytes of tensors, and bytes that a process grows by. What is ``freed`` is ``returned`` or ``kept``."""
    done = Running([str(PEAK), freed, str(path), *changes], environment=os.environ | {"OMP_NUM_THREADS": "1"}).wait()
    assert done.returncode == 0, done.stderr
    tensors, process = done.stdout.split()[-2:]
    return int(tensors), int(process)


@pytest.fixture
def paper(tiny_path: Path, tmp_path: Path) -> Path:
    """A recipe with the paper's main tubes on clips of 32x224x224."""
    text = tiny_path.read_text()
    kept = text[text.index("data:") :]
    model = "model:\n  input: {frames: 32, size: [224, 224]}\n  frames: {stride: 32}\n  positions: {kind: backbone}"
    (tmp_path / "paper.yaml").write_text(model + PAPER + kept)
    return tmp_path / "paper.yaml"


def compared(path: Path, *changes: str, freed: str = "returned") -> tuple[float, float]:
    """Planned bytes over those of tensors and of a process."""
    read = recipe.load(path, [*COMMON, *changes])
    planned = costs.memory(read, {"model": read.arm})
    tensors, process = peaks(freed, path, *COMMON, *changes)
    return planned["total"] / tensors, (with_gaps(planned) if freed == "kept" else planned["total"]) / process


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_tensors_peak_where_they_are_planned_to(paper: Path) -> None:
    """What libraries take beside tensors weighs much in a small model and differs with the processor."""
    small = ["model.backbone.name=vit_s", "model.backbone.kwargs={depth: 4}", "arm.frozen_depth=1"]
    tensors, _ = compared(paper, *small)
    assert tensors == pytest.approx(1, abs=0.02)


SMALL = ["model.backbone.name=vit_s"]
GATED = ["model.backbone.name=vit_b", "arm.frozen_depth=9", "arm.gate=true"]
LORA = ["model.backbone.name=vit_b", "arm.frozen_depth=6", "arm.adapt=lora"]  # a process that keeps memory: 1.4 times


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes, freed",
    [(SMALL, "returned"), (GATED, "returned"), (LORA, "returned"), (SMALL, "kept"), (GATED, "kept")],
)
def test_a_process_of_a_real_shape_peaks_where_it_is_planned_to(paper: Path, changes: list[str], freed: str) -> None:
    _, process = compared(paper, *changes, freed=freed)
    assert process == pytest.approx(1, abs=0.15)

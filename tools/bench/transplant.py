"""The whole transplant command compared with only building and saving the backbone, each in its own process."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.measure import Figures, alternate, compare, goal, machine, measured, medians, run_python
from bench.tokenizer import SIZE, UNFOLDED
from scaleup.backbones.backbone import resolve
from scaleup.backbones.build import build
from scaleup.config.schema import Backbone, Input, Model, Tube
from scaleup.model.build import fresh

TOOL = Path(__file__).parents[2] / "tools" / "transplant.py"
LIBRARIES = "import timm, torch"
BUILD_AND_SAVE = """
import sys, timm
from safetensors.torch import save_file
save_file(timm.create_model(sys.argv[1], num_classes=0).state_dict(), sys.argv[2])
"""


def small_model(out: Path, seed: int = 0) -> Path:
    """Write an untrained small model: ViT-Ti and the paper's main tubes at 32x224x224, 192 channels each."""
    tubes = {spec.name: Tube(list(spec.kernel), list(spec.stride), list(spec.offset)) for spec in UNFOLDED}
    model = Model(backbone=Backbone("vit_ti"), input=Input(SIZE[0], list(SIZE[1:])), tubes=tubes)
    return fresh(model, {}, seed).save_pretrained(out)


def transplant(backbone: str = "vit_h", repeats: int = 3) -> Figures:
    """Wall seconds and peak memory of both commands; also the peak divided by the bytes of the backbone's weights."""
    before, name = machine(), resolve(backbone)
    weights = sum(p.numel() * p.element_size() for p in build(name, {}, None, "meta").state_dict().values())
    libraries = run_python("-c", LIBRARIES).peak_bytes
    with tempfile.TemporaryDirectory() as directory:
        small, file, out = small_model(Path(directory) / "small"), f"{directory}/alone.safetensors", f"{directory}/out"
        usages = alternate(
            lambda: run_python(TOOL, small, backbone, "--random-init", "--overwrite", "--out", out),
            lambda: run_python("-c", BUILD_AND_SAVE, name.removeprefix("timm:"), file),
            repeats,
            warmup=0,
        )
    times = compare([(ours.seconds, other.seconds) for ours, other in usages])
    peak, other_peak = (medians(usage)["peak_bytes"] for usage in zip(*usages, strict=True))
    row = {
        "backbone": backbone,
        **times,
        "peak_bytes": peak,
        "other_peak_bytes": other_peak,
        "library_bytes": libraries,
        "weight_bytes": weights,
        "peak_over_weights": peak / weights,
        "other_peak_over_weights": other_peak / weights,
        "peak_over_weights_without_libraries": (peak - libraries) / weights,
    }
    goals = [
        goal("seconds over building and saving the backbone alone", times["ratio"], 1.5),
        goal("peak memory over the weights", peak / weights, 1.3),
        goal("peak memory without the libraries' own, over the weights", (peak - libraries) / weights, 1.3),
    ]
    return measured(before, [row], goals)

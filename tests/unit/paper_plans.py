"""What the recipes in recipes/paper read, in little, and what they cost by the plan, as the files' headers say.

``python tests/unit/paper_plans.py`` writes those lines anew, which takes ten minutes.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from scaleup.backbones.build import build
from scaleup.config import recipe, schema
from scaleup.config.compose import combinations
from scaleup.config.schema import Recipe
from scaleup.data.pack import write_shards
from scaleup.data.shards import Sample
from scaleup.model.tubevit import TubeViT
from scaleup.sweeps import costs
from scaleup.training.run_inputs import models_on_meta
from scaleup.transplants.adapted_model import adapted_config
from scaleup.transplants.donor import Kernel
from scaleup.transplants.transplant_plan import plan_channels

PAPER = Path(__file__).parents[2] / "recipes" / "paper"
FILES = sorted(PAPER.glob("*.yaml"))
DEVICES, GFLOPS = 32, 0.4 * 312_000  # A100s at 40 % of their rate for bfloat16
KINDS = {"tokens": int, "hours": float, "gib": float}
PLAN = re.compile(r"# plan (?P<row>.+): (?P<tokens>\S+) tokens, (?P<hours>\S+) A100 hours, (?P<gib>\S+) GiB")
CLASSES = {
    "data/k400-train": {"label": 400},
    "data/k600-train": {"label": 600},
    "data/k700-train": {"label": 700},
    "data/ssv2-train": {"label": 174},
    "data/charades-train": {"label": 157},
    "data/imagenet-train": {"label": 1000},
    "runs/paper/data/videos-train": {"shape": 8, "motion": 6, "place_motion": 8},
    "runs/paper/data/images-train": {"shape": 8, "position": 16, "size": 4},
}
LARGE = {"k600_B": ("vit_h", {}, 24, "table6"), "k600_Ti": ("vit_b", {"pos_embed": "none"}, 8, "table9")}
DESK_LARGE = {"embed_dim": 144, "depth": 6, "num_heads": 4, "patch_size": 8}


def stub(scale: str) -> None:
    """Put into the working directory what the recipes of a scale read: shards of one sample with the classes of the
    real ones, and the configuration of the adapted models."""
    for place, counts in CLASSES.items():
        modality, extension = ("image", "png") if "image" in place else ("video", "mp4")
        kinds = dict.fromkeys(counts, "several") if "charades" in place else {}
        sample = Sample("0", extension, b"", {label: [0] if kinds else 0 for label in counts})
        classes = {label: [f"c{number}" for number in range(count)] for label, count in counts.items()}
        write_shards([sample], place, modality, classes, kinds=kinds)
    for row, (large, kwargs, gate_at, table) in LARGE.items():
        if scale == "paper":
            adapt(["row=" + row], large, kwargs, gate_at, Path("runs/paper") / table / "adapted")
        else:
            adapt(["scale=desk"], "vit_b", DESK_LARGE, 4, Path("runs/paper") / table / "adapted")


def adapt(small: list[str], large: str, kwargs: Mapping[str, object], gate_at: int, out: Path) -> None:
    """Write the configuration that a transplant of the tubes of main.yaml, changed by ``small``, would write."""
    model = outline(recipe.load(PAPER / "main.yaml", small))
    size = (model.preprocess.frames, *model.preprocess.size)
    backbone = build(large, dict(kwargs), model.preprocess.size, "meta")
    tubes = [model.tokenizer.tubes[spec.name] for spec in model.tokenizer.tubes.specs]
    kernels = [Kernel(tube.spec, tube.kernel, tube.bias, ()) for tube in tubes]
    plans = [plan_channels(kernel, backbone.embed_dim, size, exact=False) for kernel in kernels]
    kind = "cosine" if "pos_embed" in kwargs else "backbone"
    moved = {plan.spec.name: plan.tube for plan in plans}
    config, arm = model.config, {"frozen_depth": gate_at, "gate": True}
    described = adapted_config(backbone, 0, config.input, config.frames, moved, schema.Positions(kind), **arm)
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(described.to_json()))


def rows(path: Path, scale: str) -> list[list[str]]:
    """The choices of variants that a file offers at a scale, as overrides."""
    chosen = (choice for choice in combinations(path) if choice["scale"] == scale)
    return [[f"{group}={name}" for group, name in sorted(choice.items())] for choice in chosen]


def arms(read: Recipe) -> dict[str, schema.Arm]:
    return recipe.sweep_arms(read) if read.arms else {"model": read.arm}


def outline(read: Recipe) -> TubeViT:
    return next(iter(models_on_meta(read, arms(read)).values()))


class Line(NamedTuple):
    """What a header says of a row, or of an arm of a sweep, at the paper's scale."""

    tokens: int  # of the larger input
    hours: float
    gib: float

    def text(self, row: str) -> str:
        hours, gib = (f"{float(f'{value:.3g}'):,g}" for value in (self.hours, self.gib))
        return f"# plan {row}: {self.tokens:,} tokens, {hours} A100 hours, {gib} GiB"


def label(choice: list[str], arm: str = "model") -> str:
    """How a header names a row: ``row=joint``, ``arm=fc``."""
    said = [each for each in choice if not each.startswith(("scale=", "only="))]
    return " ".join(said + ([] if arm == "model" else [f"arm={arm}"])) or "model"


def said(path: Path) -> dict[str, Line]:
    """The lines of a header."""
    found = filter(None, map(PLAN.fullmatch, path.read_text().splitlines()))
    return {each["row"]: Line(*(kind(each[key].replace(",", "")) for key, kind in KINDS.items())) for each in found}


def planned(path: Path) -> Iterator[tuple[str, Line]]:
    """The lines that a header should have, by the plan of each row, or of each arm alone."""
    for choice in rows(path, "paper"):
        read = recipe.load(path, [*choice, "train.kernels=lean"])  # auto depends on the machine that plans
        for name, arm in arms(read).items():
            plan = costs.plan(read, {name: arm}, DEVICES, available=80 * 2**30, gflops=GFLOPS)
            modality = "video" if "video" in plan.flops else "image"
            hours = DEVICES * plan.time.run / 3600
            yield label(choice, name), Line(getattr(plan.tokens, modality), hours, plan.memory["total"] / 2**30)


def write(path: Path) -> None:
    """Put the lines that a header should have in place of those it has, or after its last comment."""
    kept = [line for line in path.read_text().splitlines() if not PLAN.fullmatch(line)]
    end = next(number for number, line in enumerate(kept) if not line.startswith("#"))
    lines = [line.text(row) for row, line in planned(path)]
    path.write_text("\n".join([*kept[:end], *lines, *kept[end:]]) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        stub("paper")
        for file in FILES:
            write(file)

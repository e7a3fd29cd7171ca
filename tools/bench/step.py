"""A real optimisation step of an adapted model: trunk outside, arm in its engine, uint8 clips in."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.saving import savings
from bench.share import trunk_share
from bench.tokenizer import FOLDED, SIZE
from bench.turns import alternated, compared, goal, machine, timed
from scaleup.common.distributed import join
from scaleup.common.processes import peak_bytes
from scaleup.config.schema import Arm, Backbone, Input, Model, Positions, Recipe, Tube
from scaleup.model.build import fresh, set_kernels
from scaleup.model.tubevit import TubeViT
from scaleup.training.arm_trainer import ArmTrainer
from scaleup.training.run_inputs import sizes

CLASSES = {"motion": [str(number) for number in range(600)]}
GIB = 2**30


def step(
    backbone: str | None = None,
    frozen_depth: int | None = None,
    full: bool = False,
    batch: int = 2,
    repeats: int = 3,
    quick: bool = False,
) -> dict[str, Any]:
    """What freezing saves and the trunk's rate (:func:`ratios`), or a step of one ``backbone`` (:func:`alone`)."""
    if backbone is None:
        return ratios(batch, repeats, quick)
    return alone(backbone, frozen_depth, full, batch, repeats)


def ratios(batch: int, repeats: int, quick: bool) -> dict[str, Any]:
    """Steps of ViT-B with everything that :func:`savings` compares, and the trunks of ViT-B and ViT-H.

    Args:
        quick: one turn of one clip through small stand-ins, to see that the figures can be made.
    """
    before, names = machine(), {"vit_b": "vit_b", "vit_h": "vit_h"}
    if quick:
        names, batch, repeats = {"vit_b": "vit_ti", "vit_h": "vit_s"}, 1, 1
    recipe, clips = Recipe(), random_clips(batch)
    recipe.data.batch = batch
    found, rows = savings(adapted(names["vit_b"]), clips, recipe, repeats), []
    for backbone in names.values():
        template = adapted(backbone)
        rows.append({"backbone": backbone} | trunk_share(template, template.preprocess(clips), repeats))
    shares = {of: dict(zip(names, (row[of] for row in rows), strict=True)) for of in ("of_matmul", "of_mm")}
    saved, bounds = {name: found[name] for name in found if "_over_" in name}, found["bounds"]
    rows.insert(0, {"backbone": names["vit_b"], "kernels": found["kernels"], "seconds": found["seconds"]})
    return {
        "machine": before | {"threads": torch.get_num_threads()},
        **saved,
        "trunk_share_of_matmul": shares["of_matmul"],
        "trunk_share_of_mm": shares["of_mm"],
        "bounds": bounds,
        "rows": rows,
        "goals": [
            goal("shared over apart, five arms", saved["shared_over_apart"], 0.65),
            goal("shared over bound", saved["shared_over_bound"], 1.10),
            *(
                goal(f"trunk of {name}, share of the matrix rate", shares["of_matmul"][name], least, at_least=True)
                for name, least in (("vit_b", 0.80), ("vit_h", 0.90))
            ),
        ],
    }


def alone(backbone: str, frozen_depth: int | None, full: bool, batch: int, repeats: int) -> dict[str, Any]:
    """Seconds of a step and the peak memory of this process, weights drawn at random.

    Args:
        frozen_depth: None for three quarters of the blocks; gated.
        full: also take turns with full fine-tuning, and state the ratio beside its arithmetic bound: a block's forward
            counts 1 and its backward 2.
    """
    before, model = machine(), adapted(backbone)
    frozen = model.depth - model.depth // 4 if frozen_depth is None else frozen_depth
    late, late_step = trained(model, Arm(frozen, True, lr=1e-5), batch)
    whole_step = trained(model, Arm(0, False, lr=1e-5), batch)[1] if full else None
    depth = model.depth
    del model  # its own late blocks; the frozen ones are shared
    goals = []
    row: dict[str, Any] = {"backbone": backbone, "depth": depth, **sizes(late), "batch": batch}
    if whole_step is not None:
        row |= compared(alternated(timed(late_step), timed(whole_step), repeats))
        row |= {"bound": (frozen + 3 * (depth - frozen)) / (3 * depth), "peak_bytes": peak_bytes()}
    else:
        seconds = [timed(late_step)() for _ in range(repeats + 1)]
        row |= {"first_seconds": seconds[0], "seconds": median(seconds[1:]), "peak_bytes": peak_bytes()}
        goals = [goal("peak memory in GiB", row["peak_bytes"] / GIB, 14.0)]
    return {"machine": before | {"threads": torch.get_num_threads()}, "rows": [row], "goals": goals}


def adapted(backbone: str) -> TubeViT:
    """The model of :func:`described`, weights drawn at random."""
    return fresh(described(backbone), CLASSES, 0)


def described(backbone: str) -> Model:
    """A backbone with the paper's main tubes, folded, on clips of 32x224x224."""
    tubes = {s.name: Tube(list(s.kernel), list(s.stride), list(s.offset), list(s.fold)) for s in FOLDED}
    return Model(
        backbone=Backbone(backbone),
        input=Input(SIZE[0], list(SIZE[1:])),
        tubes=tubes,
        positions=Positions("backbone"),
    )


def trained(template: TubeViT, arm: Arm, batch: int) -> tuple[TubeViT, Callable[[], Any]]:
    """A model in training, and a function that takes one step of it on the same random clips."""
    world, recipe = join(), Recipe()
    model = template.with_arm(arm.frozen_depth, arm.gate, CLASSES).to(world.device)
    recipe.data.batch = batch
    set_kernels([model], recipe.train.kernels, world)
    trainer = ArmTrainer("model", model, arm, recipe, world)
    clips = random_clips(batch).to(world.device)
    labels = {"motion": torch.zeros(batch, dtype=torch.long, device=world.device)}
    return model, lambda: trainer.step(0, model.arm_inputs(model.preprocess(clips)), labels, None)


def random_clips(batch: int) -> Tensor:
    """uint8 (B, 3, T, H, W)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, *SIZE), dtype=torch.uint8, generator=generator)

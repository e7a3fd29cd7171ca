"""Real training steps of an adapted model on uint8 clips: the trunk, then the arm in its training engine."""

from __future__ import annotations

from statistics import median

from bench.measure import GIB, Figures, alternate, compare, goal, machine, measured, most_bytes, rotate, timed
from bench.ours import Training, adapted
from bench.saving import savings
from bench.share import trunk_share
from bench.sides import random_clips
from bench.tokenizer import SIZE
from scaleup.common.errors import UserError
from scaleup.config.schema import Arm, Recipe
from scaleup.training.run_inputs import sizes


def step(
    backbone: str | None = None,
    frozen_depth: int | None = None,
    full: bool = False,
    batch: int = 2,
    repeats: int = 3,
    quick: bool = False,
) -> Figures:
    """Without ``backbone``: what freezing saves, and the trunk's speed. With it: a step of this backbone."""
    if backbone is None and (full or frozen_depth is not None):
        raise UserError(f"--{'full' if full else 'frozen-depth'} is for one backbone; name it with --backbone")
    if backbone is not None and quick:
        raise UserError("--quick is for what is measured without --backbone; name a small one, such as vit_ti")
    if backbone is None:
        return compare_steps(batch, repeats, quick)
    return time_step(backbone, frozen_depth, full, batch, repeats)


def compare_steps(batch: int, repeats: int, quick: bool) -> Figures:
    """All steps of ViT-B that :func:`savings` compares, and the trunks of ViT-B and ViT-H.

    Args:
        quick: one round of one clip with smaller models: a test that the bench works.
    """
    before, names = machine(), {"vit_b": "vit_b", "vit_h": "vit_h"}
    if quick:
        names, batch, repeats = {"vit_b": "vit_ti", "vit_h": "vit_s"}, 1, 1
    recipe, template = Recipe(), adapted(names["vit_b"])
    recipe.data.batch = batch
    clips = random_clips(*SIZE, batch)
    saved = savings(template, clips, recipe, repeats)
    shares: dict[str, Figures] = {}
    for name, backbone in names.items():
        template = adapted(backbone)
        shares[name] = {"backbone": backbone} | trunk_share(template, template.preprocess(clips), repeats)
    first = {"backbone": names["vit_b"], "kernels": saved.pop("kernels"), "seconds": saved.pop("seconds")}
    goals = [
        goal("shared over apart, five arms", saved["shared_over_apart"], 0.65),
        goal("shared over bound", saved["shared_over_bound"], 1.10),
    ]
    for name, least in (("vit_b", 0.85), ("vit_h", 0.90)):
        share = shares[name]["of_matmul"]
        goals.append(goal(f"trunk of {name}, share of the matrix rate", share, least, at_least=True))
    return measured(
        before,
        [first, *shares.values()],
        goals,
        **saved,
        trunk_share_of_matmul={name: row["of_matmul"] for name, row in shares.items()},
        trunk_share_of_mm={name: row["of_mm"] for name, row in shares.items()},
    )


def time_step(backbone: str, frozen_depth: int | None, full: bool, batch: int, repeats: int) -> Figures:
    """Seconds of a step and the peak memory of this process, with random weights.

    Args:
        frozen_depth: number of frozen blocks below the gate; None for three quarters of them.
        full: compare with full fine-tuning, in turns. The result has the ratio of seconds and its bound, the ratio of
            operations, where a block costs 1 forward and 2 backward.
    """
    before, model = machine(), adapted(backbone)
    depth = model.depth
    frozen = depth - depth // 4 if frozen_depth is None else frozen_depth
    late = Training(model, [Arm(frozen, True, lr=1e-5)], batch)
    fully_trained = Training(model, [Arm(0, False, lr=1e-5)], batch) if full else None
    del model  # frees its late blocks; its frozen blocks are shared
    row: Figures = {"backbone": backbone, "depth": depth, **sizes(late.models[0]), "batch": batch}
    if fully_trained is not None:
        row |= compare(alternate(timed(late.step), timed(fully_trained.step), repeats))
        row |= {"bound": (frozen + 3 * (depth - frozen)) / (3 * depth), "peak_bytes": most_bytes()}
        return measured(before, [row])
    first, *seconds = (results["step"] for results in rotate({"step": timed(late.step)}, repeats + 1, warmup=0))
    row |= {"first_seconds": first, "seconds": median(seconds), "peak_bytes": most_bytes()}
    return measured(before, [row], [goal("peak memory in GiB", row["peak_bytes"] / GIB, 14.0)])

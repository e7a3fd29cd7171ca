"""What a training step costs against frames, frozen depth, arms, batch and ranks: seconds and peak memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from bench import plots
from bench.alone import Side, alone, launched, measured
from bench.ours import training
from bench.sides import TINY, VIT_B, Size
from bench.turns import machine, rotated
from scaleup.common.timing import progress
from scaleup.config.schema import Arm


class Point(NamedTuple):
    """One training step: clips of ``frames``, ``frozen_quarters`` quarters of the blocks frozen (gated), so many arms
    alike, clips of a step over all ranks, and ranks, which share the machine's cores."""

    frames: int = 32
    frozen_quarters: int = 3
    arms: int = 1
    batch: int = 1
    ranks: int = 1


CURVES = {  # key -> what varies, as its axis is called, and the points
    "frames": ("frames of a clip", [Point(frames=frames) for frames in (8, 16, 32, 64, 128)]),
    "frozen_depth": ("frozen blocks", [Point(frozen_quarters=quarters) for quarters in range(5)]),
    "arms": ("arms over one trunk", [Point(arms=arms) for arms in (1, 2, 3, 4, 5)]),
    "batch": ("clips of a step", [Point(batch=batch) for batch in (1, 2, 4, 8)]),
    "ranks": ("ranks, two clips of a step over all", [Point(batch=2, ranks=ranks) for ranks in (1, 2)]),
}


def curves(quick: bool = False, steps: int = 2, repeats: int = 3, out: str = "runs/curves") -> dict[str, Any]:
    """A ViT-B with random weights, and one plot for each curve in ``out``.

    Args:
        quick: a tiny ViT, once, and the ends of each curve alone: to see that the figures can be had.
        steps: how many are timed in a process, after one that is not.
    """
    before, size = machine(), TINY if quick else VIT_B
    steps, repeats = (1, 1) if quick else (steps, repeats)
    lines = {curve: line[:: len(line) - 1] if quick else line for curve, (_, line) in CURVES.items()}
    points = {f"{curve} {index}": (curve, point) for curve in lines for index, point in enumerate(lines[curve])}
    Path(out).mkdir(parents=True, exist_ok=True)
    with progress("measuring", repeats * len(points)) as advance:

        def measure(name: str) -> dict[str, Any]:
            found = cost(size, points[name][1], steps)
            advance(1, name)
            return found

        turns = rotated({name: partial(measure, name) for name in points}, repeats, warmup=0)
    rows = [row(size, *point, [turn[name] for turn in turns]) for name, point in points.items()]
    for curve, (label, _) in CURVES.items():
        line = [each for each in rows if each["curve"] == curve]
        plots.curve(line, curve, label, Path(out) / f"{curve}.png")
    return {"machine": before | {"threads": torch.get_num_threads(), "quick": quick}, "rows": rows, "goals": []}


def cost(size: Size, point: Point, steps: int) -> dict[str, Any]:
    """Of one point, in fresh processes; of several ranks the slowest time and the largest memory."""
    if point.ranks == 1:
        return alone(measured, side, (size, point), steps)
    ranks = launched(point.ranks, measured, side, (size, point), steps)
    return {key: max(rank[key] for rank in ranks) for key in ("tokens", "train_gflop", "step_seconds", "peak_bytes")}


def side(size: Size, point: Point) -> Side:
    torch.set_num_threads(max(1, torch.get_num_threads() // point.ranks))
    arm = Arm(frozen_depth(size, point), point.frozen_quarters > 0, lr=1e-5)
    return training(size, [arm] * point.arms, point.frames, point.batch)._replace(infer=None)


def frozen_depth(size: Size, point: Point) -> int:
    return size.depth * point.frozen_quarters // 4


def row(size: Size, curve: str, point: Point, turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the turns."""
    found = {
        key: median(turn[key] for turn in turns) for key in ("tokens", "train_gflop", "step_seconds", "peak_bytes")
    }
    settings = point._asdict() | {"frozen_depth": frozen_depth(size, point)}
    return {"curve": curve, **settings, **found, "clips_per_second": point.batch / found["step_seconds"]}

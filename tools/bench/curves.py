"""How seconds and peak memory of a training step grow with frames, frozen depth, arms, batch and ranks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from bench import plots
from bench.measure import Figures, Side, cost, machine, measured, medians, rotate_processes, run_in_process, run_ranks
from bench.ours import Training, tubevit
from bench.sides import TINY, VIT_B, Size
from scaleup.common.distributed import device_type
from scaleup.config.schema import Arm

COSTS = ("tokens", "train_gflop", "step_seconds", "peak_bytes")


class Point(NamedTuple):
    """One training step.

    Args:
        frames: of a clip.
        frozen_quarters: how many quarters of the blocks are frozen, below a gate.
        arms: how many equal arms share the trunk.
        batch: clips of a step, over all ranks.
        ranks: processes, which share the machine's cores.
    """

    frames: int = 32
    frozen_quarters: int = 3
    arms: int = 1
    batch: int = 1
    ranks: int = 1


CURVES = {  # field of Point that varies -> the title of its axis, and the points
    "frames": ("frames of a clip", [Point(frames=frames) for frames in (8, 16, 32, 64, 128)]),
    "frozen_depth": ("frozen blocks", [Point(frozen_quarters=quarters) for quarters in range(5)]),
    "arms": ("arms over one trunk", [Point(arms=arms) for arms in (1, 2, 3, 4, 5)]),
    "batch": ("clips of a step", [Point(batch=batch) for batch in (1, 2, 4, 8)]),
    "ranks": ("ranks, two clips of a step over all", [Point(batch=2, ranks=ranks) for ranks in (1, 2)]),
}


def curves(quick: bool = False, steps: int = 2, repeats: int = 3, out: str = "runs/curves") -> Figures:
    """A ViT-B with random weights, and one plot for each curve in ``out``.

    Args:
        quick: a tiny ViT, measured once, and only the ends of each curve: a test that the bench works.
        steps: number of timed steps in each process; one step runs before them.
    """
    before, size = machine(quick=quick), TINY if quick else VIT_B
    steps, repeats = (1, 1) if quick else (steps, repeats)
    lines = {curve: line[:: len(line) - 1] if quick else line for curve, (_, line) in CURVES.items()}
    if device_type() != "cpu":  # each rank needs a GPU of its own
        lines["ranks"] = [point for point in lines["ranks"] if point.ranks <= torch.accelerator.device_count()]
    points = {f"{curve} {index}": (curve, point) for curve in lines for index, point in enumerate(lines[curve])}
    Path(out).mkdir(parents=True, exist_ok=True)
    functions = {name: partial(_cost, size, point, steps) for name, (_, point) in points.items()}
    rounds = rotate_processes(functions, repeats)
    rows = []
    for name, (curve, point) in points.items():
        costs = medians([results[name] for results in rounds])
        settings = point._asdict() | {"frozen_depth": frozen_depth(size, point)}
        rows.append({"curve": curve, **settings, **costs, "clips_per_second": point.batch / costs["step_seconds"]})
    for curve, (label, _) in CURVES.items():
        plots.draw_curve([row for row in rows if row["curve"] == curve], curve, label, Path(out) / f"{curve}.png")
    return measured(before, rows)


def _cost(size: Size, point: Point, steps: int) -> Figures:
    """The cost of one point, in new processes; of several ranks, the longest time and the largest memory."""
    if point.ranks == 1:
        ranks = [run_in_process(cost, side, (size, point), steps)]
    else:
        ranks = run_ranks(point.ranks, cost, side, (size, point), steps)
    return {key: max(rank[key] for rank in ranks) for key in COSTS}


def side(size: Size, point: Point) -> Side:
    torch.set_num_threads(max(1, torch.get_num_threads() // point.ranks))
    arm = Arm(frozen_depth(size, point), point.frozen_quarters > 0, lr=1e-5)
    return Training(tubevit(size, point.frames), [arm] * point.arms, point.batch).side()._replace(infer=None)


def frozen_depth(size: Size, point: Point) -> int:
    return size.depth * point.frozen_quarters // 4

"""TubeViT beside what people use in its place: a training step and inference of one clip, each in its own process."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench import peers_page, plots
from bench.measure import Figures, Side, alone, cost, goal, in_processes, machine, measured, medians
from bench.ours import Training, tubevit
from bench.sides import FRAMES, PEERS, TINY, VIT_B, Size
from scaleup.config.schema import Arm
from scaleup.errors import UserError

MODELING = tuple(
    f"transformers.models.{name}.modeling_{name}" for name in ("videomae", "timesformer", "vivit", "vjepa2")
)
LIVE, CACHED, FULL = "TubeViT, 9 of 12 frozen, gated", "TubeViT, the same, token cache", "TubeViT, full fine-tuning"
GOALS = (  # the fastest peer's over that of one of ours, and how many times it should be
    ("the fastest peer's seconds of a step over ours, live", (LIVE, "step_seconds"), 6),
    ("the fastest peer's seconds of a step over ours, from the cache", (CACHED, "step_seconds"), 12),
    ("the fastest peer's seconds of inference over ours", (LIVE, "infer_seconds"), 4),
)
LESS_IS_BETTER = ("tokens", "gflop", "train_gflop", "step_seconds", "infer_seconds", "peak_bytes")


def late(size: Size, **options: Any) -> Side:
    """Three quarters of the blocks are frozen."""
    return Training(tubevit(size, FRAMES), [Arm(size.depth - size.depth // 4, True, lr=1e-5)], **options).side()


def full(size: Size, **options: Any) -> Side:
    return Training(tubevit(size, FRAMES), [Arm(0, False, lr=1e-5)], **options).side()


OURS: dict[str, Callable[..., Side]] = {LIVE: late, CACHED: partial(late, cached=True), FULL: full}
LIBRARY = {f"{name}, library's kernels": partial(side, kernels="library") for name, side in OURS.items()}


def peers(
    quick: bool = False, steps: int = 2, repeats: int = 3, docs: str | None = None, plot: str | None = None
) -> Figures:
    """All models in turn, each time in a fresh process: median seconds, peak memory, GFLOPs, tokens.

    Args:
        quick: models of the same classes, but tiny, once: to see that the figures can be had.
        steps: how many of each are timed in a process, after one that is not.
        docs, plot: a page whose table, and an image whose plot, are written anew.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError("the peers need transformers, which is not installed: pip install 'scaleup[bench]'")
    if docs is not None:
        peers_page.parts(docs)  # better now than after the measuring
    before, size, sides = machine(quick=quick), TINY if quick else VIT_B, OURS | LIBRARY | PEERS
    steps, repeats = (1, 1) if quick else (steps, repeats)
    costs = {name: partial(alone, cost, side, (size,), steps, modules=MODELING) for name, side in sides.items()}
    turns = in_processes(costs, repeats)
    rows = [row(name, [turn[name] for turn in turns]) for name in sides]
    goals = [goal(what, under_fastest(turns, *of), least, at_least=True) for what, of, least in GOALS]
    result = measured(before, rows, goals, losses=list(losses(rows)))
    if docs is not None:
        peers_page.rewrite(docs, result)
    if plot is not None:
        plots.bars(rows, Path(plot))
    return result


def row(name: str, turns: list[Figures]) -> Figures:
    """Medians over the turns; None of what a side does not do."""
    costs = medians(turns)
    return {"name": name, "ours": name not in PEERS, **costs, "clips_per_second": 1 / costs["step_seconds"]}


def under_fastest(turns: list[Figures], ours: str, column: str) -> float:
    """The median over the turns of the least of the peers' over ours."""
    return median(min(turn[name][column] for name in PEERS) / turn[ours][column] for turn in turns)


def losses(rows: list[Figures]) -> Iterator[Figures]:
    """Wherever a peer has less of something than a row of ours, and why."""
    for ours in (each for each in rows if each["ours"]):
        for peer in (each for each in rows if not each["ours"]):
            for column in (each for each in LESS_IS_BETTER if ours[each] is not None and peer[each] < ours[each]):
                figures = {"measured": ours[column], "peers": peer[column], "cause": cause(ours, peer, column)}
                yield {"name": ours["name"], "peer": peer["name"], "column": column, **figures}


def cause(ours: Figures, peer: Figures, column: str) -> str:
    """What of the two rows explains that ours needs more."""
    own, others = (f"{row['trained_parameters'] / 1e6:.1f} M" for row in (ours, peer))
    if column == "peak_bytes" and ours["trained_parameters"] > peer["trained_parameters"]:
        return f"{own} parameters train, each with a gradient and two moments, against {others}"
    if column == "peak_bytes":
        return "the training engine's own libraries, which the peers do without, outweigh the smaller activations"
    work = "gflop" if column == "infer_seconds" else "train_gflop"
    if column.endswith("seconds") and (ours[work] or 0) <= peer[work]:
        return "it computes less, in smaller products, beside which the rest of a step weighs more"
    return (
        f"{ours['tokens']} tokens of {ours['frames']} frames against {peer['tokens']} of {peer['frames']}; {own} train"
    )

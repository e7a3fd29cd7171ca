"""TubeViT compared with other models: a training step and inference of one clip, each model in its own process."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench import peers_page, plots
from bench.busy import busy_processes
from bench.measure import Figures, Side, cost, goal, machine, measured, medians, rotate_processes, run_in_process
from bench.ours import Training, tubevit
from bench.sides import FRAMES, PEERS, TINY, VIT_B, Size
from scaleup.common.distributed import own_device
from scaleup.common.errors import UserError
from scaleup.common.text import around_marks
from scaleup.config.recipe import default_precision
from scaleup.config.schema import Arm

MODELING = tuple(
    f"transformers.models.{name}.modeling_{name}" for name in ("videomae", "timesformer", "vivit", "vjepa2")
)
LIVE, CACHED, FULL = "TubeViT, 9 of 12 frozen, gated", "TubeViT, the same, token cache", "TubeViT, full fine-tuning"
RATIOS = {  # name -> one of our models, column
    "the fastest peer's seconds of a step over ours, live": (LIVE, "step_seconds"),
    "the fastest peer's seconds of a step over ours, from the cache": (CACHED, "step_seconds"),
    "the fastest peer's seconds of inference over ours": (LIVE, "infer_seconds"),
}
GOALS = (9, 18, 6)  # at least, in the order of RATIOS
LESS_IS_BETTER = ("tokens", "gflop", "train_gflop", "step_seconds", "infer_seconds", "peak_bytes")


def late(size: Size, **options: Any) -> Side:
    """Three quarters of the blocks are frozen."""
    return Training(tubevit(size, FRAMES), [Arm(size.depth - size.depth // 4, True, lr=1e-5)], **options).side()


def full(size: Size, **options: Any) -> Side:
    return Training(tubevit(size, FRAMES), [Arm(0, False, lr=1e-5)], **options).side()


OURS: dict[str, Callable[..., Side]] = {LIVE: late, CACHED: partial(late, cached=True), FULL: full}
LIBRARY = {f"{name}, library's kernels": partial(side, kernels="library") for name, side in OURS.items()}


def peers(
    quick: bool = False,
    steps: int = 2,
    repeats: int = 3,
    docs: str | None = None,
    plot: str | None = None,
    precision: str | None = None,
    others: int = 0,
) -> Figures:
    """Median seconds, peak memory, GFLOPs and tokens of all models. They run in turns, each time in a new process.

    Args:
        quick: tiny models of the same classes, measured once: a test that the bench works.
        steps: number of timed steps in each process; one step runs before them.
        docs: a page; its table is replaced.
        plot: an image file; it is replaced.
        precision: in which all models compute, float32 or bfloat16; None for the device's own.
        others: processes that keep the processors busy meanwhile.
    """
    precision = precision or default_precision(own_device().type)
    if importlib.util.find_spec("transformers") is None:
        raise UserError("the peers need transformers, which is not installed: pip install 'scaleup[bench]'")
    if docs is not None:
        around_marks(Path(docs), peers_page.BEGIN, peers_page.END)  # refuses a page before anything is measured
    before = machine(quick=quick, precision=precision, others=others)
    size, models = TINY if quick else VIT_B, OURS | LIBRARY | PEERS
    steps, repeats = (1, 1) if quick else (steps, repeats)
    costs = {
        name: partial(run_in_process, cost, partial(make, precision=precision), (size,), steps, modules=MODELING)
        for name, make in models.items()
    }
    with busy_processes(others):
        rounds = rotate_processes(costs, repeats)
    rows = [row(name, [results[name] for results in rounds]) for name in models]
    result = measured(before, rows, ratio_goals(rounds, GOALS), losses=list(losses(rows)))
    if docs is not None:
        peers_page.rewrite(docs, result)
    if plot is not None:
        plots.draw_bars(rows, Path(plot))
    return result


def row(name: str, costs_of_rounds: list[Figures]) -> Figures:
    """The medians over the rounds; None for what a model does not do."""
    costs = medians(costs_of_rounds)
    return {"name": name, "ours": name not in PEERS, **costs, "clips_per_second": 1 / costs["step_seconds"]}


def ratio_goals(rounds: list[Figures], least: Sequence[float]) -> list[Figures]:
    """The ratios RATIOS, of which each should be at least so large."""
    ratios = {name: ratio_to_fastest(rounds, *column) for name, column in RATIOS.items()}
    return [goal(name, ratio, at, at_least=True) for (name, ratio), at in zip(ratios.items(), least, strict=True)]


def ratio_to_fastest(rounds: list[Figures], ours: str, column: str) -> float:
    """In each round, the lowest value of the peers divided by ours; the median over the rounds."""
    return median(min(costs[name][column] for name in PEERS) / costs[ours][column] for costs in rounds)


def losses(rows: list[Figures]) -> Iterator[Figures]:
    """Every column in which a peer needs less than one of our models, with the cause."""
    our_rows, peer_rows = [row for row in rows if row["ours"]], [row for row in rows if not row["ours"]]
    for row, peer in itertools.product(our_rows, peer_rows):
        for column in LESS_IS_BETTER:
            if row[column] is not None and peer[column] < row[column]:
                figures = {"measured": row[column], "peers": peer[column], "cause": cause(row, peer, column)}
                yield {"name": row["name"], "peer": peer["name"], "column": column, **figures}


def cause(row: Figures, peer: Figures, column: str) -> str:
    """Why our model (``row``) needs more than the peer."""
    trained, trained_by_peer = (f"{model['trained_parameters'] / 1e6:.1f} M" for model in (row, peer))
    if column == "peak_bytes" and row["trained_parameters"] > peer["trained_parameters"]:
        return f"{trained} parameters train, each with a gradient and two moments, against {trained_by_peer}"
    if column == "peak_bytes":
        return "the libraries of our training engine take more memory than the smaller activations save"
    work = "gflop" if column == "infer_seconds" else "train_gflop"
    if column.endswith("seconds") and (row[work] or 0) <= peer[work]:
        return "it computes less, but in smaller products, so the rest of a step takes a larger share"
    tokens = f"{row['tokens']} tokens of {row['frames']} frames against {peer['tokens']} of {peer['frames']}"
    return f"{tokens}; {trained} train"

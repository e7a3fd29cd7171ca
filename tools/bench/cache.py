"""Steps from a token cache against the arms alone, on taps that are ready: what reading costs beside computing."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from bench.measure import Figures, alternated, compared, goal, machine, measured, timed
from bench.ours import described
from bench.videos import videos_in
from scaleup.config.schema import Arm, Data, Dataset, Recipe, Train, Trunk
from scaleup.training.feed import WHOLE
from scaleup.training.run import Run
from scaleup.training.token_cache import make

PRECISIONS = ("bfloat16", "int8", "float32")
READ = 50  # batches over which reading alone is timed


def cache(
    backbone: str = "vit_b",
    frozen_depth: int = 9,
    directory: str | None = None,
    batch: int = 2,
    clips: int = 16,
    steps: int = 8,
    repeats: int = 5,
) -> Figures:
    """One gated arm, clips of 32x224x224, weights drawn at random; a cache in each precision, one view a clip.

    Args:
        directory: where videos are written, or used again; by default a temporary one.
        clips: how many are cached.
        steps: of a turn; many, so that batches which wait ready when it begins hardly count.
    """
    before = machine()
    with tempfile.TemporaryDirectory() as temporary:
        videos = videos_in(Path(directory or temporary) / "videos", clips)
        recipe = Recipe(
            model=described(backbone),
            data=Data({"videos": Dataset(str(videos.path), {"motion": "label"})}, batch=batch),
            train=Train(steps=10**6, warmup=0),
            arm=Arm(frozen_depth, gate=True, lr=1e-5),
        )
        rows = [_row(recipe, precision, Path(temporary) / precision, steps, repeats) for precision in PRECISIONS]
    goals = [goal(f"steps from a cache in {row['precision']}, over the arm's", row["ratio"], 1.10) for row in rows]
    return measured(before, rows, goals)


def _row(recipe: Recipe, precision: str, place: Path, steps: int, repeats: int) -> Figures:
    made = make(recipe, [recipe.arm.frozen_depth], place, precision=precision)
    training = Run(replace(recipe, trunk=Trunk(cache=str(place))), {"model": recipe.arm})
    feed, trainer = iter(training.feed), training.trainers["model"]
    ready = next(feed)
    taps = ready.inputs(WHOLE)[recipe.arm.frozen_depth]

    def cached() -> None:
        for _ in range(steps):
            training.step(0, next(feed))

    def alone() -> None:
        for _ in range(steps):
            trainer.step(0, taps, ready.labels, None)

    def read() -> None:
        for _ in range(READ):
            next(feed).inputs(WHOLE)

    row = compared(alternated(timed(cached), timed(alone), repeats, what=precision))
    clips, batch = made.datasets["videos"].samples, recipe.data.batch
    return {
        "precision": precision,
        "ratio": row["ratio"],
        "step_seconds": row["seconds"] / steps,
        "arm_seconds": row["other_seconds"] / steps,
        "read_seconds": timed(read)() / READ,
        "batch": batch,
        "record_bytes": made.datasets["videos"].record_bytes,
        "drift": max(made.drift.values()),
        "written_clips_per_second": clips / made.seconds,
    }

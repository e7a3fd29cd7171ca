"""Training steps from a token cache, compared with steps of the arm on tokens that are in memory: the cost of
reading."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from bench.measure import Figures, alternate, compare, goal, machine, measured, timed
from bench.ours import described
from bench.videos import videos_in
from scaleup.config.schema import Arm, Data, Dataset, Recipe, Train, Trunk
from scaleup.training.feed import WHOLE
from scaleup.training.run import Run
from scaleup.training.token_cache import make

PRECISIONS = ("bfloat16", "int8", "float32")
READ = 50  # batches that are read without training, to time the reading


def cache(
    backbone: str = "vit_b",
    frozen_depth: int = 9,
    directory: str | None = None,
    batch: int = 2,
    clips: int = 16,
    steps: int = 8,
    repeats: int = 5,
) -> Figures:
    """One gated arm, clips of 32x224x224, random weights; a cache in each precision, one view of each clip.

    Args:
        directory: videos are written here, or used again; by default a temporary directory.
        clips: number of cached clips.
        steps: training steps that are timed together; many, because the first batches are ready before.
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
    cache = make(recipe, [recipe.arm.frozen_depth], place, precision=precision)
    training = Run(replace(recipe, trunk=Trunk(cache=str(place))), {"model": recipe.arm})
    feed, trainer = iter(training.feed), training.trainers["model"]
    ready = next(feed)
    inputs = ready.inputs(WHOLE)[recipe.arm.frozen_depth]

    def train_from_cache() -> None:
        for _ in range(steps):
            training.step(0, next(feed))

    def train_from_memory() -> None:
        for _ in range(steps):
            trainer.step(0, inputs, ready.labels, None)

    def read() -> None:
        for _ in range(READ):
            next(feed).inputs(WHOLE)

    row = compare(alternate(timed(train_from_cache), timed(train_from_memory), repeats, label=precision))
    clips, batch = cache.datasets["videos"].samples, recipe.data.batch
    return {
        "precision": precision,
        "ratio": row["ratio"],
        "step_seconds": row["seconds"] / steps,
        "arm_seconds": row["other_seconds"] / steps,
        "read_seconds": timed(read)() / READ,
        "batch": batch,
        "record_bytes": cache.datasets["videos"].record_bytes,
        "drift": max(cache.drift.values()),
        "written_clips_per_second": clips / cache.seconds,
    }

"""Training steps from a token cache, compared with the arm's steps on tokens that are in memory, and with its forward
and backward passes."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median

from bench.measure import Figures, compare, goal, machine, measured, rotate, timed
from bench.ours import described
from bench.saving import passes
from bench.videos import videos_in
from scaleup.config.recipe import all_arms
from scaleup.config.schema import Arm, Data, Dataset, Model, Recipe, Train, Trunk
from scaleup.data.shards import Shards
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
    heads: int = 0,
) -> Figures:
    """One gated arm, clips of 32x224x224, random weights; a cache in each precision, one view of each clip.

    Args:
        heads: in place of the gated arm, so many arms of one attentive head each, which train no block.
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
            arm=Arm(frozen_depth, gate=not heads, lr=1e-5),
            arms={f"head{number}": {"pool": "attentive", "lr": 1e-3} for number in range(heads)},
        )
        rows = [_row(recipe, precision, Path(temporary) / precision, steps, repeats) for precision in PRECISIONS]
    goals = [goal(f"steps from a cache in {row['precision']}, over the arm's", row["ratio"], 1.10) for row in rows]
    if heads:
        goals = [goal(f"{heads} heads from {row['precision']}, over their passes", row["bound"], 1.15) for row in rows]
    return measured(before, rows, goals)


def cached_steps(model: Model, shards: Shards, batch: int, workers: int, directory: Path, repeats: int) -> Figures:
    """The same for one gated arm above three quarters of the blocks, from a cache in bfloat16.

    Args:
        workers: processes that read the cache.
        directory: the cache is written here.
    """
    depth = model.backbone.kwargs["depth"]
    recipe = Recipe(
        model=model,
        data=Data({"videos": Dataset(str(shards.path), {"motion": "label"})}, batch=batch, workers=workers),
        train=Train(steps=10**6, warmup=0),
        arm=Arm(depth - depth // 4, gate=True, lr=1e-5),
    )
    return _row(recipe, "bfloat16", directory, 4, repeats)


def _row(recipe: Recipe, precision: str, place: Path, steps: int, repeats: int) -> Figures:
    cache = make(recipe, [recipe.arm.frozen_depth], place, precision=precision)
    training = Run(replace(recipe, trunk=Trunk(cache=str(place))), all_arms(recipe))
    feed, trainers = iter(training.feed), training.trainers.values()
    ready = next(feed)
    inputs = ready.inputs(WHOLE)[recipe.arm.frozen_depth]

    def train_from_cache() -> None:
        for _ in range(steps):
            training.step(0, next(feed))

    def train_from_memory() -> None:
        for _, trainer in product(range(steps), trainers):
            trainer.step(0, inputs, ready.labels, None)

    def pass_from_memory() -> None:
        for _, trainer in product(range(steps), trainers):
            passes(trainer, inputs, ready.labels)

    def read() -> None:
        for _ in range(READ):
            next(feed).inputs(WHOLE)

    works = {"ours": train_from_cache, "arm": train_from_memory, "passes": pass_from_memory}
    rounds = rotate({name: timed(work) for name, work in works.items()}, repeats, label=precision)
    row = compare([(seconds["ours"], seconds["arm"]) for seconds in rounds])
    clips, batch = cache.datasets["videos"].samples, recipe.data.batch
    return {
        "precision": precision,
        "ratio": row["ratio"],
        "bound": median(seconds["ours"] / seconds["passes"] for seconds in rounds),
        "step_seconds": row["seconds"] / steps,
        "arm_seconds": row["other_seconds"] / steps,
        "read_seconds": timed(read)() / READ,
        "batch": batch,
        "record_bytes": cache.datasets["videos"].record_bytes,
        "drift": max(cache.drift.values()),
        "written_clips_per_second": clips / cache.seconds,
    }

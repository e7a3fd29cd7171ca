"""Attentive probes: a pool with learned queries and a head for each label, trained on the tokens after the last block
of a frozen model.

This is how V-JEPA is probed (arXiv 2404.08471). What is trained is an arm, so it can be saved and used as any other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from scaleup.common.distributed import World, join
from scaleup.common.errors import UserError
from scaleup.config import recipe as recipes
from scaleup.config import schema
from scaleup.config.contradictions import contradictions
from scaleup.config.rules import check
from scaleup.config.schema import Recipe, Trunk
from scaleup.data.augment import parse_views
from scaleup.data.shards import Shards
from scaleup.evaluation.accuracy import Evaluation, evaluate, record
from scaleup.evaluation.depth_profile import choose_classes, choose_depths
from scaleup.model.build import load
from scaleup.training.arm_trainer import ArmResult
from scaleup.training.run import train as train_run
from scaleup.training.run_directory import StoppedRun

STEPS = schema.Train.steps
AS_FILMED = schema.Augment(crop_scale=[1, 1], crop_ratio=[1, 1], flip=False)  # a flip may change a label


@dataclass
class AttentiveProbe:
    """An attentive head behind all blocks of a frozen model, and its accuracy on the test split."""

    arm: ArmResult  # what was trained; its directory is None if it was not saved
    test: Evaluation
    seconds: float


def probe_attentive(
    model: str | Path,
    train: str | Path,
    test: str | Path,
    labels: Sequence[str] | None = None,
    depths: Sequence[int] | None = None,
    steps: int = STEPS,
    views: str = "1x1",
    batch: int = 16,
    workers: int = 1,
    trunk: Trunk | None = None,
    save: str | Path | None = None,
    overwrite: bool = False,
) -> AttentiveProbe | StoppedRun:
    """Train an attentive head on the tokens after the last block, and test it.

    Every step reads one clip of ``batch`` samples, cropped as little as their shape allows and not flipped. Only the
    first rank's disk is used, so on several hosts ``save`` must be on a disk that they share.

    Args:
        model: model directory or hub id. A head that it has for the same classes, with the same pool, is trained
            further.
        labels: labels to classify, a head for each; by default all of the training shards that are one class.
        depths: the model's own depth, which is also the default. Arms run all blocks, so no other can be saved.
        steps: training steps, at least 1.
        views: clips x crops of a test sample, whose probabilities are averaged.
        trunk: precision and placement of the blocks; None: on the device, in the precision that it has by default.
        save: directory of the run; its arm is ``save``/model. An interrupted run is resumed by the same call. None:
            nothing is kept.
        overwrite: replace the run in ``save``.

    Returns:
        A stopped run, if a signal ended it before its last step.

    Raises:
        UserError: a label, its classes or a depth do not fit; ``save`` exists and is not an unfinished run of the same
            settings; the model has an adapter or an open gate; or training fails (:func:`scaleup.training.run.train`).
    """
    began, world, trunk = time.perf_counter(), join(), trunk or Trunk()
    parse_views(views)
    heads = {label: label for label in choose_classes(Shards.open(train), Shards.open(test), labels)}
    recipe = Recipe(
        model=schema.Model(load=str(model)),
        data=schema.Data({"train": schema.Dataset(str(train), heads, augment=AS_FILMED)}, None, batch, workers),
        trunk=trunk,
        train=schema.Train(steps, warmup=steps // 10, log=[]),
    )
    _refuse_mistakes(recipe)
    recipe.arm = _arm(str(model), depths, trunk)
    with _directory(save, world) as recipe.out, world.together():
        run = world.first(train_run(recipe, None, overwrite))  # the first rank has written the model
        if isinstance(run, StoppedRun):
            return run
        arm = run.arms["model"]
        assert arm.directory is not None, "training raises an error if its only arm diverges"
        trained = load(arm.directory, placement=trunk.placement)
        trunk = replace(trunk, precision=run.trunk["precision"])  # what ``auto`` chose for training
        evaluation = evaluate({"model": trained}, test, views, heads, batch, workers, trunk)["model"]
        if world.rank == 0:
            record(Path(arm.directory), trained, evaluation, {"strides": {}, "precision": trunk.precision})
    arm = replace(arm, directory=arm.directory if save else None)
    return AttentiveProbe(arm, evaluation, time.perf_counter() - began)


def _refuse_mistakes(recipe: Recipe) -> None:
    content = recipes.resolved(recipe)
    if mistakes := [*check(Recipe, content)[1], *contradictions(recipe, content)]:
        raise UserError("; ".join(mistakes))


def _arm(source: str, depths: Sequence[int] | None, trunk: Trunk) -> schema.Arm:
    """The arm that reads all tokens after the last block."""
    model = load(source, placement=trunk.placement)
    if choose_depths(model, depths or [model.depth]) != [model.depth]:
        raise UserError(
            "an attentive head reads the last depth alone, because arms run all blocks; "
            f"allowed with --read attentive is --depths {model.depth}"
        )
    heads = math.gcd(schema.Arm.pool_heads, model.tokenizer.embed_dim)  # they must divide the width
    return schema.Arm(model.depth, pool="attentive", pool_heads=heads)


@contextmanager
def _directory(save: str | Path | None, world: World) -> Iterator[str]:
    """The directory of the run: ``save``, or one of the first rank that is removed afterwards."""
    if save is not None:
        yield str(save)
        return
    with TemporaryDirectory(prefix="probe-") as temporary:
        yield world.first(str(Path(temporary) / "run"))

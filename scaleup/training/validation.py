"""Accuracy of arms while they train, on a set of its own; all arms share a pass of the trunk."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict

from scaleup.common.distributed import World
from scaleup.common.errors import UserError
from scaleup.common.metrics import MEASURES, leading
from scaleup.config.schema import Recipe, Valid
from scaleup.data.batches import BadSamples, input_bytes
from scaleup.data.shards import Shards
from scaleup.data.storage import Failure
from scaleup.data.workers import refuse_small_shared
from scaleup.evaluation.accuracy import Evaluation, Once, matched, scores
from scaleup.model.tubevit import TubeViT
from scaleup.training.arm_trainer import ArmTrainer
from scaleup.training.log import Entry


class Validation:
    """The set ``data.valid``, seen as tools/evaluate.py sees it with one view: every sample exactly once, the arms in
    float32.

    Raises:
        UserError: it does not open, is empty, or does not fit the heads of ``models``.
    """

    def __init__(self, recipe: Recipe, valid: Valid, models: Collection[TubeViT], world: World) -> None:
        self.data, self.world, self.every = recipe.data, world, recipe.train.valid_every
        self.shards, model = Shards.open(valid.shards), next(iter(models))
        self.heads = matched(model, self.shards, valid.heads or None)
        self.input = model.config.input
        self.batch = recipe.data.batch // world.size // recipe.train.accumulate  # what memory holds in training
        if not len(self.shards):
            raise UserError(f"data.valid: {valid.shards!r} has no samples")
        size = self.batch * input_bytes(self.input, self.shards.modality)  # to be there beside what training needs
        refuse_small_shared(size, math.ceil(len(self.shards) / self.batch), self.data.workers)

    def __call__(self, arms: Mapping[str, ArmTrainer], steps: int) -> dict[str, Entry]:
        """Validate the arms whose turn it is after ``steps``: all at each ``valid_every``-th, one that ends at its end.

        Returns what :meth:`measured` says of them, and has told them. All ranks must call.
        """
        due = {name: arm for name, arm in arms.items() if steps % self.every == 0 or steps == arm.steps}
        with ExitStack() as stack:
            for arm in due.values():
                stack.enter_context(arm.engine.whole())
            results = self.measured({name: arm.model for name, arm in due.items()}) if due else {}
        for name, arm in due.items():
            arm.validated(results[name]["accuracy"], steps)
        if due and self.world.rank == 0:
            words = (f"{name} {_describe(results[name])} ({arm.standing})" for name, arm in due.items())
            print(f"accuracy after step {steps}: {', '.join(words)}", file=sys.stderr)
            for arm in due.values():
                if arm.standing.ended == "early":
                    print(arm.why_early, file=sys.stderr)
        return results

    def measured(self, models: Mapping[str, TubeViT]) -> dict[str, Entry]:
        """``{"accuracy", "samples", "heads": {head: {"top1", "top5", "loss"}}}`` of each of the models, for heads of
        another loss than softmax the fields of their scores. The accuracy is the mean over the heads of top-1, mAP or
        R2. All ranks must call, and get the same.

        Raises:
            UserError: more than ``data.max_bad`` of the samples cannot be read.
        """
        for model in models.values():
            model.eval()
        workers = self.data.workers
        once = Once("validating", self.shards, self.heads, self.input, "1x1", self.batch, workers, self.world)
        evaluations = scores(models, once)
        for model in models.values():
            model.train()
        return {name: self._entry(evaluation) for name, evaluation in evaluations.items()}

    def _entry(self, evaluation: Evaluation) -> Entry:
        bad = BadSamples("data.valid", len(self.shards), self.data.max_bad)
        bad.add(Failure(*pair) for pair in evaluation.failures)
        scores = evaluation.heads.items()
        accuracy = statistics.fmean(score.lead for _, score in scores)
        heads = {
            head: {key: value for key, value in asdict(score).items() if key != "chance"} for head, score in scores
        }
        return {"accuracy": accuracy, "samples": evaluation.samples, "heads": heads}


def _describe(entry: Entry) -> str:
    """The accuracy of an arm, and of each of its heads where it has several."""
    heads = ", ".join(f"{head} {_lead(score)}" for head, score in entry["heads"].items())
    return f"{entry['accuracy']:.2%}" + (f" = {heads}" if len(entry["heads"]) > 1 else "")


def _lead(score: Mapping[str, float]) -> str:
    """The measure of a head by which arms are compared; it is named where it is not top-1."""
    name = leading(score)
    return f"{MEASURES[name].title} " * (name != "top1") + MEASURES[name].words(score[name])

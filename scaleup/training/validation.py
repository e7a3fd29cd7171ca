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
from scaleup.common.metrics import MEASURES, leading, mean_of
from scaleup.config.schema import Recipe, Valid
from scaleup.data.batches import BadSamples, input_bytes
from scaleup.data.labels import SEVERAL, class_counts
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
        self.heads = matched(model, self.shards, valid.heads or None, "data.valid.heads={HEAD: LABEL}")
        self.input = model.config.input
        self.batch = recipe.data.batch // world.size // recipe.train.accumulate  # what memory holds in training
        if not len(self.shards):
            raise UserError(f"data.valid: {valid.shards!r} has no samples")
        for head, label in self.heads.items():
            self._refuse_no_class(head, label)
        size = self.batch * input_bytes(self.input, self.shards.modality)  # to be there beside what training needs
        refuse_small_shared(size, math.ceil(len(self.shards) / self.batch), self.data.workers)

    def _refuse_no_class(self, head: str, label: str) -> None:
        counted = self.shards.kind(label) == SEVERAL
        if counted and not class_counts(self.shards.labels[label], len(self.shards.classes[label])).any():
            raise UserError(
                f"data.valid: no sample of '{self.shards.path}' has a class of label {label!r}, so {head!r} has no "
                "mAP; name the heads to validate with data.valid.heads={HEAD: LABEL}"
            )

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
            arm.validated(results[name]["accuracy"], steps, leads(results[name]))
        if due and self.world.rank == 0:
            words = (f"{name} {_describe(results[name])} ({arm.standing})" for name, arm in due.items())
            measure = mean_of(leads(next(iter(results.values()))))
            print(f"{measure.title} after step {steps}: {', '.join(words)}", file=sys.stderr)
            for arm in due.values():
                if arm.standing.ended == "early":
                    print(arm.why_early, file=sys.stderr)
        return results

    def measured(self, models: Mapping[str, TubeViT]) -> dict[str, Entry]:
        """``{"accuracy", "samples", "heads": {head: {"top1", "top5", "loss"}}}`` of each of the models, for heads of
        another loss than softmax the fields of their scores. The accuracy is the mean over the heads of top-1, mAP or
        R2, without those that have none; None if none has. All ranks must call, and get the same.

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
        known = [score.lead for _, score in scores if not math.isnan(score.lead)]
        accuracy = statistics.fmean(known) if known else None
        heads = {
            head: {key: value for key, value in asdict(score).items() if key != "chance"} for head, score in scores
        }
        return {"accuracy": accuracy, "samples": evaluation.samples, "heads": heads}


def _describe(entry: Entry) -> str:
    """The measure of an arm, and that of each of its heads where it has several."""
    heads = ", ".join(f"{head} {_lead(score)}" for head, score in entry["heads"].items())
    mean = mean_of(leads(entry)).words(entry["accuracy"])
    return mean + (f" = {heads}" if len(entry["heads"]) > 1 else "")


def leads(entry: Entry) -> list[str]:
    """The measures of which the accuracy of a validation is the mean."""
    return sorted({leading(score) for score in entry["heads"].values()})


def _lead(score: Mapping[str, float | None]) -> str:
    """The measure of a head by which arms are compared; it is named where it is not top-1."""
    name = leading(score)
    return f"{MEASURES[name].title} " * (name != "top1") + MEASURES[name].words(score[name])

"""Accuracy over t x s views (Table 7f). Every sample counts exactly once, for any number of ranks and workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scaleup.checkpoint.model_directory import ADAPTER, ADAPTER_WEIGHTS, DELTA, FULL, HeadLoss, read_report
from scaleup.common import tensors
from scaleup.common.distributed import World, join
from scaleup.common.errors import UserError, nearest
from scaleup.common.files import write_json, write_text
from scaleup.common.timing import progress
from scaleup.config.schema import Input, Trunk
from scaleup.data.augment import count_views
from scaleup.data.batches import Batch
from scaleup.data.labels import LOSSES, refuse_loss
from scaleup.data.loader import Parts, check_heads, eval_loader, eval_share
from scaleup.data.shards import Shards
from scaleup.data.upload import Uploaded
from scaleup.evaluation.scores import ByClass, Score, tally
from scaleup.model.build import PreparedTrunk, prepare_trunks
from scaleup.model.full_device import explain_full
from scaleup.model.kernel_choice import set_kernels
from scaleup.model.kernels import set_products
from scaleup.model.tubevit import TubeViT, arm_inputs

MEASURED_ON = ("shards", "modality", "list_sha256", "views", "labels")  # fields that identify the data of an evaluation


@dataclass
class Coverage:
    """The samples of one pass over shards."""

    shards: str  # their name
    samples: int  # number of readable samples
    failures: list[tuple[str, str]]  # (key, reason) of unreadable samples
    list_sha256: str  # hash of the keys of all samples
    views: str  # temporal x spatial crops of each sample, such as 4x3


@dataclass
class Evaluation(Coverage):
    """The accuracy of a model on shards."""

    modality: str  # of the samples: image | video
    labels: dict[str, str]  # head -> label of the shards
    heads: dict[str, Score]
    classes: dict[str, ByClass]  # of the heads that name classes
    trunk: PreparedTrunk | None = None  # None where nothing is frozen


def evaluate(
    models: Mapping[str, TubeViT],
    shards: str | Path,
    views: str = "4x3",
    heads: Mapping[str, str] | None = None,
    batch: int = 16,
    workers: int = 1,
    trunk: Trunk | None = None,
) -> dict[str, Evaluation]:
    """The scores of each head of each model, probabilities averaged over the views: top-1, top-5 and cross entropy;
    mAP too of a head that names several classes; R2, MAE and RMSE of one that gives a number.

    Args:
        models: one model, or the arms of one sweep (:func:`scaleup.model.build.load_run`), which share a trunk
            pass. They stay on the device, in the precision and with the kernels of the evaluation.
        heads: head -> label of the shards; by default every head with the name and classes of a label.
        trunk: precision and placement of frozen blocks; None for the device's own precision
            (:func:`scaleup.config.recipe.default_precision`), on it.

    Raises:
        UserError: a head or label is unknown, a head has other classes than the label or cannot learn it with its
            loss, no sample can be read, or another rank no longer answers.
    """
    opened, first = Shards.open(shards), next(iter(models.values()))
    heads, world = matched(first, opened, heads, "--heads HEAD=LABEL"), join()
    set_products(world.device)
    seen = count_views(views, opened.modality)  # of each sample
    with world.together(), explain_full(models.values(), batch, seen, "--placement host"):
        for model in models.values():
            model.eval().arm.to(world.device)
        set_kernels(models.values(), "auto", world, batch * seen, trains=False)
        prepared = prepare_trunks(models.values(), trunk or Trunk(), world, batch * seen)
        once = Once("evaluating", opened, heads, first.config.input, views, batch, workers, world)
        evaluations = scores(models, once)
    return {name: replace(each, trunk=_trunk_of(models[name], prepared)) for name, each in evaluations.items()}


class Once:
    """One pass over shards in which every sample is seen once, whatever the number of ranks and workers.

    Args:
        title: title of the progress bar.
        heads, input, views, batch, workers: see :func:`scaleup.data.loader.eval_loader`.
    """

    def __init__(
        self,
        title: str,
        shards: Shards,
        heads: Mapping[str, str],
        input: Input,
        views: str,
        batch: int,
        workers: int,
        world: World,
    ) -> None:
        self.title, self.shards, self.heads, self.views, self.world = title, shards, dict(heads), views, world
        read = eval_loader(shards, heads, input, views, batch, workers, world.rank, world.size)
        self.batches = Uploaded(read, world.device, labels=False)
        self.parts = Parts([eval_share(len(shards), world.rank, world.size)], batch)
        self.read, self.passed = 0, 0  # samples
        self.failures: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this rank that have readable samples, with pixels on its device."""
        with progress(self.title, sum(map(len, self.parts.chunks))) as advance:
            for part, batch in zip(self.parts, self.batches, strict=True):
                failures = [(failure.source, failure.reason) for failure in batch.failures]
                passed = sorted([*batch.keys, *(key for key, _ in failures)])
                assert passed == sorted(self.shards.keys[number] for number in part), f"other samples than {part}"
                self.read, self.passed = self.read + len(batch.keys), self.passed + len(passed)
                self.failures += failures
                if batch.keys:
                    yield batch
                advance(len(passed))

    def summary(self) -> Coverage:
        """The samples of all ranks, which must all call this; UserError if no sample can be read."""
        counts = np.sum(self.world.gather((self.read, self.passed)), axis=0).tolist()
        assert counts[1] == len(self.shards), f"{counts[1]} samples seen of {len(self.shards)}"  # each exactly once
        failures = self.world.join_lists(self.failures)
        if not counts[0]:
            raise UserError(_why_none(str(self.shards.path), failures))
        return Coverage(self.shards.name, counts[0], failures, self.shards.list_sha256, self.views)


def _why_none(path: str, failures: list[tuple[str, str]]) -> str:
    if not failures:
        return f"'{path}' has no samples"
    key, reason = failures[0]
    return f"none of the {len(failures)} samples of '{path}' can be read, such as '{key}': {reason}"


def scores(models: Mapping[str, TubeViT], once: Once) -> dict[str, Evaluation]:
    """The accuracy of models, which must be placed and in eval mode, in a pass over shards. All ranks must call
    this."""
    names = {head: once.shards.classes[label] for head, label in once.heads.items()}
    tallies = {
        name: {head: tally(model.config.losses.get(head, HeadLoss()), len(each)) for head, each in names.items()}
        for name, model in models.items()
    }
    for batch in once:
        for name, logits in read_logits(models, once, batch.pixels).items():
            for head, each in logits.items():
                tallies[name][head].add(each, batch.labels[head])
    coverage, evaluations = once.summary(), {}
    on: dict[str, Any] = {"modality": once.shards.modality, "labels": once.heads}
    for name in models:
        pairs = {head: each.score(once.world, names[head]) for head, each in tallies[name].items()}
        heads = {head: score for head, (score, _) in pairs.items()}
        classes = {head: by_class for head, (_, by_class) in pairs.items() if by_class}
        evaluations[name] = Evaluation(**vars(coverage), **on, heads=heads, classes=classes)
    return evaluations


def _trunk_of(model: TubeViT, prepared: PreparedTrunk | None) -> PreparedTrunk | None:
    """The trunk's entries for one model."""
    if model.trunk is None or prepared is None:
        return None
    return replace(prepared, drift={n: moved for n, moved in prepared.drift.items() if n == model.frozen_depth})


def matched(model: TubeViT, shards: Shards, heads: Mapping[str, str] | None, setting: str) -> dict[str, str]:
    """Head -> label: ``heads`` if they fit, by default every head with the name and classes of a label.

    Args:
        setting: what says which heads; empty if nothing does.

    Raises:
        UserError: a head or label is unknown, a head has other classes than the label, or there is none.
    """
    own: dict[str, list[str]] = model.config.heads
    if heads is None:
        heads = {head: head for head, classes in own.items() if shards.classes.get(head) == classes}
        heads = {head: label for head, label in heads.items() if model.config.loss(head) in LOSSES[shards.kind(label)]}
        if not heads:
            raise UserError(
                f"no head of the model ({', '.join(own) or 'none'}) has the name and classes of a label of "
                f"{shards.path} ({', '.join(shards.classes)})" + (f"; say which with {setting}" if setting else "")
            )
    for head, label in heads.items():
        if head not in own:
            raise UserError(
                f"{setting}: there is no head {head!r}; this model has {', '.join(own)}{nearest(head, own)}"
            )
        check_heads(shards, {head: label})
        if shards.classes[label] != own[head]:
            raise UserError(f"head {head!r} has other classes than label {label!r} of {shards.path}")
        refuse_loss(head, model.config.loss(head), label, shards.kind(label), own[head], str(shards.path))
    return dict(heads)


@torch.no_grad()  # not inference mode: its cached tensors could not be used in training
def read_logits(models: Mapping[str, TubeViT], once: Once, pixels: Tensor) -> dict[str, dict[str, Tensor]]:
    """By model, the logits (B, V, C) of each head for a batch of ``once``. The host waits once for the device."""
    features = view_features(models, pixels)  # (B, V, D)
    logits = [models[name].arm.heads[head](each) for name, each in features.items() for head in once.heads]
    together = torch.cat(logits, dim=-1)
    once.batches.fetch()  # while a GPU computes
    parts = iter(together.cpu().split([each.shape[-1] for each in logits], dim=-1))
    return {name: {head: next(parts).contiguous() for head in once.heads} for name in features}


def view_features(models: Mapping[str, TubeViT], pixels: Tensor) -> dict[str, Tensor]:
    """uint8 views (B, V, 3, ...) -> pooled features (B, V, D) of each model, after one pass of the trunk they share."""
    deepest = max(models.values(), key=lambda model: model.frozen_depth)
    x = deepest.preprocess(pixels.flatten(0, 1).to(next(deepest.parameters()).device))
    inputs = arm_inputs(deepest.trunk, x, models.values())
    features = {name: model.arm.features(inputs[model.frozen_depth]) for name, model in models.items()}
    return {name: values.unflatten(0, pixels.shape[:2]) for name, values in features.items()}


def record(directory: Path, model: TubeViT, evaluation: Evaluation, how: Mapping[str, Any]) -> None:
    """Add an evaluation to ``report.json`` of a model directory, and to its card.

    It replaces an earlier evaluation on the same set with the same settings.

    Args:
        how: other settings that differ between evaluations: strides, the precision of frozen blocks.
    """
    report = read_report(directory)
    on = {key: getattr(evaluation, key) for key in MEASURED_ON} | dict(how)
    heads = {head: asdict(score) for head, score in evaluation.heads.items()}
    entry = {"on": on, "samples": evaluation.samples, "failures": len(evaluation.failures), "heads": heads}
    others = [other for other in report.get("evaluations", []) if other["on"] != on]
    model.report = report | {"evaluations": [*others, entry]}
    write_json(directory / "report.json", model.report)
    kind = "full" if (directory / FULL).exists() else "delta"
    files = [directory / (FULL if kind == "full" else DELTA), directory / ADAPTER / ADAPTER_WEIGHTS]
    mapped = [tensors.File(file).mapped for file in files if file.exists()]
    size = sum(tensor.numel() for file in mapped for tensor in file.values())
    write_text(directory / "README.md", model.card(kind, size))

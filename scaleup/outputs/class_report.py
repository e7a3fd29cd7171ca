"""Results by class: how well arms name each, the confusion of the best arm, and how each differs from the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from scaleup.checkpoint.model_directory import HeadLoss
from scaleup.common.distributed import join
from scaleup.common.errors import UserError
from scaleup.data.shards import Shards
from scaleup.evaluation.accuracy import Coverage, Once, matched, read_logits
from scaleup.evaluation.scores import ByClass, tally
from scaleup.model.tubevit import TubeViT
from scaleup.outputs import html, svg_plots

Counts = dict[str, dict[str, np.ndarray]]  # arm -> head -> (classes, classes): samples, row: is, column: predicted


class Classified(NamedTuple):
    """What one pass over shards says of the classes."""

    counts: Counts  # of the heads that name one class
    classes: dict[str, dict[str, ByClass]]  # arm -> head -> scores
    coverage: Coverage


@torch.inference_mode()
def confusions(models: Mapping[str, TubeViT], shards: str | Path, batch: int = 16) -> Classified:
    """The classes of every arm and head, and confusion matrices, one view a sample, every sample once.

    Raises:
        UserError: the shards do not open or do not fit the heads.
    """
    opened, first = Shards.open(shards), next(iter(models.values()))
    losses = {head: first.config.losses.get(head, HeadLoss()) for head in first.config.heads}
    heads = {head: label for head, label in matched(first, opened, None, "").items() if losses[head].kind in NAMING}
    samples = Once("confusion", opened, heads, first.config.input, "1x1", batch, 1, join())
    names = {head: opened.classes[label] for head, label in heads.items()}
    one = {head: len(each) for head, each in names.items() if losses[head].kind == "softmax"}
    counts = {name: {head: np.zeros((n, n), dtype=int) for head, n in one.items()} for name in models}
    tallies = {name: {head: tally(losses[head], len(each)) for head, each in names.items()} for name in models}
    for entry in samples:
        for name, logits in read_logits(models, samples, entry.pixels).items():
            for head, each in logits.items():  # (B, 1, C)
                labels = entry.labels[head]
                tallies[name][head].add(each, labels)
                if head in one:
                    np.add.at(counts[name][head], (labels.numpy(), each[:, 0].argmax(-1).numpy()), 1)
    scores = {
        name: {head: by_class for head, each in mine.items() if (by_class := each.score(join(), names[head])[1])}
        for name, mine in tallies.items()
    }
    return Classified(counts, scores, samples.summary())


def recall(counts: np.ndarray) -> np.ndarray:
    """Share of each class's samples that are predicted as it, %: (classes,)."""
    return 100 * counts.diagonal() / counts.sum(axis=1).clip(min=1)


def confused(counts: np.ndarray, classes: list[str]) -> list[str]:
    """The five commonest mistakes in words."""
    wrong = counts - np.diag(counts.diagonal())
    order = np.argsort(-wrong, axis=None)[:5]
    pairs = [np.unravel_index(index, wrong.shape) for index in order]
    return [f"{classes[a]} taken for {classes[b]} ({wrong[a, b]})" for a, b in pairs if wrong[a, b]]


NAMING = ("softmax", "sigmoid")  # losses of heads that name classes
SHOWN = 20  # classes, those that change most or are worst; the rest unfolds


def by_class(models: Mapping[str, dict[str, TubeViT]], shards: str | Path) -> Iterator[html.Block]:
    """The section on ``models`` (run -> arm -> model), after a pass over the shards for each run."""
    counts: dict[str, dict[str, np.ndarray]] = {}  # head -> arm -> (classes, classes)
    names: dict[str, list[str]] = {}
    scores: dict[str, dict[str, ByClass]] = {}  # head -> arm -> its classes
    for run, arms in models.items():
        try:
            matrices, classes, measured = confusions(arms, shards)
        except UserError as error:
            yield html.Text(f"{run}: none, {error}")
            continue
        counted = f"{measured.samples} samples, {len(measured.failures)} failures"
        yield html.Text(f"{run}: {counted}, {Path(shards).name}, one view, list {measured.list_sha256[:12]}")
        for arm, heads in classes.items():
            for head, by_class in heads.items():
                title = arm if len(models) == 1 else f"{run}/{arm}"
                if names.setdefault(head, arms[arm].config.heads[head]) == arms[arm].config.heads[head]:
                    scores.setdefault(head, {})[title] = by_class
                    if head in matrices[arm]:
                        counts.setdefault(head, {})[title] = matrices[arm][head]
    for head, each in scores.items():
        yield from _of_head(head, counts[head], names[head]) if head in counts else [html.Text(head, "h3")]
        yield from _worst_first(each)


def _worst_first(scores: dict[str, ByClass]) -> Iterator[html.Block]:
    """Samples of each class and its score in each arm, in the order of the first arm."""
    base, *others = scores.values()
    values = [{each.name: each.value for each in by_class.classes} for by_class in (base, *others)]
    rows: list[list[Any]] = [
        [each.name, each.samples, *(_percent(arm[each.name]) for arm in values)] for each in base.classes
    ]
    yield html.Text(f"{base.measure.capitalize()} of each class in %, the worst of {next(iter(scores))} first:")
    header = ["class", "samples", *scores]
    yield html.Table(header, rows[:SHOWN])
    if len(rows) > SHOWN:
        yield html.Folded(f"all {len(rows)} classes, the worst first", html.Table(header, rows))


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f}"


def _of_head(head: str, counts: dict[str, np.ndarray], classes: list[str]) -> Iterator[html.Block]:
    top1 = {arm: matrix.trace() / max(1, matrix.sum()) for arm, matrix in counts.items()}
    best, base = max(top1, key=lambda arm: top1[arm]), next(iter(counts))
    shown = 100 * counts[best] / counts[best].sum(axis=1, keepdims=True).clip(min=1)
    yield html.Text(head, "h3")
    yield html.Text("top-1 " + ", ".join(f"{arm} {100 * share:.2f} %" for arm, share in top1.items()))
    yield html.Figures({f"{head}, % of each row, of {best}": svg_plots.matrix(f"{head} {best}", shown, classes)})
    yield html.Text("Most often: " + ("; ".join(confused(counts[best], classes)) or "no mistakes"))
    if len(counts) > 1:
        yield html.Text(f"Recall of each class in %, and how it changes from {base}, in points, the largest first:")
        rows = _changes(counts, classes, base)
        header = ["class", base, *(arm for arm in counts if arm != base)]
        yield html.Table(header, rows[:SHOWN])
        if len(rows) > SHOWN:
            yield html.Folded(f"all {len(rows)} classes", html.Table(header, rows))


def _changes(counts: dict[str, np.ndarray], classes: list[str], base: str) -> list[list[Any]]:
    first = recall(counts[base])
    changes = np.stack([recall(matrix) - first for arm, matrix in counts.items() if arm != base])  # (arms, classes)
    order = np.argsort(-np.abs(changes).max(axis=0), kind="stable")
    return [[classes[i], f"{first[i]:.1f}", *map(html.Change, changes[:, i])] for i in order]

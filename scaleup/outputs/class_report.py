"""Results by class: the confusion of the best arm, and by how much each arm differs from the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scaleup.common.distributed import join
from scaleup.common.errors import UserError
from scaleup.data.shards import Shards
from scaleup.evaluation.accuracy import Coverage, Once, matched, view_features
from scaleup.model.tubevit import TubeViT
from scaleup.outputs import html, svg_plots

Counts = dict[str, dict[str, np.ndarray]]  # arm -> head -> (classes, classes): samples, row: is, column: predicted


@torch.inference_mode()
def confusions(models: Mapping[str, TubeViT], shards: str | Path, batch: int = 16) -> tuple[Counts, Coverage]:
    """The confusion matrix of every arm and head, one view a sample, every sample once; and what was seen.

    Raises:
        UserError: the shards do not open or do not fit the heads.
    """
    opened, first = Shards.open(shards), next(iter(models.values()))
    heads = {
        head: label for head, label in matched(first, opened, None).items() if first.config.loss(head) == "softmax"
    }
    samples = Once("confusion", opened, heads, first.config.input, "1x1", batch, 1, join())
    sizes = {head: len(opened.classes[label]) for head, label in heads.items()}
    counts = {name: {head: np.zeros((n, n), dtype=int) for head, n in sizes.items()} for name in models}
    for entry in samples:
        for name, features in view_features(models, entry.pixels).items():  # (B, 1, D)
            for head, labels in entry.labels.items():
                predicted = models[name].arm.heads[head](features[:, 0]).argmax(-1).cpu()
                np.add.at(counts[name][head], (labels.numpy(), predicted.numpy()), 1)
    return counts, samples.summary()


def recall(counts: np.ndarray) -> np.ndarray:
    """Share of each class's samples that are predicted as it, %: (classes,)."""
    return 100 * counts.diagonal() / counts.sum(axis=1).clip(min=1)


def confused(counts: np.ndarray, classes: list[str]) -> list[str]:
    """The five commonest mistakes in words."""
    wrong = counts - np.diag(counts.diagonal())
    order = np.argsort(-wrong, axis=None)[:5]
    pairs = [np.unravel_index(index, wrong.shape) for index in order]
    return [f"{classes[a]} taken for {classes[b]} ({wrong[a, b]})" for a, b in pairs if wrong[a, b]]


SHOWN = 20  # classes, those that change most; the rest unfolds


def by_class(models: Mapping[str, dict[str, TubeViT]], shards: str | Path) -> Iterator[html.Block]:
    """The section on ``models`` (run -> arm -> model), after a pass over the shards for each run."""
    counts: dict[str, dict[str, np.ndarray]] = {}  # head -> arm -> (classes, classes)
    names: dict[str, list[str]] = {}
    for run, arms in models.items():
        try:
            matrices, measured = confusions(arms, shards)
        except UserError as error:
            yield html.Text(f"{run}: none, {error}")
            continue
        counted = f"{measured.samples} samples, {len(measured.failures)} failures"
        yield html.Text(f"{run}: {counted}, {Path(shards).name}, one view, list {measured.list_sha256[:12]}")
        for arm, heads in matrices.items():
            for head, matrix in heads.items():
                names.setdefault(head, arms[arm].config.heads[head])
                if names[head] == arms[arm].config.heads[head]:
                    counts.setdefault(head, {})[arm if len(models) == 1 else f"{run}/{arm}"] = matrix
    for head, each in counts.items():
        yield from _of_head(head, each, names[head])


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

"""Which classes a run's arms take for which, and which ones one arm knows better than another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scaleup.common.distributed import join
from scaleup.config.schema import Input
from scaleup.data.shards import Shards
from scaleup.evaluate import Once, matched, view_features
from scaleup.model.tubevit import TubeViT

Counts = dict[str, dict[str, np.ndarray]]  # arm -> head -> (classes, classes): samples, row: is, column: predicted


@torch.inference_mode()
def confusions(models: Mapping[str, TubeViT], shards: str | Path, batch: int = 16) -> tuple[Counts, dict[str, Any]]:
    """The confusion matrix of every arm and head, one view a sample, every sample once; and what was seen.

    Raises:
        UserError: the shards do not open or do not fit the heads.
    """
    opened, first = Shards.open(shards), next(iter(models.values()))
    heads = matched(first, opened, None)
    seen = Once("confusion", opened, heads, Input(**first.config["input"]), "1x1", batch, 1, join())
    sizes = {head: len(opened.classes[label]) for head, label in heads.items()}
    counts = {name: {head: np.zeros((n, n), dtype=int) for head, n in sizes.items()} for name in models}
    for entry in seen:
        for name, features in view_features(models, entry.pixels).items():  # (B, 1, D)
            for head, labels in entry.labels.items():
                predicted = models[name].arm.heads[head](features[:, 0]).argmax(-1).cpu()
                np.add.at(counts[name][head], (labels.numpy(), predicted.numpy()), 1)
    return counts, seen.summary()


def recall(counts: np.ndarray) -> np.ndarray:
    """Share of each class's samples that are predicted as it, %: (classes,)."""
    return 100 * counts.diagonal() / counts.sum(axis=1).clip(min=1)


def confused(counts: np.ndarray, classes: list[str], most: int = 5) -> list[str]:
    """The commonest mistakes in words."""
    wrong = counts - np.diag(counts.diagonal())
    order = np.argsort(-wrong, axis=None)[:most]
    pairs = [np.unravel_index(index, wrong.shape) for index in order]
    return [f"{classes[a]} taken for {classes[b]} ({wrong[a, b]})" for a, b in pairs if wrong[a, b]]

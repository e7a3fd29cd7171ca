"""Accuracy over t x s views, every sample exactly once whatever the number of ranks and workers (Table 7f)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scaleup import cli
from scaleup.data.loader import Batch, eval_loader
from scaleup.data.shards import Shards
from scaleup.errors import UserError, nearest
from scaleup.model import TubeViT
from scaleup.recipe import Input


def evaluate(
    model: TubeViT,
    shards: str | Path,
    views: str = "4x3",
    heads: Mapping[str, str] | None = None,
    batch: int = 16,
    workers: int = 1,
) -> dict[str, Any]:
    """Top-1 and top-5 of each head, probabilities averaged over the views.

    Args:
        heads: head -> label of the shards; by default every head that has a label's name and classes.

    Returns:
        ``{"heads": {head: {"top1", "top5", "chance"}}, "samples", "failures", "list_sha256", "views"}``, shares of 1.

    Raises:
        UserError: a head or label is unknown, or a head has other classes than the label.
    """
    opened = Shards.open(shards)
    heads = _matched(model, opened, heads)
    rank, world = _ranks()
    model.eval()
    batches = eval_loader(opened, heads, Input(**model.config["input"]), views, batch, workers, rank, world)
    hits = {head: [0, 0] for head in heads}
    keys, failures = [], []
    total = len(range(rank, len(opened), world))
    for entry in _tracked(batches, total):
        failures += entry.failures
        keys += entry.keys
        if entry.keys:
            for head, counts in _hits(model, entry).items():
                hits[head] = [a + b for a, b in zip(hits[head], counts, strict=True)]
    hits, keys, failures = _gathered(hits, keys, failures)
    _refuse_miscount(opened, keys, failures)
    return {
        "heads": {head: _shares(counts, len(keys), len(model.config["heads"][head])) for head, counts in hits.items()},
        "samples": len(keys),
        "failures": failures,
        "list_sha256": opened.list_sha256,
        "views": views,
    }


def _matched(model: TubeViT, shards: Shards, heads: Mapping[str, str] | None) -> dict[str, str]:
    own: dict[str, list[str]] = model.config["heads"]
    if heads is None:
        heads = {head: head for head, classes in own.items() if shards.classes.get(head) == classes}
        if not heads:
            raise UserError(
                f"no head of the model ({', '.join(own) or 'none'}) has the name and classes of a label of "
                f"{shards.path} ({', '.join(shards.classes)}); say which with --heads HEAD=LABEL"
            )
    for head, label in heads.items():
        if head not in own:
            raise UserError(f"there is no head {head!r}; this model has {', '.join(own)}{nearest(head, own)}")
        if label in shards.classes and shards.classes[label] != own[head]:
            raise UserError(f"head {head!r} has other classes than label {label!r} of {shards.path}")
    return dict(heads)


def _ranks() -> tuple[int, int]:
    """Rank and number of processes; joins them where a launcher started several."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    return int(os.environ.get("RANK", "0")), world


def _tracked(batches: Iterator[Batch], total: int) -> Iterator[Batch]:
    with cli.progress("evaluating", total) as advance:
        for batch in batches:
            yield batch
            advance(len(batch.keys) + len(batch.failures))


@torch.inference_mode()
def _hits(model: TubeViT, batch: Batch) -> dict[str, tuple[int, int]]:
    """Samples of a batch whose class is first, and among the first five, by head."""
    features = view_features(model, batch.pixels)  # (B, V, D)
    hits = {}
    for head, labels in batch.labels.items():
        probabilities = model.arm.heads[head](features).softmax(-1).mean(1)  # (B, C)
        best = probabilities.topk(min(5, probabilities.shape[1])).indices == labels[:, None]
        hits[head] = (int(best[:, 0].sum()), int(best.sum()))
    return hits


def view_features(model: TubeViT, pixels: Tensor) -> Tensor:
    """uint8 views (B, V, 3, ...) -> pooled features (B, V, D)."""
    flat = model.preprocess(pixels.flatten(0, 1))
    return model.forward_features(flat).unflatten(0, pixels.shape[:2])


def _gathered(*parts: Any) -> tuple[Any, ...]:
    """Sums of hits and joined lists over all ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return parts
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, parts)
    hits = {head: [sum(each[0][head][k] for each in everyone) for k in (0, 1)] for head in parts[0]}
    return hits, [key for each in everyone for key in each[1]], [failure for each in everyone for failure in each[2]]


def _refuse_miscount(shards: Shards, keys: list[str], failures: list) -> None:
    """Every sample of the index was seen once: the promise is checked, not assumed."""
    seen = sorted(keys + [key for key, _ in failures])
    assert seen == sorted(shards.keys), f"{len(seen)} samples seen of {len(shards)}"


def _shares(counts: list[int], samples: int, classes: int) -> dict[str, float]:
    samples = max(samples, 1)
    return {"top1": counts[0] / samples, "top5": counts[1] / samples, "chance": 1 / classes}

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
from scaleup.recipe import Input, Trunk
from scaleup.training.engine import World
from scaleup.training.frozen import settle


def evaluate(
    models: Mapping[str, TubeViT],
    shards: str | Path,
    views: str = "4x3",
    heads: Mapping[str, str] | None = None,
    batch: int = 16,
    workers: int = 1,
    trunk: Trunk | None = None,
) -> dict[str, dict[str, Any]]:
    """Top-1 and top-5 of each head of each model, probabilities averaged over the views.

    Args:
        models: one model, or the arms of one sweep (:func:`scaleup.checkpoint.load_run`), which share a trunk pass.
        heads: head -> label of the shards; by default every head that has a label's name and classes.
        trunk: how frozen blocks are kept; None for float32 on the device.

    Returns:
        For each model ``{"heads": {head: {"top1", "top5", "chance"}}, "samples", "failures", "list_sha256", "views",
        "trunk"}``, shares of 1; for ``trunk`` see :func:`scaleup.training.frozen.settle`.

    Raises:
        UserError: a head or label is unknown, or a head has other classes than the label.
    """
    opened, first = Shards.open(shards), next(iter(models.values()))
    heads = _matched(first, opened, heads)
    rank, world, device = _ranks()
    for model in models.values():
        model.eval().arm.to(device)
    settled = settle(models.values(), trunk or Trunk(), World(rank, world, device))
    batches = eval_loader(opened, heads, Input(**first.config["input"]), views, batch, workers, rank, world)
    hits = {name: {head: [0, 0] for head in heads} for name in models}
    keys, failures = [], []
    for entry in _tracked(batches, len(range(rank, len(opened), world))):
        failures += entry.failures
        keys += entry.keys
        for name, head, counts in _hits(models, entry) if entry.keys else ():
            hits[name][head] = [a + b for a, b in zip(hits[name][head], counts, strict=True)]
    hits, keys, failures = _gathered(hits, keys, failures)
    _refuse_miscount(opened, keys, failures)
    common = {"samples": len(keys), "failures": failures, "list_sha256": opened.list_sha256, "views": views}
    return {
        name: {
            "heads": {h: _shares(c, len(keys), len(opened.classes[heads[h]])) for h, c in counts.items()},
            **common,
            "trunk": _kept(models[name], settled),
        }
        for name, counts in hits.items()
    }


def _kept(model: TubeViT, settled: dict[str, Any]) -> dict[str, Any]:
    """What of the trunk concerns a model."""
    drift = {depth: moved for depth, moved in settled.get("drift", {}).items() if depth == model.frozen_depth}
    return settled | {"drift": drift} if model.trunk is not None else {}


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


def _ranks() -> tuple[int, int, torch.device]:
    """Rank, number of processes and this one's device; joins them where a launcher started several."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if device.type != "cpu":
        device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
    return int(os.environ.get("RANK", "0")), world, device


def _tracked(batches: Iterator[Batch], total: int) -> Iterator[Batch]:
    with cli.progress("evaluating", total) as advance:
        for batch in batches:
            yield batch
            advance(len(batch.keys) + len(batch.failures))


@torch.inference_mode()
def _hits(models: Mapping[str, TubeViT], batch: Batch) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Samples of a batch whose class is first, and among the first five, by model and head."""
    for name, features in view_features(models, batch.pixels).items():  # (B, V, D)
        for head, labels in batch.labels.items():
            probabilities = models[name].arm.heads[head](features).softmax(-1).mean(1)  # (B, C)
            best = probabilities.topk(min(5, probabilities.shape[1])).indices.cpu() == labels[:, None]
            yield name, head, (int(best[:, 0].sum()), int(best.sum()))


def view_features(models: Mapping[str, TubeViT], pixels: Tensor) -> dict[str, Tensor]:
    """uint8 views (B, V, 3, ...) -> pooled features (B, V, D) of each model, after one pass of the trunk they share."""
    deepest = max(models.values(), key=lambda model: model.frozen_depth)
    x = deepest.preprocess(pixels.flatten(0, 1).to(next(deepest.parameters()).device))
    depths = {model.frozen_depth for model in models.values()} - {0}
    inputs = {0: x, **(deepest.trunk(x, depths) if deepest.trunk is not None else {})}
    features = {name: model.arm.features(inputs[model.frozen_depth]) for name, model in models.items()}
    return {name: values.unflatten(0, pixels.shape[:2]) for name, values in features.items()}


def _gathered(*parts: Any) -> tuple[Any, ...]:
    """Sums of hits and joined lists over all ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return parts
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, parts)
    hits, keys, failures = zip(*everyone, strict=True)
    summed = {
        name: {head: [sum(each[name][head][k] for each in hits) for k in (0, 1)] for head in heads}
        for name, heads in parts[0].items()
    }
    return summed, [key for each in keys for key in each], [failure for each in failures for failure in each]


def _refuse_miscount(shards: Shards, keys: list[str], failures: list) -> None:
    """Every sample of the index was seen once: the promise is checked, not assumed."""
    seen = sorted(keys + [key for key, _ in failures])
    assert seen == sorted(shards.keys), f"{len(seen)} samples seen of {len(shards)}"


def _shares(counts: list[int], samples: int, classes: int) -> dict[str, float]:
    samples = max(samples, 1)
    return {"top1": counts[0] / samples, "top5": counts[1] / samples, "chance": 1 / classes}

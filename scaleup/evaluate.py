"""Accuracy over t x s views, every sample exactly once whatever the number of ranks and workers (Table 7f)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from scaleup import cli
from scaleup.data.loader import Batch, Failure, eval_loader
from scaleup.data.shards import Shards
from scaleup.errors import UserError, nearest
from scaleup.model import TubeViT
from scaleup.recipe import Input, Trunk
from scaleup.training.engine import World
from scaleup.training.frozen import settle

T = TypeVar("T")


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
    heads, world = _matched(first, opened, heads), processes()
    for model in models.values():
        model.eval().arm.to(world.device)
    settled = settle(models.values(), trunk or Trunk(), world)
    seen = Once("evaluating", opened, heads, Input(**first.config["input"]), views, batch, workers, world)
    hits = {name: {head: [0, 0] for head in heads} for name in models}
    for entry in seen:
        for name, head, counts in _hits(models, entry):
            hits[name][head] = [a + b for a, b in zip(hits[name][head], counts, strict=True)]
    common, everyone = seen.summary(), gathered(hits)
    return {
        name: {
            "heads": {
                head: _shares([each[name][head] for each in everyone], common["samples"], len(opened.classes[label]))
                for head, label in heads.items()
            },
            **common,
            "trunk": _kept(models[name], settled),
        }
        for name in models
    }


class Once:
    """One pass over shards in which every sample is seen once, whatever the number of ranks and workers.

    Args:
        title: what the progress bar is called.
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
        self.title, self.shards, self.views = title, shards, views
        self.batches = eval_loader(shards, heads, input, views, batch, workers, world.rank, world.size)
        self.share = len(range(world.rank, len(shards), world.size))
        self.keys: list[str] = []
        self.failures: list[Failure] = []

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this rank that have samples."""
        with cli.progress(self.title, self.share) as advance:
            for batch in self.batches:
                self.keys += batch.keys
                self.failures += batch.failures
                if batch.keys:
                    yield batch
                advance(len(batch.keys) + len(batch.failures))

    def summary(self) -> dict[str, Any]:
        """``{"samples", "failures", "list_sha256", "views"}`` of all ranks; all of them must call."""
        everyone = gathered((self.keys, self.failures))
        keys, failures = [k for keys, _ in everyone for k in keys], [f for _, failed in everyone for f in failed]
        seen = sorted(keys + [key for key, _ in failures])  # the promise is checked, not assumed
        assert seen == sorted(self.shards.keys), f"{len(seen)} samples seen of {len(self.shards)}"
        found = {"samples": len(keys), "failures": failures}
        return found | {"list_sha256": self.shards.list_sha256, "views": self.views}


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


def processes() -> World:
    """This process among those that a launcher started, which it joins."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if device.type != "cpu":
        device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
    return World(int(os.environ.get("RANK", "0")), size, device)


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


def gathered(part: T) -> list[T]:
    """What each rank has, for all of them."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [part]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, part)
    return everyone


def _shares(counts: list[list[int]], samples: int, classes: int) -> dict[str, float]:
    """Counts of each rank -> shares of all samples."""
    top1, top5 = (sum(column) / max(samples, 1) for column in zip(*counts, strict=True))
    return {"top1": top1, "top5": top5, "chance": 1 / classes}

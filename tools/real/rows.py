"""What ``make real`` measured: a row for each model, with its cost and its accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from real.frames import FrameReader
from scaleup.model.tubevit import TubeViT
from scaleup.sweeps.trace import counter


@dataclass
class Row:
    """A model: how it was made, what it costs, and its top-1 on clips that it was not trained on."""

    name: str
    group: str  # small | transplanted | matched | random | frames
    trained_parameters: int
    step_gflop: float  # a training step, for one clip: frozen part, forward and backward pass of the rest
    clip_gflop: float  # inference of one clip
    cache_bytes: int | None  # of one clip, the frozen tokens that a step reads, in 16 bits; None: nothing is frozen
    seconds: float  # inference of one clip, median
    top1: dict[str, list[float]]  # head -> a share of 1 for each seed
    alpha: list[float] | None = None  # of the gate, for each seed

    def mean(self, head: str) -> float:
        return sum(self.top1[head]) / len(self.top1[head])


@dataclass
class Real:
    """The content of ``real.json``."""

    rows: list[Row]
    seeds: list[int]
    chance: dict[str, float]  # by head
    clips: dict[str, int]  # by set
    tubes: dict[str, Any]  # by name, what the transplant reported on it
    exact: dict[str, float]  # side in pixels -> max abs difference of an image's output to timm's own model
    precisions: dict[str, dict[str, float]]  # see real.exact.Moved
    features: dict[str, dict[str, float]]  # by precision or program, see real.image_features.Told
    seconds: dict[str, float]  # by stage
    machine: dict[str, Any]

    def named(self, group: str, name: str) -> Row:
        return next(row for row in self.rows if (row.group, row.name) == (group, name))


def row_of_model(name: str, group: str, model: TubeViT, top1: dict[str, float]) -> Row:
    """The row of a model that reads clips, with its cost measured on a clip without content."""
    clip = torch.zeros(1, 3, model.preprocess.frames, *model.preprocess.size)
    taps = 1 + len(model.config.pool.taps if model.config.pool else ()) + (model.config.gate is not False)
    cache = 2 * taps * model.count_tokens(model.preprocess.frames) * model.tokenizer.embed_dim
    alpha = None if model.arm.gate is None else [float(model.arm.gate.alpha.detach().mean())]
    trained = sum(parameter.numel() for parameter in model.arm.parameters() if parameter.requires_grad)
    cost = costs(lambda: model.forward_features(clip))
    return Row(name, group, trained, *cost[:2], cache if model.frozen_depth else None, cost[2], _lists(top1), alpha)


def row_of_frames(whole: TubeViT, reader: FrameReader, depth: int, top1: dict[str, float]) -> Row:
    """The row of a reading of single frames; ``whole`` has all blocks in its trunk."""
    count = reader.reading.frames
    pictures = torch.zeros(count, 3, *whole.preprocess.size)

    def features() -> Tensor:
        return reader.features(whole.trunk(pictures, [depth])[depth].h[None])  # type: ignore[misc]

    cache = 2 * count * whole.count_tokens(1) * whole.tokenizer.embed_dim
    trained = sum(parameter.numel() for parameter in reader.parameters() if parameter.requires_grad)
    cost = costs(features)
    return Row(reader.reading.name, "frames", trained, *cost[:2], cache, cost[2], _lists(top1))


def costs(features: Callable[[], Tensor]) -> tuple[float, float, float]:
    """GFLOP of a step and of inference, and median seconds of inference, of what makes features of one clip."""
    with counter() as step:
        features().sum().backward()
    with counter() as inference:  # without no_grad, which torch's counter does not survive where positions are learned
        features()
    seconds = []
    with torch.no_grad():
        for _ in range(5):
            began = time.perf_counter()
            features()
            seconds.append(time.perf_counter() - began)
    return step.get_total_flops() / 1e9, inference.get_total_flops() / 1e9, median(seconds)


def _lists(top1: dict[str, float]) -> dict[str, list[float]]:
    return {head: [share] for head, share in top1.items()}


def join_seeds(rows: Sequence[Row]) -> list[Row]:
    """One row for the rows of all seeds of a model, with the median seconds."""
    joined: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        joined.setdefault((row.group, row.name), []).append(row)
    return [_joined(same) for same in joined.values()]


def _joined(rows: list[Row]) -> Row:
    top1 = {head: [share for row in rows for share in row.top1[head]] for head in rows[0].top1}
    alpha = None if rows[0].alpha is None else [value for row in rows for value in row.alpha or ()]
    return replace(rows[0], seconds=median(row.seconds for row in rows), top1=top1, alpha=alpha)

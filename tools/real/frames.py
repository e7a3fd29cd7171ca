"""The obvious baseline: the same frozen image ViT sees frames one by one, and a small part reads what it says of them.

- ``mean``: the class tokens of the frames, averaged, and heads.
- ``attentive``: a position for each frame is added, then a learned query reads all tokens of all frames.
- ``joint``: a self-attention block over all tokens of all frames stands below such a query.
- ``late``: the last blocks train, on each frame, below such a query.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaleup.checkpoint.model_directory import Pool
from scaleup.common.timing import progress
from scaleup.config.schema import Arm, Recipe
from scaleup.data.loader import eval_loader
from scaleup.data.shards import Shards
from scaleup.model.arm import Arm as LateArm
from scaleup.model.arm import Heads
from scaleup.model.tubevit import TubeViT
from scaleup.training.arm_trainer import lr_factor

FRAMES, DENSE_FRAMES = 8, 16  # of a clip that are computed for most readings, and for dense ones
BATCH = 8  # clips of which the frames are computed at once


class Reading(NamedTuple):
    """How frames are read."""

    frames: int
    kind: str  # mean | attentive | joint | late
    times: int = 1  # as many steps as an arm

    @property
    def name(self) -> str:
        longer = f", {self.times} times the steps" if self.times > 1 else ""
        return f"{self.frames} frame{'s' * (self.frames > 1)}, {self.kind}{longer}"


CHEAP = [
    *(Reading(frames, kind) for kind in ("mean", "attentive") for frames in (1, 2, 4, 8)),
    Reading(8, "attentive", 4),
]
LATE = Reading(2, "late")
DENSE = [Reading(DENSE_FRAMES, kind) for kind in ("mean", "attentive")]  # their tokens take twice as long to compute
DEAR = [  # a step of them costs more than that of any arm
    *(Reading(frames, "late") for frames in (4, 8, DENSE_FRAMES)),
    Reading(4, "joint"),
]


@dataclass(frozen=True)
class FrameTokens:
    """The tokens of one set of clips, and their labels."""

    tokens: dict[int, np.ndarray]  # frozen depth -> (N, F, P, D) float16, on the disk
    labels: dict[str, np.ndarray]  # head -> (N,)

    @classmethod
    def read(cls, folder: Path, depths: Sequence[int]) -> FrameTokens:
        with np.load(folder / "labels.npz") as labels:
            tokens = {depth: np.load(folder / f"{depth}.npy", mmap_mode="r") for depth in depths}
            return cls(tokens, dict(labels))

    def batch(self, indices: np.ndarray, depth: int, frames: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Tokens (B, frames, P, D) of evenly spaced frames, and the labels."""
        tokens = self.tokens[depth][:, :: self.tokens[depth].shape[1] // frames][indices]
        return torch.from_numpy(tokens).float(), {head: torch.from_numpy(v[indices]) for head, v in self.labels.items()}


@torch.inference_mode()
def encode(
    model: TubeViT, shards: Path, heads: Mapping[str, str], depths: Sequence[int], out: Path, frames: int
) -> int:
    """Compute the tokens of evenly spaced frames of each clip with the frozen blocks of ``model``, frame by frame.

    Args:
        model: its trunk is deep enough for ``depths``.
        out: a directory; it appears when it is complete.

    Returns:
        The number of clips.
    """
    assert model.trunk is not None
    opened = Shards.open(shards)
    if not out.exists():
        partial = out.with_name(f".{out.name}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        shape = len(opened), frames, model.count_tokens(1), model.tokenizer.embed_dim
        files = {d: np.lib.format.open_memmap(partial / f"{d}.npy", "w+", np.float16, shape) for d in depths}
        labels, done = {head: np.empty(len(opened), np.int64) for head in heads}, 0
        with progress(f"frames of {shards.parent.name}/{shards.name}", len(opened)) as advance:
            for batch in eval_loader(opened, heads, model.config.input, batch=BATCH):
                rows = slice(done, done + len(batch.keys))
                every = batch.pixels.shape[3] // frames
                x = model.preprocess(batch.pixels[:, 0, :, ::every]).transpose(1, 2).flatten(0, 1)  # (B*F, 3, H, W)
                for depth, taps in model.trunk(x, depths).items():
                    files[depth][rows] = taps.h.unflatten(0, (-1, frames)).half().numpy()
                for head, values in batch.labels.items():
                    labels[head][rows] = values.numpy()
                done = rows.stop
                advance(len(batch.keys))
        np.savez(partial / "labels.npz", **labels)  # type: ignore[arg-type]
        partial.replace(out)
    return len(opened)


class FrameReader(nn.Module):
    """Late blocks, pool and heads over the tokens of single frames.

    Args:
        arm: of the adapted model, with the blocks that are left and the pool of the reading.
    """

    def __init__(self, arm: LateArm, reading: Reading) -> None:
        super().__init__()
        self.arm, self.reading = arm, reading
        width = None if arm.pool is None else arm.pool.queries.shape[1]
        self.positions = nn.Parameter(torch.zeros(reading.frames, 1, width)) if width else None

    @classmethod
    def of(cls, model: TubeViT, reading: Reading, arm: Arm, heads: Heads, seed: int) -> FrameReader:
        """The reader of a reading. Pool and heads begin as those of ``arm`` do; positions of frames begin as 0."""
        attentive = Pool("attentive", heads=arm.pool_heads, depth=2 if reading.kind == "joint" else 1)
        pool = None if reading.kind == "mean" else attentive
        return cls(model.with_arm(arm.frozen_depth, False, heads, seed, pool=pool).arm, reading)

    def features(self, tokens: Tensor) -> Tensor:
        """(B, F, P, D) -> (B, D)."""
        x = tokens.flatten(0, 1)
        for block in self.arm.blocks.values():
            x = block(x)
        if self.positions is None:
            return self.arm.tail(x).unflatten(0, tokens.shape[:2]).mean(1)
        x = x.unflatten(0, tokens.shape[:2]) + self.positions
        return self.arm.pool(x.flatten(1, 2), {})

    def loss(self, tokens: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        """The mean over the heads, as of an arm."""
        features = self.features(tokens)
        losses = [F.cross_entropy(self.arm.heads[head](features), each) for head, each in labels.items()]
        return torch.stack(losses).mean()


def order(sets: Mapping[str, FrameTokens], recipe: Recipe, steps: int) -> Iterator[tuple[str, np.ndarray]]:
    """For each step a dataset, drawn by the recipe's weights, and the numbers of its samples, without repetition in an
    epoch."""
    rng, size = np.random.default_rng(recipe.seed), recipe.data.batch
    weights = np.array([recipe.data.train[name].weight for name in sets], float)
    left = {name: np.empty(0, int) for name in sets}
    for _ in range(steps):
        name = list(sets)[rng.choice(len(sets), p=weights / weights.sum())]
        if len(left[name]) < size:
            left[name] = rng.permutation(len(next(iter(sets[name].labels.values()))))
        yield name, left[name][:size]
        left[name] = left[name][size:]


def train(reader: FrameReader, depth: int, sets: Mapping[str, FrameTokens], recipe: Recipe, arm: Arm) -> None:
    """Train a reader with the steps, batches, optimizer and rates of an arm."""
    parameters = [parameter for parameter in reader.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": arm.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    (beta1, beta2), steps, warmup = recipe.train.betas, reader.reading.times * recipe.train.steps, recipe.train.warmup
    optimizer = torch.optim.AdamW(groups, lr=arm.lr, betas=(beta1, beta2), fused=True)
    with progress(reader.reading.name, steps) as advance:
        for step, (name, indices) in enumerate(order(sets, recipe, steps)):
            for group in optimizer.param_groups:
                group["lr"] = arm.lr * lr_factor(step, steps, warmup)
            loss = reader.loss(*sets[name].batch(indices, depth, reader.reading.frames))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, arm.clip if arm.clip else math.inf)
            optimizer.step()
            advance(1, f"loss {loss.item():.2f}")


@torch.inference_mode()
def accuracy(reader: FrameReader, depth: int, test: FrameTokens, batch: int = 16) -> dict[str, float]:
    """Top-1 of each head that has labels."""
    count = len(next(iter(test.labels.values())))
    right = dict.fromkeys(test.labels, 0)
    for begin in range(0, count, batch):
        rows = np.arange(begin, min(begin + batch, count))
        tokens, labels = test.batch(rows, depth, reader.reading.frames)
        features = reader.features(tokens)
        for head, values in labels.items():
            right[head] += int((reader.arm.heads[head](features).argmax(1) == values).sum())
    return {head: number / count for head, number in right.items()}

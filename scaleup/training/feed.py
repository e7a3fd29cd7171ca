"""What the arms of a run are fed: batches from the loader, and what the trunk makes of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from torch import Tensor

from scaleup.data.loader import Batch, train_loader
from scaleup.model import TubeViT
from scaleup.recipe import Input, Recipe
from scaleup.training.engine import World
from scaleup.training.mix import Mix, draw_mix
from scaleup.trunk import Taps

Inputs = dict[int, Tensor | Taps]  # by frozen depth; where nothing is frozen, the pixels themselves


class Fed(NamedTuple):
    """This rank's part of the batch of one step: ``size`` samples of one dataset."""

    dataset: str
    size: int
    labels: dict[str, Tensor]  # head -> int64 (B,)
    mix: Mix | None
    inputs: Callable[[slice], Inputs]  # of some rows; computed when it is called


class Live:
    """Decoded pixels through one trunk, the deepest of ``models``, which serves them all; from step ``start`` on.

    ``depths`` are those that are read; they may become fewer on the way, and the trunk then goes no deeper than needed.
    """

    def __init__(self, recipe: Recipe, models: Collection[TubeViT], world: World, start: int) -> None:
        self.recipe, self.world, self.start = recipe, world, start
        deepest = max(models, key=lambda model: model.frozen_depth)
        self.preprocess, self.trunk = deepest.preprocess, deepest.trunk
        self.depths = sorted({model.frozen_depth for model in models} - {0})
        self.batches = train_loader(
            recipe.data,
            Input(**deepest.config["input"]),
            recipe.seed,
            recipe.train.steps,
            start=start,
            rank=world.rank,
            world=world.size,
        )

    def __iter__(self) -> Iterator[Fed]:
        for step, batch in enumerate(self.batches, self.start):
            yield self._fed(step, batch)

    def _fed(self, step: int, batch: Batch) -> Fed:
        device, size = self.world.device, len(batch.pixels)
        pixels = self.preprocess(batch.pixels.to(device))  # (B, 3, T, H, W) or (B, 3, H, W)
        labels = {head: each.to(device) for head, each in batch.labels.items()}
        mix = draw_mix(self.recipe.train, pixels.shape, self.recipe.seed, step)
        mixed = pixels if mix is None else mix.pixels(pixels)
        return Fed(batch.dataset, size, labels, mix, lambda rows: self._inputs(mixed[rows]))

    def _inputs(self, pixels: Tensor) -> Inputs:
        return {0: pixels} | (self.trunk(pixels, self.depths) if self.trunk is not None and self.depths else {})

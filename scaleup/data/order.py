"""What comes at step k: pure functions of the recipe and the step, so that any step can be resumed at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from math import ceil

import numpy as np


def dataset_at(weights: Mapping[str, float], step: int) -> tuple[str, int]:
    """The dataset that step ``step`` draws its whole batch from, and how many batches it gave before.

    After any number of steps each dataset has had its share of them within one batch for two datasets, and
    exactly where the share is a whole number. The first dataset is spread evenly, the next evenly over what is left.
    """
    (name, weight), *others = weights.items()
    if not others:
        return name, step
    share = Fraction(str(weight)) / sum(Fraction(str(other)) for other in weights.values())
    before, after = ceil(step * share), ceil((step + 1) * share)
    if after > before:
        return name, before
    return dataset_at(dict(others), step - before)


class Order:
    """The endless stream of epochs of a dataset whose shards have ``sizes`` samples, numbered shard by shard.

    Every epoch puts the shards in another order, end to end, and then moves each sample by less than ``window``
    places. So what is read at any time lies within two windows, and reading goes through each shard once from front
    to back, give or take a window, as disks and object stores like it. A dataset of no more than ``window`` samples
    is permuted freely.
    """

    def __init__(self, sizes: Sequence[int], seed: int, window: int) -> None:
        self.sizes, self.seed, self.window = np.array(sizes), seed, window
        self.count = int(self.sizes.sum())
        self._epoch = lru_cache(maxsize=2)(self._drawn)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_epoch"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= state
        self._epoch = lru_cache(maxsize=2)(self._drawn)

    def at(self, position: int) -> tuple[int, int]:
        """(sample number, epoch) at ``position`` of the stream; batches run across the borders of epochs."""
        epoch, place = divmod(position, self.count)
        return int(self._epoch(epoch)[place]), epoch

    def batch(self, size: int, nth: int) -> list[tuple[int, int]]:
        """The ``nth`` global batch of ``size``: (sample number, epoch) pairs."""
        return [self.at(position) for position in range(nth * size, (nth + 1) * size)]

    def _drawn(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, epoch])
        if self.count <= self.window:
            return random.permutation(self.count)
        ends = self.sizes.cumsum()
        shards = random.permutation(len(self.sizes))
        in_turn = np.concatenate([np.arange(ends[shard] - self.sizes[shard], ends[shard]) for shard in shards])
        moved = np.arange(self.count) + random.random(self.count) * self.window
        return in_turn[np.argsort(moved, kind="stable")]


def rank_slice(count: int, rank: int, world: int) -> range:
    """Which places of a global batch of ``count`` samples are rank ``rank``'s; ``world`` divides ``count``."""
    assert count % world == 0, (count, world)
    return range(rank * count // world, (rank + 1) * count // world)

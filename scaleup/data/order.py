"""What comes at step k: pure functions of the recipe and the step, so that any step can be resumed at."""

from __future__ import annotations

from collections.abc import Mapping
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


def batch_at(n: int, batch: int, nth: int, seed: int) -> list[tuple[int, int]]:
    """The ``nth`` global batch of a dataset of ``n`` samples: (sample index, epoch) pairs.

    Every epoch is its own permutation; batches run across the borders of epochs, so no sample is dropped.
    """
    return [sample_at(n, position, seed) for position in range(nth * batch, (nth + 1) * batch)]


def sample_at(n: int, position: int, seed: int) -> tuple[int, int]:
    """(sample index, epoch) at ``position`` of the endless stream of epochs."""
    epoch, place = divmod(position, n)
    return int(_permutation(n, seed, epoch)[place]), epoch


@lru_cache(maxsize=8)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


def share(count: int, rank: int, world: int) -> range:
    """Which places of a global batch of ``count`` samples are rank ``rank``'s; ``world`` divides ``count``."""
    assert count % world == 0, (count, world)
    return range(rank * count // world, (rank + 1) * count // world)

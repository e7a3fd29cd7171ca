"""Which samples an epoch of a dataset draws, how often, and in which order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scaleup.common.errors import UserError, nearest
from scaleup.config import schema
from scaleup.data.batches import Samples
from scaleup.data.labels import NUMBER, POWERS, class_counts

REPEAT = 1_000_003  # added to the epoch for each repeat in it: another augmentation, another view of a token cache


class Order:
    """The order of samples in all epochs of a dataset. Its shards have ``sizes`` samples, numbered shard by shard.

    Every epoch shuffles the shards, and then moves each sample by less than ``window`` places. So each shard is read
    almost in sequence, which is fast on disks and object stores. A dataset of at most ``window`` samples is shuffled
    completely.

    Args:
        factors: how often an epoch draws each sample on average, (N,); None: once. All epochs have the same length,
            the rounded sum.
    """

    def __init__(self, sizes: Sequence[int], seed: int, window: int, factors: np.ndarray | None = None) -> None:
        self.sizes, self.seed, self.window = np.array(sizes), seed, window
        self.ends = None if factors is None else _ends(factors)
        self.count = int(self.sizes.sum() if self.ends is None else self.ends[-1])
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # the last two that were used

    def at(self, position: int) -> tuple[int, int]:
        """(sample number, epoch) at ``position``, counted over all epochs; where an epoch has a sample again, the epoch
        plus a multiple of :data:`REPEAT`. A batch may contain the end of an epoch."""
        epoch, place = divmod(position, self.count)
        if epoch not in self._epochs:
            self._epochs = dict(list(self._epochs.items())[-1:]) | {epoch: self._draw(epoch)}
        samples, repeats = self._epochs[epoch]
        return int(samples[place]), epoch + REPEAT * int(repeats[place])

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample numbers of an epoch, and of each the number of draws before in this epoch."""
        random = np.random.default_rng([self.seed, epoch])
        in_turn, repeats = self._repeated(epoch)  # shard by shard
        if self.count <= self.window:
            order = random.permutation(self.count)
        else:
            shards = random.permutation(len(self.sizes))
            ends = np.searchsorted(in_turn, self.sizes.cumsum())  # of the draws of each shard
            begins = np.append(0, ends[:-1])
            by_shard = np.concatenate([np.arange(begins[shard], ends[shard]) for shard in shards])
            moved = np.arange(self.count) + random.random(self.count) * self.window
            order = by_shard[np.argsort(moved, kind="stable")]
        return in_turn[order], repeats[order]

    def _repeated(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Systematic sampling: of a line on which each sample is as long as its factor, the points one apart, from a
        random one on."""
        if self.ends is None:
            return np.arange(self.count), np.zeros(self.count, dtype=int)
        offset = np.random.default_rng([self.seed, epoch, 1]).integers(2**20) / 2**20
        draws = np.diff(np.floor(self.ends + offset), prepend=0).astype(int)
        samples = np.repeat(np.arange(len(draws)), draws)
        return samples, np.arange(self.count) - (draws.cumsum() - draws)[samples]


def _ends(factors: np.ndarray) -> np.ndarray:
    """Where each sample ends on the line of an epoch, whose length is made a whole number."""
    ends = factors.cumsum()
    ends *= round(ends[-1]) / ends[-1]
    ends[-1] = round(ends[-1])
    return ends


def draw_factors(name: str, dataset: schema.Dataset, samples: Samples) -> np.ndarray | None:
    """How often an epoch draws each sample of dataset ``name`` on average: (N,), None where all are drawn once.

    The classes of a sample have n samples each and the largest class m: the factor is m/n (full) or sqrt(m/n) (sqrt) of
    its rarest class. With sqrt it is the repeat factor of LVIS (arXiv 1908.03195), whose threshold is the share of the
    largest class. Samples without a class have factor 1.

    Raises:
        UserError: the dataset lacks the label, or the label is a number.
    """
    if dataset.sampling == "uniform":
        return None
    label = dataset.sampling_label or next(iter(dataset.heads.values()))
    place = f"data.train.{name}.sampling_label: '{label}'"
    if label not in samples.classes:
        have = ", ".join(samples.classes) + nearest(label, samples.classes)
        raise UserError(f"{place} is no label of '{dataset.shards}', which has: {have}")
    if samples.kinds.get(label) == NUMBER:
        raise UserError(f"{place} of '{dataset.shards}' is a number, which has no classes to balance")
    labels = samples.labels[label]
    counts = class_counts(labels, len(samples.classes[label]))
    factors = (max(1, counts.max()) / counts.clip(1)) ** POWERS[dataset.sampling]
    if labels.dtype != object:
        return factors[labels]
    return np.array([max((factors[number] for number in classes), default=1.0) for classes in labels])

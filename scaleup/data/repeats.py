"""How often an epoch of a dataset draws each sample."""

from __future__ import annotations

import numpy as np

from scaleup.common.errors import UserError, nearest
from scaleup.config import schema
from scaleup.data.batches import Samples
from scaleup.data.labels import NUMBER, POWERS, class_counts

SHARDS = 32  # whose ends on the line stay in memory


class Repeats:
    """Systematic sampling: of a line on which each sample is as long as its factor, the points one apart, from a random
    offset on. Only where each shard ends on the line is kept; its labels are read where it is drawn.

    Args:
        factors: how often an epoch draws a sample on average, by its class, (C,). Of several classes the largest
            counts; without a class it is 1. All epochs have the same length, the rounded sum.
    """

    def __init__(self, samples: Samples, label: str, factors: np.ndarray) -> None:
        self.samples, self.label, self.factors = samples, label, factors
        self.numbers, ends = np.cumsum([0, *samples.sizes]), [0.0]  # of the shards, not scaled
        for begin, end in zip(self.numbers[:-1], self.numbers[1:], strict=True):
            ends.append(_running(ends[-1], self.of(begin, end))[-1])
        self.count, self.ends = round(ends[-1]), np.array(ends)
        self.scale = self.count / ends[-1]  # makes the length of the line a whole number
        self._lines: dict[int, np.ndarray] = {}  # by shard, the last that were used

    def of(self, begin: int, end: int) -> np.ndarray:
        """The factors of the samples from ``begin`` to ``end``."""
        labels = self.samples.labels[self.label]
        if labels.dtype != object:
            return self.factors[labels[begin:end]]
        largest = [max((self.factors[number] for number in classes), default=1.0) for classes in labels[begin:end]]
        return np.array(largest, dtype=float)

    def at(self, draws: np.ndarray, offset: float) -> tuple[np.ndarray, np.ndarray]:
        """The samples of ``draws``, counted along the line, and of each the number of draws of this sample before."""
        samples, repeats = np.empty_like(draws), np.empty_like(draws)
        ends = self._points(self.ends, offset)
        ends[-1] = self.count
        shards = np.searchsorted(ends, draws, side="right") - 1
        for shard in np.unique(shards).tolist():
            own = shards == shard
            points = self._points(self._line(shard), offset)
            within = np.searchsorted(points[1:-1], draws[own], side="right")
            samples[own], repeats[own] = self.numbers[shard] + within, draws[own] - points[within]
        return samples, repeats

    def _line(self, shard: int) -> np.ndarray:
        """Where the samples of a shard of n begin and end on the line: (n + 1,)."""
        if shard not in self._lines:
            self._lines = dict(list(self._lines.items())[1 - SHARDS :])
            self._lines[shard] = _running(self.ends[shard], self.of(*self.numbers[shard : shard + 2]))
        return self._lines[shard]

    def _points(self, ends: np.ndarray, offset: float) -> np.ndarray:
        """How many points are on the line before each of ``ends``."""
        return np.floor(ends * self.scale + offset).astype(int)


def _running(before: float, lengths: np.ndarray) -> np.ndarray:
    """Where samples begin and end on the line, the first at ``before``: (n + 1,)."""
    return np.append(before, lengths).cumsum()


def draw_repeats(name: str, dataset: schema.Dataset, samples: Samples) -> Repeats | None:
    """How often an epoch draws each sample of dataset ``name``; None where all are drawn once.

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
    counts = class_counts(samples.labels[label], len(samples.classes[label]))
    return Repeats(samples, label, (max(1, counts.max()) / counts.clip(1)) ** POWERS[dataset.sampling])

"""Which samples an epoch of a dataset draws, how often, and in which order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scaleup.common.errors import UserError, nearest
from scaleup.config import schema
from scaleup.data.batches import Samples
from scaleup.data.labels import NUMBER, POWERS, class_counts

REPEAT = 1_000_003  # added to the epoch for each repeat in it: another augmentation, another view of a token cache
WHOLE = 2**16  # sets of at most so many draws that are within one window are shuffled by numpy, all at once
RUN = 256  # places of larger sets whose samples are computed together
ROUNDS = 6  # of a permutation that is computed at a place
ODD = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15], dtype=np.uint64)  # of SplitMix64


class Order:
    """The order of samples in all epochs of a dataset. Its shards have ``sizes`` samples, numbered shard by shard.

    Every epoch shuffles blocks of neighbours, each as long as a shard, and then the places in every window. So a shard
    is read almost in sequence, which is fast on disks and object stores. A dataset of at most ``window`` samples is
    shuffled completely. The sample at a place is computed from (seed, epoch, place) alone.

    Args:
        factors: how often an epoch draws each sample on average, (N,); None: once. All epochs have the same length,
            the rounded sum.
    """

    def __init__(self, sizes: Sequence[int], seed: int, window: int, factors: np.ndarray | None = None) -> None:
        self.seed = seed
        self.repeats = None if factors is None else Repeats(sizes, factors)
        total = sum(sizes)
        self.count = total if self.repeats is None else self.repeats.count
        self.whole = is_drawn_whole(self.count, window)
        self.windows = -(-self.count // window)
        typical = np.median([size for size in sizes if size] or [1])
        self.block = max(1, round(typical * self.count / max(1, total)))  # draws of a shard
        self._runs: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}  # the last two that were used

    def at(self, position: int) -> tuple[int, int]:
        """(sample number, epoch) at ``position``, counted over all epochs; where an epoch has a sample again, the epoch
        plus a multiple of :data:`REPEAT`. A batch may contain the end of an epoch."""
        epoch, place = divmod(position, self.count)
        number, within = divmod(place, self.count if self.whole else RUN)
        if (run := (epoch, number)) not in self._runs:
            self._runs = dict(list(self._runs.items())[-1:]) | {run: self._draw(epoch, number)}
        samples, repeats = self._runs[run]
        return int(samples[within]), epoch + REPEAT * int(repeats[within])

    def _draw(self, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample numbers of a run, and of each the number of draws before in this epoch."""
        if self.whole:
            in_turn = np.random.default_rng([self.seed, epoch]).permutation(self.count)
        else:
            places = np.arange(number * RUN, min((number + 1) * RUN, self.count))
            in_turn = self._shuffled(epoch, places)
        if self.repeats is None:
            return in_turn, np.zeros_like(in_turn)
        offset = np.random.default_rng([self.seed, epoch, 1]).integers(2**20) / 2**20
        return self.repeats.at(in_turn, offset)

    def _shuffled(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Which of the draws, counted shard by shard, are at ``places``."""
        random = np.random.default_rng([self.seed, epoch, 2])
        of_windows, of_blocks = random.integers(2**64, size=(2, ROUNDS), dtype=np.uint64)
        window = places * self.windows // self.count
        begins, ends = (-(-(window + one) * self.count // self.windows) for one in (0, 1))
        places = begins + permute(places - begins, ends - begins, of_windows, window)
        blocks, rest = divmod(self.count, self.block)  # the rest is a shorter block, read at a random time
        before = random.integers(blocks + 1) * self.block
        late = (before <= places) & (places < before + rest)
        block, within = np.divmod(np.where(places < before, places, places - rest), self.block)
        if not blocks:
            return places
        shuffled = permute(np.where(late, 0, block), np.full_like(places, blocks), of_blocks) * self.block + within
        return np.where(late, blocks * self.block + places - before, shuffled)


def count_draws(samples: Samples, factors: np.ndarray | None) -> int:
    """The length of an epoch."""
    return len(samples) if factors is None else round(factors.sum())


def is_drawn_whole(count: int, window: int) -> bool:
    """Whether an epoch of so many draws is one permutation of numpy."""
    return count <= min(window, WHOLE)


def permute(places: np.ndarray, counts: np.ndarray, keys: np.ndarray, tweak: np.ndarray | int = 0) -> np.ndarray:
    """Where each of ``places`` goes in a random permutation of range(``counts``), all (n,), computed at that place.

    A Feistel network on pairs (left < a, right < b) with a b just above the largest count, walked on from where it
    leaves range(count) (Black and Rogaway, Ciphers with Arbitrary Finite Domains, methods 2 and 3).

    Args:
        keys: uint64 (ROUNDS,).
        tweak: another number is another permutation.
    """
    a = int(np.ceil(np.sqrt(counts.max())))
    b = -(-int(counts.max()) // a)
    sides, of_place = np.array([a, b], dtype=np.uint64), np.broadcast_to(tweak, places.shape).astype(np.uint64)
    tweaked = _mix(keys[:, None] + of_place * ODD[2])
    moved, walking = places.copy(), np.arange(len(places))
    while len(walking):
        pair = np.stack(np.divmod(moved[walking], b)).astype(np.uint64)
        for number, key in enumerate(tweaked[:, walking]):
            side = number % 2
            pair[side] = (pair[side] + _mix(pair[1 - side] + key)) % sides[side]
        moved[walking] = (pair[0] * np.uint64(b) + pair[1]).astype(np.int64)
        walking = walking[moved[walking] >= counts[walking]]
    return moved


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators)."""
    x = (x ^ (x >> np.uint64(30))) * ODD[0]
    x = (x ^ (x >> np.uint64(27))) * ODD[1]
    return x ^ (x >> np.uint64(31))


class Repeats:
    """Systematic sampling: of a line on which each sample is as long as its factor, the points one apart, from a random
    offset on. Only where each shard ends on the line is kept."""

    def __init__(self, sizes: Sequence[int], factors: np.ndarray) -> None:
        self.numbers, self.factors = np.cumsum([0, *sizes]), factors
        ends = [0.0]  # of the shards, not scaled
        for begin, end in zip(self.numbers[:-1], self.numbers[1:], strict=True):
            ends.append(_running(ends[-1], factors[begin:end])[-1])
        self.count, self.ends = round(ends[-1]), np.array(ends)
        self.scale = self.count / ends[-1]  # makes the length of the line a whole number

    def at(self, draws: np.ndarray, offset: float) -> tuple[np.ndarray, np.ndarray]:
        """The samples of ``draws``, counted along the line, and of each the number of draws of this sample before."""
        samples, repeats = np.empty_like(draws), np.empty_like(draws)
        ends = self._points(self.ends, offset)
        ends[-1] = self.count
        shards = np.searchsorted(ends, draws, side="right") - 1
        for shard in np.unique(shards):
            own, begin, end = shards == shard, *self.numbers[shard : shard + 2]
            points = self._points(_running(self.ends[shard], self.factors[begin:end]), offset)
            within = np.searchsorted(points[1:-1], draws[own], side="right")
            samples[own], repeats[own] = begin + within, draws[own] - points[within]
        return samples, repeats

    def _points(self, ends: np.ndarray, offset: float) -> np.ndarray:
        """How many points are on the line before each of ``ends``."""
        return np.floor(ends * self.scale + offset).astype(int)


def _running(before: float, lengths: np.ndarray) -> np.ndarray:
    """Where samples begin and end on the line, the first at ``before``: (n + 1,)."""
    return np.append(before, lengths).cumsum()


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

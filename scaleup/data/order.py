"""Which samples an epoch of a dataset draws, how often, and in which order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scaleup.data.permutation import ROUNDS, permute, sides
from scaleup.data.repeats import Repeats

REPEAT = 1_000_003  # added to the epoch for each repeat in it: another augmentation, another view of a token cache
WHOLE = 2**16  # sets of at most so many draws that are within one window are shuffled by numpy, all at once
RUN = 256  # places of larger sets whose samples are computed together


class Order:
    """The order of samples in all epochs of a dataset. Its shards have ``sizes`` samples, numbered shard by shard.

    Every epoch shuffles blocks of neighbours, each as long as a shard, and then the places in every window. So a shard
    is read almost in sequence, which is fast on disks and object stores. A dataset of at most ``window`` samples is
    shuffled completely. The sample at a place is computed from (seed, epoch, place) alone.

    Args:
        repeats: how often an epoch draws each sample; None: once.
    """

    def __init__(self, sizes: Sequence[int], seed: int, window: int, repeats: Repeats | None = None) -> None:
        self.seed, self.repeats, total = seed, repeats, sum(sizes)
        self.count = total if repeats is None else repeats.count
        self.whole = self.count <= min(window, WHOLE)  # an epoch is one permutation of numpy
        self.windows = max(1, -(-self.count // window))
        self.largest = -(-self.count // self.windows)  # window
        typical = np.median([size for size in sizes if size] or [1])
        self.block = max(1, round(typical * self.count / max(1, total)))  # draws of a shard
        self._runs: dict[tuple[int, int], tuple[list[int], list[int]]] = {}  # the last two that were used

    @property
    def version(self) -> str:
        """Of the rule that draws it; empty for the first."""
        if self.whole:
            return ""
        return "2" if sides(self.largest) == sides(self.count // self.windows) else "3"

    def at(self, position: int) -> tuple[int, int]:
        """(sample number, epoch) at ``position``, counted over all epochs; where an epoch has a sample again, the epoch
        plus a multiple of :data:`REPEAT`. A batch may contain the end of an epoch."""
        epoch, place = divmod(position, self.count)
        number, within = divmod(place, self.count if self.whole else RUN)
        if (run := (epoch, number)) not in self._runs:
            self._runs = dict(list(self._runs.items())[-1:]) | {run: self._draw(epoch, number)}
        samples, repeats = self._runs[run]
        return samples[within], epoch + REPEAT * repeats[within]

    def _draw(self, epoch: int, number: int) -> tuple[list[int], list[int]]:
        """Sample numbers of a run, and of each the number of draws before in this epoch."""
        if self.whole:
            in_turn = np.random.default_rng([self.seed, epoch]).permutation(self.count)
        else:
            places = np.arange(number * RUN, min((number + 1) * RUN, self.count))
            in_turn = self._shuffled(epoch, places)
        if self.repeats is None:
            return in_turn.tolist(), [0] * len(in_turn)
        offset = np.random.default_rng([self.seed, epoch, 1]).integers(2**20) / 2**20
        samples, repeats = self.repeats.at(in_turn, offset)
        return samples.tolist(), repeats.tolist()

    def _shuffled(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Which of the draws, counted shard by shard, are at ``places``."""
        random = np.random.default_rng([self.seed, epoch, 2])
        of_windows, of_blocks = random.integers(2**64, size=(2, ROUNDS), dtype=np.uint64)
        window = places * self.windows // self.count
        begins, ends = (-(-(window + one) * self.count // self.windows) for one in (0, 1))
        places = begins + permute(places - begins, ends - begins, self.largest, of_windows, window)
        blocks, rest = divmod(self.count, self.block)  # the rest is a shorter block, read at a random time
        if not blocks:
            return places
        before = random.integers(blocks + 1) * self.block
        late = (before <= places) & (places < before + rest)
        block, within = np.divmod(np.where(places < before, places, places - rest), self.block)
        distinct, which = np.unique(np.where(late, 0, block), return_inverse=True)
        shuffled = permute(distinct, blocks, blocks, of_blocks)[which] * self.block + within
        return np.where(late, blocks * self.block + places - before, shuffled)

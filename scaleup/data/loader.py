"""Batches of decoded samples: endless and in a fixed order for training, every sample once for evaluation.

The batch of step k depends only on the recipe and on k, so that training can be resumed at any step.
"""

from __future__ import annotations

import random
import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import accumulate
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from scaleup.common.errors import UserError, nearest
from scaleup.config import schema
from scaleup.data.augment import TrainTransform, count_views, eval_views, parse_views
from scaleup.data.batches import BadSamples, Batch, Samples, batches, collate, input_bytes
from scaleup.data.decode import BadSample
from scaleup.data.labels import refuse_loss
from scaleup.data.order import Order
from scaleup.data.repeats import draw_repeats
from scaleup.data.shards import Shards
from scaleup.data.storage import Failure
from scaleup.data.upload import CPU, Uploaded

Joined = Callable[[list[Failure]], list[Failure]]  # failures of this rank in a step -> failures of all ranks


def open_datasets(data: schema.Data) -> dict[str, Shards]:
    """The shards of every training set, by name; UserError if a set cannot be opened or lacks a label that a head
    needs."""
    if not data.train:
        raise UserError("data.train has no dataset")
    opened = {}
    for name, dataset in data.train.items():
        opened[name] = shards = Shards.open(dataset.shards)
        check_heads(shards, dataset.heads)
        if not len(shards):
            raise UserError(f"dataset '{name}' has no samples: '{dataset.shards}' is empty")
        if not dataset.heads:
            named = f"name one with data.train.{name}.heads={{HEAD: LABEL}}"
            raise UserError(f"dataset '{name}' has no heads; {named}, of its labels {', '.join(shards.classes)}")
    return opened


def check_heads(shards: Shards, heads: Mapping[str, str]) -> None:
    """UserError if a head names a label that the shards do not have."""
    for head, label in heads.items():
        if label not in shards.classes:
            have = ", ".join(shards.classes) + nearest(label, shards.classes)
            raise UserError(f"head '{head}' learns label '{label}', but '{shards.path}' has: {have}")


def classes_of(data: schema.Data, heads: Mapping[str, schema.Head] | None = None) -> dict[str, list[str]]:
    """Class names of every head.

    Args:
        heads: what heads learn; those that are not here learn one class.

    Raises:
        UserError: a head cannot learn a label with its loss, or two datasets have different classes for one head.
    """
    lists: dict[str, list[str]] = {}
    for name, shards in open_datasets(data).items():
        for head, label in data.train[name].heads.items():
            loss = (heads or {}).get(head, schema.Head()).loss
            refuse_loss(head, loss, label, shards.kind(label), shards.classes[label], str(shards.path))
            if lists.setdefault(head, shards.classes[label]) != shards.classes[label]:
                raise UserError(f"head '{head}' has other classes in dataset '{name}' than in a dataset before it")
            _warn_of_flips(name, data.train[name].augment.flip, head, shards.classes[label])
        if (repeats := draw_repeats(name, data.train[name], shards)) is not None:
            drawn = f"an epoch of dataset '{name}' draws {repeats.count} samples"
            print(f"{drawn} of {len(shards)}, the rarest {repeats.factors.max():.3g} times", file=sys.stderr)
    return lists


def _warn_of_flips(name: str, flip: bool, head: str, classes: list[str]) -> None:
    """Warn if clips are flipped although classes name a side: a flip makes left-to-right look like right-to-left."""
    sided = [each for each in classes if re.search(r"\b(left|right|leftwards?|rightwards?)\b", each, re.IGNORECASE)]
    if flip and sided:
        mirrored = f"dataset '{name}' is mirrored at random, but head '{head}' has classes such as '{sided[0]}'"
        print(f"{mirrored}; consider data.train.{name}.augment.flip=false", file=sys.stderr)


def dataset_at(weights: Mapping[str, float], step: int) -> tuple[str, int]:
    """The dataset of the batch of step ``step``, and the number of batches from this dataset before.

    Steps are shared by weight: with two datasets, after any number of steps, each has had its share to within one
    batch. The first dataset gets evenly spaced steps, the second gets evenly spaced steps of the rest, and so on.
    """
    (name, weight), *others = weights.items()
    if not others:
        return name, step
    share = Fraction(str(weight)) / sum(Fraction(str(other)) for other in weights.values())
    before, after = ceil(step * share), ceil((step + 1) * share)
    if after > before:
        return name, before
    return dataset_at(dict(others), step - before)


def rank_slice(count: int, rank: int, world: int) -> range:
    """The places of rank ``rank`` in a global batch of ``count`` samples; ``world`` divides ``count``."""
    assert count % world == 0, (count, world)
    return range(rank * count // world, (rank + 1) * count // world)


def train_loader(
    data: schema.Data,
    input: schema.Input,
    seed: int,
    steps: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    joined: Joined = list,
    device: torch.device = CPU,
) -> Uploaded:
    """This rank's part of the batches of steps ``start`` to ``steps`` - 1.

    The number of workers does not change them. The parts of all ranks together are the same for any number of ranks.
    An unreadable sample is printed on stderr, and the next one takes its place.

    Args:
        joined: gathers the failures of a step from all ranks, in the same order on each rank.

    Raises:
        UserError: a dataset does not fit (:func:`open_datasets`), the batch cannot be divided by the ranks, or more
            than ``data.max_bad`` of a dataset's samples cannot be read, counted over all ranks. All ranks raise it at
            the same step.
    """
    shards = open_datasets(data)
    dataset = TrainSteps(data, shards, Augmented(data, input, seed, shards), seed, rank, world)
    sizes = {input_bytes(input, each.modality) for each in shards.values()}
    return train_steps(dataset, sizes, data.workers, range(start, steps), joined, device)


def train_steps(
    dataset: TrainSteps, sizes: set[int], workers: int, steps: range, joined: Joined, device: torch.device
) -> Uploaded:
    """This rank's batches of ``steps``. ``sizes``: bytes of a sample, for each shape of samples."""
    made = batches(dataset, steps, workers, len(dataset.places) * sum(sizes))
    return Uploaded(made, device, partial(dataset.count_bad, joined))


class Augmented:
    """The augmented sample in epoch ``epoch``, uint8 (3, [T,] H, W). It depends only on (seed, epoch, key)."""

    def __init__(self, data: schema.Data, input: schema.Input, seed: int, shards: Mapping[str, Shards]) -> None:
        self.seed, self.shards = seed, shards
        self.transforms = {name: TrainTransform(input, dataset.augment) for name, dataset in data.train.items()}

    def __call__(self, name: str, index: int, epoch: int) -> Tensor:
        sample = self.shards[name].read(index)
        source = random.Random(f"{self.seed} {epoch} {sample.key}")
        return self.transforms[name](sample.media, self.shards[name].modality, source)


def order_of(name: str, data: schema.Data, samples: Samples, seed: int) -> Order:
    """The order of dataset ``name``."""
    return Order(samples.sizes, seed, data.window, draw_repeats(name, data.train[name], samples))


class TrainSteps(Dataset):
    """Step number -> this rank's :class:`Batch`, whose samples are ``read(dataset, sample number, epoch)``. If this
    raises BadSample, the sample is a failure of the batch.

    Raises:
        UserError: the batch cannot be divided by the ranks.
    """

    def __init__(
        self,
        data: schema.Data,
        shards: Mapping[str, Samples],
        read: Callable[[str, int, int], Tensor],
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        if data.batch % world:
            raise UserError(f"data.batch {data.batch} cannot be divided evenly by {world} ranks")
        self.batch, self.places = data.batch, rank_slice(data.batch, rank, world)
        self.shards, self.read, self.datasets = shards, read, data.train
        self.weights = {name: dataset.weight for name, dataset in data.train.items()}
        self.orders = {name: order_of(name, data, each, seed) for name, each in shards.items()}
        self.bad = {name: BadSamples(f"dataset '{name}'", len(each), data.max_bad) for name, each in shards.items()}

    def __getitem__(self, step: int) -> Batch:
        name, nth = dataset_at(self.weights, step)
        failures: dict[str, Failure] = {}  # by key
        samples = [self._read(name, nth * self.batch + place, failures) for place in self.places]
        read = [sample for sample in samples if sample]
        return collate(name, self.shards[name], self.datasets[name].heads, read, list(failures.values()))

    def _read(self, name: str, position: int, failures: dict[str, Failure]) -> tuple[int, Tensor] | None:
        """The sample at ``position``, or the next that can be read; None once there are too many failures."""
        keys = self.shards[name].keys
        while len(failures) <= self.bad[name].allowed:
            index, epoch = self.orders[name].at(position)
            try:
                return index, self.read(name, index, epoch)
            except BadSample as error:
                failures[keys[index]] = Failure(keys[index], str(error))
                position += 1
        return None

    def count_bad(self, joined: Joined, batch: Batch) -> None:
        """Count and print the unreadable samples of ``batch``, each once; UserError if all ranks have too many."""
        bad = self.bad[batch.dataset]
        bad.name(batch.failures)
        bad.add(joined(batch.failures))


def eval_share(count: int, rank: int, world: int) -> range:
    """The numbers of the samples that rank ``rank`` evaluates."""
    return range(rank, count, world)


def eval_loader(
    shards: Shards,
    heads: Mapping[str, str],
    input: schema.Input,
    views: str = "1x1",
    batch: int = 16,
    workers: int = 1,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """Every sample of this rank's share exactly once, in ``views`` (clips x crops).

    Pixels are uint8 (B, V, 3, T, H, W) for videos and (B, V, 3, H, W) for images, which have only crops. An unreadable
    sample is printed on stderr, and is in ``failures`` of its batch, not in ``keys``. If a batch has no readable
    sample, ``pixels`` is (0,).
    """
    check_heads(shards, heads)
    share = eval_share(len(shards), rank, world)
    size = count_views(views, shards.modality) * input_bytes(input, shards.modality)
    read = partial(_read_views, shards, input, *parse_views(views))
    return map(_name_failures, EachOnce(shards, dict(heads), read, Parts([share], batch)).batches(size, workers))


def _read_views(shards: Shards, input: schema.Input, clips: int, crops: int, index: int) -> Tensor:
    return eval_views(shards.read(index).media, shards.modality, input, clips, crops)


class Parts(Sequence[Sequence[int]]):
    """The ``chunks`` of samples, each divided into parts of ``size``, which are made where they are asked for."""

    def __init__(self, chunks: Sequence[Sequence[int]], size: int) -> None:
        self.chunks, self.size = chunks, size
        self.ends = list(accumulate(ceil(len(chunk) / size) for chunk in chunks))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, number: Any) -> Any:
        chunk = bisect_right(self.ends, number)
        begin = self.size * (number - (self.ends[chunk - 1] if chunk else 0))
        return self.chunks[chunk][begin : begin + self.size]


@dataclass
class EachOnce(Dataset):
    """Number of a part -> :class:`Batch` of ``read(index)`` of its samples. What raises BadSample is a failure."""

    shards: Shards
    heads: dict[str, str]
    read: Callable[[int], Tensor]
    parts: Parts

    def __getitem__(self, number: int) -> Batch:
        read, failures = [], []
        for index in self.parts[number]:
            try:
                read.append((index, self.read(index)))
            except BadSample as error:
                failures.append(Failure(self.shards.keys[index], str(error)))
        return collate(self.shards.name, self.shards, self.heads, read, failures)

    def batches(self, size: int, workers: int) -> Iterator[Batch]:
        """All batches in order, made by ``workers`` processes; ``size``: bytes of one sample."""
        largest = min(self.parts.size, max(map(len, self.parts.chunks), default=0))
        return batches(self, range(len(self.parts)), workers, largest * size)


def _name_failures(batch: Batch) -> Batch:
    for failure in batch.failures:
        print(f"'{batch.dataset}': sample '{failure.source}' not evaluated: {failure.reason}", file=sys.stderr)
    return batch

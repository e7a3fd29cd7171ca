"""Batches of decoded samples: endless and in a fixed order for training, every sample once for evaluation."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.utils.data import Dataset

from scaleup.config import schema
from scaleup.data import order
from scaleup.data.augment import TrainTransform, eval_views, parse_views
from scaleup.data.batches import BadSamples, Batch, Samples, batches, collate, input_bytes, refuse_small_shared
from scaleup.data.decode import BadSample
from scaleup.data.shards import Shards
from scaleup.data.storage import Failure
from scaleup.errors import UserError, nearest


def open_datasets(data: schema.Data) -> dict[str, Shards]:
    """The shards of every training set, by name; UserError if one does not open or lacks a label its heads name."""
    if not data.train:
        raise UserError("data.train names no dataset")
    opened = {}
    for name, dataset in data.train.items():
        opened[name] = shards = Shards.open(dataset.shards)
        check_heads(shards, dataset.heads)
        if not len(shards) or not dataset.heads or dataset.weight <= 0:
            raise UserError(
                f"dataset '{name}' has {len(shards)} samples, {len(dataset.heads)} heads and weight {dataset.weight}; "
                "all three must be above 0"
            )
    return opened


def check_heads(shards: Shards, heads: Mapping[str, str]) -> None:
    """UserError if a head names a label that the shards do not have."""
    for head, label in heads.items():
        if label not in shards.classes:
            have = ", ".join(shards.classes)
            raise UserError(
                f"head '{head}' learns label '{label}', but '{shards.path}' has: {have}{nearest(label, shards.classes)}"
            )


def classes_of(data: schema.Data) -> dict[str, list[str]]:
    """Class names of every head; UserError if two datasets give one head different lists."""
    lists: dict[str, list[str]] = {}
    for name, shards in open_datasets(data).items():
        for head, label in data.train[name].heads.items():
            if lists.setdefault(head, shards.classes[label]) != shards.classes[label]:
                raise UserError(f"head '{head}' would get other classes from dataset '{name}' than from one before it")
            _warn_of_flips(name, data.train[name].augment.flip, head, shards.classes[label])
    return lists


def _warn_of_flips(name: str, flip: bool, head: str, classes: list[str]) -> None:
    """A mirrored push from left to right is one from right to left."""
    sided = [each for each in classes if re.search(r"\b(left|right|leftwards?|rightwards?)\b", each, re.IGNORECASE)]
    if flip and sided:
        print(
            f"dataset '{name}' is mirrored at random, but head '{head}' has classes such as '{sided[0]}'; "
            f"consider data.train.{name}.augment.flip=false",
            file=sys.stderr,
        )


Joined = Callable[[list[Failure]], list[Failure]]


def train_loader(
    data: schema.Data,
    input: schema.Input,
    seed: int,
    steps: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    joined: Joined = list,
) -> Iterator[Batch]:
    """The batches of steps ``start`` to ``steps`` - 1: this rank's part of each.

    They are the same for any number of workers, and put together the same for any number of ranks. A sample that
    cannot be read is named on stderr and the next one in order takes its place.

    Args:
        joined: this rank's failures of a step to those of all ranks, in the same order on each.

    Raises:
        UserError: a dataset does not fit (:func:`open_datasets`), the batch cannot be divided by the ranks, or more
            than ``data.max_bad`` of a dataset's samples were found unreadable, by all ranks together: each of them
            raises it at the same step.
    """
    shards = open_datasets(data)
    augmented = Augmented(data, input, seed, shards)
    dataset = TrainSteps(data, shards, augmented, seed, rank, world)
    sizes = {input_bytes(input, each.modality) for each in shards.values()}
    refuse_small_shared(len(dataset.places) * sum(sizes), steps - start, data.workers)
    return train_steps(dataset, data.workers, range(start, steps), joined)


def train_steps(dataset: TrainSteps, workers: int, steps: range, joined: Joined = list) -> Iterator[Batch]:
    """This rank's batches of ``steps``, whatever their samples are."""
    # No generator: in a traceback its frame would keep the processes alive.
    return map(partial(dataset.watched, joined), batches(dataset, steps, workers))


class Augmented:
    """A sample as epoch ``epoch`` sees it, uint8 (3, [T,] H, W): a pure function of (seed, epoch, key)."""

    def __init__(self, data: schema.Data, input: schema.Input, seed: int, shards: Mapping[str, Shards]) -> None:
        self.seed, self.shards = seed, shards
        self.transforms = {name: TrainTransform(input, dataset.augment) for name, dataset in data.train.items()}

    def __call__(self, name: str, index: int, epoch: int) -> Tensor:
        shards = self.shards[name]
        source = random.Random(f"{self.seed} {epoch} {shards.keys[index]}")
        return self.transforms[name](shards.read(index).media, shards.modality, source)


class TrainSteps(Dataset):
    """Step number -> this rank's :class:`Batch` of what ``read(dataset, sample number, epoch)`` gives or, by BadSample,
    does not.

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
        self.batch = data.batch
        self.places = order.rank_slice(data.batch, rank, world)
        self.shards, self.read = shards, read
        self.orders = {name: order.Order(shards.sizes, seed, data.window) for name, shards in self.shards.items()}
        self.heads = {name: dict(dataset.heads) for name, dataset in data.train.items()}
        self.weights = {name: dataset.weight for name, dataset in data.train.items()}
        self.bad = {name: BadSamples(f"dataset '{name}'", len(each), data.max_bad) for name, each in shards.items()}

    def __getitem__(self, step: int) -> Batch:
        name, nth = order.dataset_at(self.weights, step)
        failures: dict[str, Failure] = {}  # by key
        read = [self._read(name, nth * self.batch + place, failures) for place in self.places]
        whole = [item for item in read if item]
        return collate(name, self.shards[name], self.heads[name], whole, list(failures.values()))

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

    def watched(self, joined: Joined, batch: Batch) -> Batch:
        """``batch``; every unreadable sample is named once, by a rank that met it first, and UserError stops the run
        when those of all ranks have become too many."""
        bad = self.bad[batch.dataset]
        bad.name(batch.failures)
        bad.add(joined(batch.failures))
        return batch


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
    """Every sample of this rank's share exactly once, in ``views`` clips x crops.

    Pixels are uint8 (B, V, 3, T, H, W) of videos, (B, V, 3, H, W) of images, which have crops alone. A sample that
    cannot be read is named on stderr and stands in its batch's ``failures`` instead of its ``keys``; where that
    leaves no sample, ``pixels`` is (0,).
    """
    check_heads(shards, heads)
    clips, crops = parse_views(views)
    dataset = EvalBatches(shards, dict(heads), input, clips, crops, list(range(rank, len(shards), world)), batch)
    each = crops * (clips if shards.modality == "video" else 1) * input_bytes(input, shards.modality)
    refuse_small_shared(min(batch, len(dataset.indices)) * each, len(dataset), workers)
    return map(_named, batches(dataset, range(len(dataset)), workers))


@dataclass
class EvalBatches(Dataset):
    """Batch number -> :class:`Batch` with an axis of views."""

    shards: Shards
    heads: dict[str, str]
    input: schema.Input
    clips: int
    crops: int
    indices: list[int]
    batch: int

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch)

    def __getitem__(self, number: int) -> Batch:
        read, failures = [], []
        for index in self.indices[number * self.batch : (number + 1) * self.batch]:
            try:
                sample = self.shards.read(index)
                views = eval_views(sample.media, self.shards.modality, self.input, self.clips, self.crops)
                read.append((index, views))
            except BadSample as error:
                failures.append(Failure(self.shards.keys[index], str(error)))
        return collate(self.shards.name, self.shards, self.heads, read, failures)


def _named(batch: Batch) -> Batch:
    for failure in batch.failures:
        print(f"'{batch.dataset}': sample '{failure.source}' not evaluated: {failure.reason}", file=sys.stderr)
    return batch

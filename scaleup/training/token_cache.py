"""Token caches: the training sets through the trunk once, for every view; an interrupted cache is completed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaleup.common.distributed import World, own_device
from scaleup.common.files import refuse_existing
from scaleup.common.text import format_bytes
from scaleup.common.timing import progress
from scaleup.config.schema import Recipe
from scaleup.data.batches import BadSamples, Batch, input_bytes
from scaleup.data.loader import Augmented, each_once, open_datasets
from scaleup.data.pack import GrowingShards, clear_directory, partial_directory
from scaleup.data.shards import Index, Sample, Shards
from scaleup.data.storage import Failure
from scaleup.data.token_records import dequantise, layout, quantise, record
from scaleup.errors import UserError
from scaleup.model.adapter import Adapt
from scaleup.model.build import prepare_trunks, set_kernels
from scaleup.model.tokenizer import natural_clip, normalise
from scaleup.model.trunk import Taps, drift
from scaleup.model.tubevit import TubeViT
from scaleup.training import cache_plan
from scaleup.training.cache_plan import made_of, samples_of_a_tar
from scaleup.training.run_inputs import heads_of, starting_model


def _read_views(augmented: Augmented, name: str, views: int, index: int) -> Tensor:
    """All views of a sample, uint8 (V, 3, [T,] H, W)."""
    return torch.stack([augmented(name, index, view) for view in range(views)])


def named(taps: dict[int, Taps]) -> dict[str, Tensor]:
    """z0 and h at every depth, (B, N, D), as a record calls them."""
    return {"z0": next(iter(taps.values())).z0} | {f"h{depth}": each.h for depth, each in sorted(taps.items())}


class SetWriter:
    """Writes dataset ``name`` of a recipe to ``directory``.

    Args:
        made: what the index will say of how the taps came to be.
    """

    def __init__(
        self, recipe: Recipe, model: TubeViT, name: str, shards: Shards, made: dict[str, Any], directory: Path
    ) -> None:
        self.recipe, self.model, self.name, self.shards, self.made = recipe, model, name, shards, made
        self.directory, self.views = directory, made["views"]
        self.numbers = {key: number for number, key in enumerate(shards.keys)}
        self.bad = BadSamples(f"dataset '{name}'", len(shards), recipe.data.max_bad, "; what is finished is kept")
        each, count = samples_of_a_tar(made["record_bytes"], self.views), len(shards)
        self.chunks = [range(begin, min(begin + each, count)) for begin in range(0, count, each)]  # samples of each tar
        self.batch = max(1, recipe.data.batch // self.views)  # samples that pass the trunk together

    def write(self, advance: Callable[[int], None]) -> None:
        """Write all shards that are not there yet; ``advance`` is called with the number of samples done."""
        self.tars = GrowingShards(self.directory, self.chunks, self.name)
        advance(self.tars.done)
        self.bad.add(self.tars.failures)
        unfinished = {number: self._divide(chunk) for number, chunk in self.tars.unfinished.items()}
        batches = self._batches([part for parts in unfinished.values() for part in parts])
        for number, parts in unfinished.items():
            self.tars.write(number, self._samples(islice(batches, len(parts)), advance))

    def conclude(self) -> None:
        """Write the index, and remove everything but it and the tars that have samples."""
        self.tars.conclude(Index("taps", self.shards.classes, 0, [], [], made=self.made))

    def _divide(self, chunk: Sequence[int]) -> list[Sequence[int]]:
        return [chunk[begin : begin + self.batch] for begin in range(0, len(chunk), self.batch)]

    def _batches(self, parts: list[Sequence[int]]) -> Iterator[Batch]:
        """All views of the samples of each part."""
        input, shards = self.model.config.input, self.shards
        augmented = Augmented(self.recipe.data, input, self.recipe.seed, {self.name: shards})
        read, labels = partial(_read_views, augmented, self.name, self.views), {name: name for name in shards.labels}
        size = input_bytes(input, shards.modality) * self.views
        return each_once(shards, labels, read, parts, size, self.recipe.data.workers)

    def _samples(self, batches: Iterable[Batch], advance: Callable[[int], None]) -> Iterator[Sample | Failure]:
        for batch in batches:
            self.bad.name(batch.failures)
            self.bad.add(batch.failures)
            yield from batch.failures
            records = self._records(batch.pixels.flatten(0, 1)) if batch.keys else iter(())
            for row, key in enumerate(batch.keys):
                labels = {name: int(values[row]) for name, values in batch.labels.items()}
                for view in range(self.views):
                    yield Sample(f"{self.numbers[key]:08d}-v{view}", "safetensors", next(records), labels)
            advance(len(batch.keys) + len(batch.failures))

    def _records(self, pixels: Tensor) -> Iterator[bytes]:
        model, made = self.model, self.made
        assert model.trunk is not None
        x = model.preprocess(pixels.to(next(model.arm.parameters()).device))
        tokens = named(model.trunk(x, made["depths"]))
        if not all(each.isfinite().all() for each in tokens.values()):
            raise UserError(
                f"the trunk gives tokens of dataset '{self.name}' that are not finite; choose another trunk.precision "
                f"than {made['trunk']['precision']}, or another model"
            )
        kept = {name: each.cpu() for name, each in quantise(tokens, made["precision"]).items()}
        for row in range(len(pixels)):
            yield record({name: each[row] for name, each in kept.items()})


@dataclass
class CachedDataset:
    """One training set in a token cache."""

    samples: int
    failures: list[Failure]  # samples that could not be read
    record_bytes: int  # of one view of a sample


@dataclass
class TokenCache:
    """A token cache that was made."""

    out: str  # its directory
    bytes: int
    depths: list[int]  # frozen depths that it serves
    views: int  # of each sample
    precision: str  # of its tokens
    trunk: dict[str, Any]  # see scaleup.model.build.prepare_trunks, and its kernels
    drift: dict[str, float]  # how far z0 and h move by the precision: RMS of the difference over RMS, on a made-up clip
    datasets: dict[str, CachedDataset]
    seconds: float


def make(
    recipe: Recipe,
    depths: list[int],
    out: str | Path,
    views: int = 1,
    precision: str = "bfloat16",
    limit: int | None = None,
    overwrite: bool = False,
) -> TokenCache:
    """Write the taps of all training sets of ``recipe`` to ``out``, a shard directory for each.

    View v of a sample is what a run with the recipe's seed sees of it in epoch v. Until all of it is there it grows in
    ``.OUT.partial`` beside ``out``; what is finished in there is verified and kept when the same call is made again.

    Args:
        depths: frozen depths at which to tap, each at least 1.
        precision: in which tokens are kept: float32, bfloat16, or int8 with a scale for each token.
        limit: bytes that the cache may take; by default what is free, less a margin.

    Raises:
        UserError: ``out`` exists, it would be too large, a depth does not fit the model, or more than ``data.max_bad``
            of the samples cannot be read.
    """
    began, out = time.perf_counter(), Path(out)
    refuse_existing(out, overwrite)
    model, sets = _frozen(recipe, depths), open_datasets(recipe.data)
    blank = {name: cache_plan.blank_record(model, each.modality, depths, precision) for name, each in sets.items()}
    _refuse_too_large(sets, blank, views, out, limit)
    how = {"depths": depths, "views": views, "precision": precision, "seed": recipe.seed}
    made = {name: how | _origin(recipe, model, name, each, blank[name]) for name, each in sets.items()}
    about = _prepare(recipe, model)
    for each in made.values():
        each["trunk"] = {key: about[key] for key in ("precision", "kernels")}
    _write(recipe, model, sets, made, out)
    return TokenCache(
        out=str(out),
        bytes=sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
        depths=depths,
        views=views,
        precision=precision,
        trunk=about,
        drift=_drift(model, depths, precision),
        datasets={name: _described(out / name) for name in sets},
        seconds=time.perf_counter() - began,
    )


def _frozen(recipe: Recipe, depths: list[int]) -> TubeViT:
    """The recipe's model, frozen up to the deepest of ``depths``."""
    model = starting_model(recipe, heads_of(recipe))
    for depth in depths:
        if not 1 <= depth <= model.depth:
            raise UserError(f"there are no taps at frozen depth {depth}; this model has 1 to {model.depth}")
    return model.with_arm(max(depths), False, {}, recipe.seed, Adapt("none"))


def _refuse_too_large(
    sets: dict[str, Shards], blank: dict[str, bytes], views: int, out: Path, limit: int | None
) -> None:
    """Say how large the cache will be, and refuse what does not fit."""
    needed = sum(cache_plan.cache_bytes(each, len(blank[name]), views) for name, each in sets.items())
    records = ", ".join(f"a view of '{name}' {format_bytes(len(record))}" for name, record in blank.items())
    print(f"the cache takes {format_bytes(needed)}: {records}", file=sys.stderr)
    cache_plan.refuse_too_large(needed, out, limit)


def _origin(recipe: Recipe, model: TubeViT, name: str, shards: Shards, blank: bytes) -> dict[str, Any]:
    """What the index of a dataset keeps of what its taps were made of, before anything is cast."""
    return {
        "modality": shards.modality,
        "keys": shards.keys,
        "sizes": shards.sizes,
        "record_bytes": len(blank),
        "layout": {name: list(place) for name, place in layout(blank).items()},
        "made_of": made_of(recipe, model, name),
    }


def _prepare(recipe: Recipe, model: TubeViT) -> dict[str, Any]:
    """Put the trunk where the recipe says, in its precision and with its kernels; returns what was chosen."""
    world = World(0, 1, device := own_device())
    kernels = set_kernels([model.place(device, recipe.trunk.placement)], recipe.train.kernels, world)
    return prepare_trunks([model], recipe.trunk, world) | {"kernels": kernels}


def _write(recipe: Recipe, model: TubeViT, sets: dict[str, Shards], made: dict[str, Any], out: Path) -> None:
    plan = json.dumps([recipe.data.batch, made])
    with partial_directory(out, plan) as partial:
        writers = [SetWriter(recipe, model, name, sets[name], made[name], partial / name) for name in sets]
        with progress("caching", sum(map(len, sets.values()))) as advance:
            for writer in writers:
                writer.write(advance)
        for writer in writers:
            writer.conclude()
        clear_directory(partial, {"plan", *sets})


def _drift(model: TubeViT, depths: list[int], precision: str) -> dict[str, float]:
    clip = normalise(natural_clip(model.preprocess.frames, model.preprocess.size), model.config.input)
    assert model.trunk is not None
    tokens = named(model.trunk(clip.to(next(model.arm.parameters()).device), depths))
    kept = quantise(tokens, precision)
    return {name: drift(each, dequantise(kept, name)) for name, each in tokens.items()}


def _described(path: Path) -> CachedDataset:
    shards = Shards.open(path)
    return CachedDataset(len(shards) // shards.made["views"], shards.failures, shards.made["record_bytes"])

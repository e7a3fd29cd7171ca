"""Makes token caches: the trunk's output for every view of the training sets. Interrupted caches are resumed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaleup.common.distributed import World, device_type, own_device
from scaleup.common.errors import UserError
from scaleup.common.files import clear_directory, partial_directory, refuse_existing
from scaleup.common.text import format_bytes
from scaleup.common.timing import progress
from scaleup.config.recipe import settle
from scaleup.config.schema import Recipe
from scaleup.data.batches import BadSamples, input_bytes
from scaleup.data.index import Index
from scaleup.data.loader import Augmented, EachOnce, Parts, open_datasets
from scaleup.data.pack import GrowingShards
from scaleup.data.shards import Sample, Shards
from scaleup.data.storage import Failure
from scaleup.data.token_records import dequantise, layout, quantise, record
from scaleup.data.upload import Uploaded
from scaleup.model.adapter import Adapt
from scaleup.model.build import prepare_trunks
from scaleup.model.full_device import explain_full
from scaleup.model.kernel_choice import set_compile, set_graphs, set_kernels
from scaleup.model.kernels import set_products
from scaleup.model.tokenizer import natural_clip, normalise
from scaleup.model.trunk import Taps, drift
from scaleup.model.tubevit import TubeViT
from scaleup.training.cache_size import blank_record, cache_bytes, refuse_too_large, samples_of_a_tar
from scaleup.training.feed import made_of
from scaleup.training.run_inputs import heads_of, starting_model


def _read_views(augmented: Augmented, name: str, views: int, index: int) -> Tensor:
    """All views of a sample, uint8 (V, 3, [T,] H, W)."""
    return torch.stack([augmented(name, index, view) for view in range(views)])


def named(taps: dict[int, Taps]) -> dict[str, Tensor]:
    """z0 and h at every depth, (B, N, D), under their names in a record."""
    z0 = next(iter(taps.values())).z0
    assert z0 is not None
    return {"z0": z0} | {f"h{depth}": each.h for depth, each in sorted(taps.items())}


class SetWriter:
    """Writes dataset ``name`` of a recipe to ``directory``.

    Args:
        origin: how the taps were computed; the index stores it.
    """

    def __init__(
        self, recipe: Recipe, model: TubeViT, name: str, shards: Shards, origin: dict[str, Any], directory: Path
    ) -> None:
        self.recipe, self.model, self.name, self.shards, self.origin = recipe, model, name, shards, origin
        self.directory, self.views = directory, origin["views"]
        self.bad = BadSamples(f"dataset '{name}'", len(shards), recipe.data.max_bad, "; what is finished is kept")
        length, count = samples_of_a_tar(origin["record_bytes"], self.views), len(shards)
        self.chunks = [range(begin, min(begin + length, count)) for begin in range(0, count, length)]  # of the tars
        self.batch = max(1, recipe.data.batch // self.views)  # samples that the trunk computes together

    def write(self, advance: Callable[[int], None]) -> None:
        """Write all shards that do not exist yet; ``advance`` is called with the number of samples written."""
        self.tars = GrowingShards(self.directory, self.chunks, self.name)
        advance(self.tars.done)
        self.bad.add(self.tars.failures)
        unfinished = self.tars.unfinished
        self.batches = self._batches(Parts(list(unfinished.values()), self.batch))
        for number, chunk in unfinished.items():
            self.tars.write(number, self._samples(Parts([chunk], self.batch), advance))

    def conclude(self) -> None:
        """Write the index."""
        made = self.origin | {"failed": list(self._failed())}
        self.tars.conclude(Index("taps", self.shards.classes, 0, [], [], self.shards.kinds, made=made))

    def _failed(self) -> Iterator[int]:
        """The numbers of the samples that could not be read, in the order of their failures."""
        for tar, chunk in enumerate(self.chunks):
            if failures := {failure.source for failure in self.tars.parts[tar].failures}:
                yield from (number for number in chunk if self.shards.keys[number] in failures)

    def _batches(self, parts: Parts) -> Uploaded:
        """All views of the samples of each part, on the model's device."""
        input, shards = self.model.config.input, self.shards
        augmented = Augmented(self.recipe.data, input, self.recipe.seed, {self.name: shards})
        read = partial(_read_views, augmented, self.name, self.views)
        size = input_bytes(input, shards.modality) * self.views
        batches = EachOnce(shards, {}, read, parts).batches(size, self.recipe.data.workers)
        return Uploaded(batches, next(self.model.arm.parameters()).device)

    def _samples(self, parts: Parts, advance: Callable[[int], None]) -> Iterator[Sample | Failure]:
        for part, batch in zip(parts, islice(self.batches, len(parts)), strict=True):
            self.bad.name(batch.failures)
            self.bad.add(batch.failures)
            yield from batch.failures
            records = self._records(batch.pixels.flatten(0, 1)) if batch.keys else iter(())
            failed = {failure.source for failure in batch.failures}
            for number, key in ((number, self.shards.keys[number]) for number in part):
                for view in range(self.views) if key not in failed else ():
                    yield Sample(f"{key}-v{view}", "safetensors", next(records), self.shards.labels_of(number))
            advance(len(batch.keys) + len(batch.failures))

    def _records(self, pixels: Tensor) -> Iterator[bytes]:
        model, origin = self.model, self.origin
        assert model.trunk is not None
        tokens = named(model.trunk(model.preprocess(pixels), origin["depths"]))
        quantised = quantise(tokens, origin["precision"])
        finite = torch.stack([tensor.isfinite().all() for tensor in tokens.values()]).all()
        self.batches.fetch()  # while a GPU computes
        if not finite:
            raise UserError(
                f"the trunk gives tokens of dataset '{self.name}' that are not finite; choose another trunk.precision "
                f"than {origin['trunk']['precision']}, or another model"
            )
        batch = {name: tensor.cpu() for name, tensor in quantised.items()}
        for row in range(len(pixels)):
            yield record({name: tensor[row] for name, tensor in batch.items()})


@dataclass
class CachedDataset:
    """One training set in a token cache."""

    samples: int
    failures: list[Failure]  # samples that could not be read
    record_bytes: int  # of one view of a sample


@dataclass
class TokenCache:
    """The result: a complete token cache."""

    out: str  # its directory
    bytes: int
    depths: list[int]  # frozen depths of the arms that can use it
    views: int  # of each sample
    precision: str  # of its tokens
    trunk: dict[str, Any]  # see scaleup.model.build.PreparedTrunk, and its kernels
    drift: dict[str, float]  # error of z0 and h in this precision: RMS of the difference over RMS, on a synthetic clip
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

    View v of a sample is its view in epoch v of a run with the recipe's seed. The cache is written to ``.OUT.partial``
    beside ``out``, and renamed when it is complete. The same call resumes it: finished files are verified and kept.

    Args:
        depths: frozen depths whose taps are stored, each at least 1.
        precision: of the stored tokens: float32, bfloat16, or int8 with a scale for each token.
        limit: most bytes of the cache; by default the free space less a margin.

    Raises:
        UserError: ``out`` exists, the cache would be too large, a depth does not fit the model, or more than
            ``data.max_bad`` of the samples cannot be read.
    """
    began, out = time.perf_counter(), Path(out)
    refuse_existing(out, overwrite)
    recipe = settle(recipe, {}, device_type())[0]
    model, sets = _frozen(recipe, depths), open_datasets(recipe.data)
    blanks = {name: blank_record(model, shards.modality, depths, precision) for name, shards in sets.items()}
    size = sum(cache_bytes(shards, len(blanks[name]), views) for name, shards in sets.items())
    records = ", ".join(f"a view of '{name}' {format_bytes(len(blank))}" for name, blank in blanks.items())
    print(f"the cache takes {format_bytes(size)}: {records}", file=sys.stderr)
    refuse_too_large(size, out, limit)
    how = {"depths": depths, "views": views, "precision": precision, "seed": recipe.seed}
    origins = {name: how | _origin(recipe, model, name, shards, blanks[name]) for name, shards in sets.items()}
    with explain_full([model], recipe.data.batch, 1, "trunk.placement=host", "data.batch"):
        trunk = _prepare(recipe, model)
        for origin in origins.values():
            origin["trunk"] = {key: trunk[key] for key in ("precision", "kernels")}
        _write(recipe, model, sets, origins, out, overwrite)
    return TokenCache(
        out=str(out),
        bytes=sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
        depths=depths,
        views=views,
        precision=precision,
        trunk=trunk,
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


def _origin(recipe: Recipe, model: TubeViT, name: str, shards: Shards, blank: bytes) -> dict[str, Any]:
    """How the taps of a dataset are computed, for its index; to be called before the trunk is cast."""
    return {
        "modality": shards.modality,
        "list_sha256": shards.list_sha256,
        "sizes": shards.sizes,
        "record_bytes": len(blank),
        "layout": {name: list(place) for name, place in layout(blank).items()},
        "made_of": made_of(recipe, model, name),
    }


def _prepare(recipe: Recipe, model: TubeViT) -> dict[str, Any]:
    """Give the trunk the placement, precision and kernels of the recipe; returns what was chosen."""
    world = World(0, 1, device := own_device())
    set_products(device, recipe.train.tf32, recipe.train.deterministic)
    kernels = set_kernels([model.place(device, None)], recipe.train.kernels, world, recipe.data.batch, trains=False)
    prepared = prepare_trunks([model], recipe.trunk, world, recipe.data.batch)
    set_compile([model], recipe.train.compile, world)
    set_graphs([model], recipe.train.cuda_graphs, world, recipe.data.batch)
    assert prepared is not None
    return asdict(prepared) | {"kernels": kernels.trunk}


def _write(
    recipe: Recipe, model: TubeViT, sets: dict[str, Shards], origins: dict[str, Any], out: Path, overwrite: bool
) -> None:
    plan = json.dumps([recipe.data.batch, origins])
    with partial_directory(out, plan) as growing:
        writers = [SetWriter(recipe, model, name, sets[name], origins[name], growing / name) for name in sets]
        with progress("caching", sum(map(len, sets.values()))) as advance:
            for writer in writers:
                writer.write(advance)
        for writer in writers:
            writer.conclude()
        refuse_existing(out, overwrite)  # before they are tidied, so that a call that may overwrite goes on from here
        for writer in writers:  # when nothing is left to do: what they remove is made anew after a kill
            writer.tars.tidy()
        clear_directory(growing, {"plan", *sets})


def _drift(model: TubeViT, depths: list[int], precision: str) -> dict[str, float]:
    clip = normalise(natural_clip(model.preprocess.frames, model.preprocess.size), model.config.input)
    assert model.trunk is not None
    tokens = named(model.trunk(clip.to(next(model.arm.parameters()).device), depths))
    kept = quantise(tokens, precision)
    return {name: drift(each, dequantise(kept, name)) for name, each in tokens.items()}


def _described(path: Path) -> CachedDataset:
    shards = Shards.open(path)
    return CachedDataset(len(shards) // shards.made["views"], shards.failures, shards.made["record_bytes"])

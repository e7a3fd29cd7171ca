"""The training sets of a recipe through the trunk, once for every view; goes on where it was cut off."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from scaleup.common.distributed import World, own_device
from scaleup.common.files import refuse_existing, take_place
from scaleup.common.progress import progress
from scaleup.common.units import said
from scaleup.config.schema import Recipe
from scaleup.data.shards import Shards
from scaleup.data.token_records import layout, lowered, raised
from scaleup.data.training_sets import open_datasets
from scaleup.data.unfinished import clear, partial_directory
from scaleup.errors import UserError
from scaleup.model.adapter import Adapt
from scaleup.model.precision import drift
from scaleup.model.preprocess import natural_clip, normalise
from scaleup.model.runtime import settle, settle_kernels
from scaleup.model.tubevit import TubeViT
from scaleup.training import cache_size
from scaleup.training.cache_identity import made_of
from scaleup.training.cache_writer import SetWriter, named
from scaleup.training.run_models import began_from, heads_of


def make(
    recipe: Recipe,
    depths: list[int],
    out: str | Path,
    views: int = 1,
    precision: str = "bfloat16",
    limit: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the taps of all training sets of ``recipe`` to ``out``, a shard directory for each.

    View v of a sample is what a run with the recipe's seed sees of it in epoch v. Until all of it is there it grows in
    ``.OUT.partial`` beside ``out``; what is finished in there is verified and kept when the same call is made again.

    Args:
        depths: frozen depths at which to tap, each at least 1.
        precision: in which tokens are kept: float32, bfloat16, or int8 with a scale for each token.
        limit: bytes that the cache may take; by default what is free, less a margin.

    Returns:
        ``{"out", "bytes", "depths", "views", "precision", "trunk", "drift", "datasets": {name: {"samples", "failures",
        "record_bytes"}}, "seconds"}``; ``drift`` is how far z0 and h move by the precision that they are kept in (RMS
        of the difference over RMS, on a made-up clip).

    Raises:
        UserError: ``out`` exists, it would be too large, a depth does not fit the model, or more than ``data.max_bad``
            of the samples cannot be read.
    """
    began, out = time.perf_counter(), Path(out)
    refuse_existing(out, overwrite)
    model, sets = _frozen(recipe, depths), open_datasets(recipe.data)
    blank = {name: cache_size.blank_record(model, each.modality, depths, precision) for name, each in sets.items()}
    _refuse_too_large(sets, blank, views, out, limit)
    how = {"depths": depths, "views": views, "precision": precision, "seed": recipe.seed}
    made = {name: how | _origin(recipe, model, name, each, blank[name]) for name, each in sets.items()}
    settled = _settled(recipe, model)
    for each in made.values():
        each["trunk"] = {key: settled[key] for key in ("precision", "kernels")}
    _write(recipe, model, sets, made, out)
    return {
        "out": str(out),
        "bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
        **{key: how[key] for key in ("depths", "views", "precision")},
        "trunk": settled,
        "drift": _drift(model, depths, precision),
        "datasets": {name: _described(out / name) for name in sets},
        "seconds": time.perf_counter() - began,
    }


def _frozen(recipe: Recipe, depths: list[int]) -> TubeViT:
    """The recipe's model, frozen up to the deepest of ``depths``."""
    model = began_from(recipe, heads_of(recipe))
    for depth in depths:
        if not 1 <= depth <= model.depth:
            raise UserError(f"there are no taps at frozen depth {depth}; this model has 1 to {model.depth}")
    return model.with_arm(max(depths), False, {}, recipe.seed, Adapt("none"))


def _refuse_too_large(
    sets: dict[str, Shards], blank: dict[str, bytes], views: int, out: Path, limit: int | None
) -> None:
    """Say how large the cache will be, and refuse what does not fit."""
    needed = sum(cache_size.cache_bytes(each, len(blank[name]), views) for name, each in sets.items())
    records = ", ".join(f"a view of '{name}' {said(len(record))}" for name, record in blank.items())
    print(f"the cache takes {said(needed)}: {records}", file=sys.stderr)
    cache_size.refuse_too_large(needed, out, limit)


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


def _settled(recipe: Recipe, model: TubeViT) -> dict[str, Any]:
    """Put the trunk where the recipe says, in its precision and with its kernels; returns what was chosen."""
    world = World(0, 1, device := own_device())
    kernels = settle_kernels([model.place(device, recipe.trunk.placement)], recipe.train.kernels, world)
    return settle([model], recipe.trunk, world) | {"kernels": kernels}


def _write(recipe: Recipe, model: TubeViT, sets: dict[str, Shards], made: dict[str, Any], out: Path) -> None:
    plan = json.dumps([recipe.data.batch, made])
    with partial_directory(out, plan) as partial:
        writers = [SetWriter(recipe, model, name, sets[name], made[name], partial / name) for name in sets]
        with progress("caching", sum(map(len, sets.values()))) as advance:
            for writer in writers:
                writer.write(advance)
        for writer in writers:
            writer.conclude()
        clear(partial, set(sets))
        take_place(partial, out)


def _drift(model: TubeViT, depths: list[int], precision: str) -> dict[str, float]:
    clip = normalise(natural_clip(model.preprocess.frames, model.preprocess.size), model.config)
    assert model.trunk is not None
    tokens = named(model.trunk(clip.to(next(model.arm.parameters()).device), depths))
    kept = lowered(tokens, precision)
    return {name: drift(each, raised(kept, name)) for name, each in tokens.items()}


def _described(path: Path) -> dict[str, Any]:
    shards = Shards.open(path)
    samples = len(shards) // shards.made["views"]
    return {"samples": samples, "failures": shards.failures, "record_bytes": shards.made["record_bytes"]}

"""The training sets of a recipe through the trunk, once for every view; goes on where it was cut off."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from scaleup import cli
from scaleup.adapter import Adapt
from scaleup.cache import size
from scaleup.cache.identity import made_of
from scaleup.cache.writer import SetWriter, named
from scaleup.data.loader import open_datasets
from scaleup.data.partial import clear, partial_directory
from scaleup.data.shards import Shards
from scaleup.data.taps import lowered, raised
from scaleup.errors import UserError
from scaleup.files import refuse_existing, take_place
from scaleup.model import TubeViT
from scaleup.precision import drift
from scaleup.recipe import Recipe
from scaleup.training.engine import World
from scaleup.training.frozen import settle, settle_kernels
from scaleup.training.models import began_from, heads_of
from scaleup.transplant.measure import natural_clip, normalise


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
    records = {name: size.record_bytes(model, each.modality, depths, precision) for name, each in sets.items()}
    _refuse_too_large(sets, records, views, out, limit)
    made = {"depths": depths, "views": views, "precision": precision, "seed": recipe.seed}
    origins = {name: made_of(recipe, model, name) for name in sets}  # before anything is cast
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    world = World(0, 1, device)
    kernels = settle_kernels([model.place(device, recipe.trunk.placement)], recipe.train.kernels, world)
    settled = settle([model], recipe.trunk, world) | {"kernels": kernels}
    made |= {"trunk": {"precision": settled["precision"], "kernels": kernels}}
    plan = json.dumps([recipe.data.batch, made, origins])
    with partial_directory(out, plan) as partial:
        writers = [
            SetWriter(recipe, model, name, each, made | _kept(each, origins[name]), records[name], partial / name)
            for name, each in sets.items()
        ]
        with cli.progress("caching", sum(map(len, sets.values()))) as advance:
            for writer in writers:
                writer.write(advance)
        for writer in writers:
            writer.conclude()
        clear(partial, set(sets))
        take_place(partial, out)
    return {
        "out": str(out),
        "bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
        **{key: made[key] for key in ("depths", "views", "precision")},
        "trunk": settled,
        "drift": _drift(model, device, depths, precision),
        "datasets": {name: _described(out / name, records[name]) for name in sets},
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
    sets: dict[str, Shards], records: dict[str, int], views: int, out: Path, limit: int | None
) -> None:
    """Say how large the cache will be, and refuse what does not fit."""
    needed = sum(size.cache_bytes(each, records[name], views) for name, each in sets.items())
    each = ", ".join(f"a view of '{name}' {size.said(one)}" for name, one in records.items())
    print(f"the cache takes {size.said(needed)}: {each}", file=sys.stderr)
    size.refuse_too_large(needed, out, limit)


def _kept(shards: Shards, origin: dict[str, Any]) -> dict[str, Any]:
    """What an index keeps of the shards that taps were made from."""
    return {"modality": shards.modality, "keys": shards.keys, "sizes": shards.sizes, "made_of": origin}


def _drift(model: TubeViT, device: torch.device, depths: list[int], precision: str) -> dict[str, float]:
    clip = normalise(natural_clip(model.preprocess.frames, model.preprocess.size), model.config).to(device)
    assert model.trunk is not None
    tokens = named(model.trunk(clip, depths))
    kept = lowered(tokens, precision)
    return {name: drift(each, raised(kept, name)) for name, each in tokens.items()}


def _described(path: Path, record: int) -> dict[str, Any]:
    shards = Shards.open(path)
    return {
        "samples": len(shards) // shards.made["views"],
        "failures": shards.failures,
        "record_bytes": record,
    }

"""What a run reads beside its recipe, by content: a run goes on with the very same, or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scaleup.checkpoint.model_directory import local
from scaleup.config.schema import Recipe
from scaleup.data.index import index_bytes
from scaleup.data.shards import Shards, list_sha256
from scaleup.data.token_records import CachedSet, in_cache
from scaleup.data.training_sets import open_datasets
from scaleup.errors import UserError

PIECES, PIECE = 16, 1 << 16  # of a file of weights: what was trained anew differs in each


def digests(recipe: Recipe) -> dict[str, str]:
    """sha256 by setting: of the index of each set of shards, which has those of its tars, and of the model's files.

    Of large files pieces are read, evenly spread from the first byte to the last.
    """
    data = recipe.data if recipe.trunk.cache is None else in_cache(recipe.data, recipe.trunk.cache)
    sets = {f"data.train.{name}.shards": each.shards for name, each in data.train.items()}
    sets |= {"data.valid.shards": data.valid.shards} if data.valid else {}
    found = {name: hashlib.sha256(index_bytes(shards)) for name, shards in sets.items()}
    weights = recipe.model.backbone.weights
    if recipe.model.load is not None:
        found["model.load"] = _files(local(recipe.model.load))
    elif weights is not None and Path(weights).exists():
        found["model.backbone.weights"] = _files(Path(weights))
    return {name: digest.hexdigest() for name, digest in found.items()}


def lists(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Of each training set its name, its modality, how many samples it has, and the sha256 of their list."""
    found = {}
    for name, each in recipe.data.train.items():
        made = CachedSet(f"{recipe.trunk.cache}/{name}") if recipe.trunk.cache else Shards.open(each.shards)
        about = {"shards": each.shards.rstrip("/").rsplit("/", 1)[-1], "modality": made.modality}
        found[name] = about | {"samples": len(made.keys), "list_sha256": list_sha256(made.keys)}
    return found


def most_frequent(recipe: Recipe) -> dict[str, dict[str, float]]:
    """Of each training set and head, the share of the class that most samples have."""
    data = recipe.data if recipe.trunk.cache is None else in_cache(recipe.data, recipe.trunk.cache)
    return {
        name: {head: _largest(shards.labels[label]) for head, label in data.train[name].heads.items()}
        for name, shards in open_datasets(data).items()
    }


def _largest(labels: np.ndarray) -> float:
    return float(np.bincount(labels).max() / len(labels))


def refuse_changed(there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """UserError naming the settings that no longer name what they did."""
    changed = [name for name, digest in there.items() if here.get(name) != digest]
    if changed:
        raise UserError(
            f"the run cannot go on, what it reads has changed since its checkpoint: {', '.join(changed)}; "
            "put it back as it was, or begin anew with --overwrite"
        )


def _files(path: Path) -> hashlib._Hash:
    """Of a file, or of the configuration and the weights in a directory."""
    digest = hashlib.sha256()
    inner = [*path.rglob("config.json"), *path.rglob("*.safetensors")] if path.is_dir() else [path]
    for file in sorted(inner):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)} {size} ".encode())
        with file.open("rb") as opened:
            for piece in range(PIECES):
                opened.seek(max(0, size - PIECE) * piece // (PIECES - 1))
                digest.update(opened.read(PIECE))
    return digest

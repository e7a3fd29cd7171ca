"""Hashes of the files that a run reads: a run does not go on with others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from scaleup.backbones.backbone import resolve
from scaleup.checkpoint.hub import LOCAL, is_path
from scaleup.checkpoint.model_directory import local
from scaleup.common.errors import UserError
from scaleup.common.tensors import is_index, read_index, split
from scaleup.config.schema import Backbone, Recipe, shards_of
from scaleup.data.index import index_sha256
from scaleup.data.loader import order_of
from scaleup.training.run_inputs import data_of, opened_sets

PIECES, PIECE = 16, 1 << 16  # of a file of weights: after more training, all pieces differ
ORDER, PARTS = " (the order of its samples)", " (its parts)"  # of entries that checkpoints of older versions lack


def hash_inputs(recipe: Recipe) -> dict[str, str]:
    """sha256 by setting: of the index of each shard directory, which has the sha256 of the tars, and of model files.

    Of large files, only evenly spread pieces are read. Where the order of a set is computed place by place, its version
    is one more entry.
    """
    data = data_of(recipe)
    hashes = {name: index_sha256(shards) for name, shards in shards_of(data).items()}
    for name, opened in opened_sets(recipe).items():
        if version := order_of(name, data, opened, recipe.seed).version:
            hashes[f"data.train.{name}{ORDER}"] = version
    if recipe.model.load is None:
        return hashes | _hash_backbone(recipe.model.backbone)
    return hashes | {"model.load": _hash_model(local(recipe.model.load))}


def refuse_changed(there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raise UserError if a file has changed, or this version draws samples in another order; it names the settings."""
    if other := [name.removesuffix(ORDER) for name in here if name.endswith(ORDER) and there.get(name) != here[name]]:
        raise UserError(
            f"the run cannot go on: another version of scaleup began it, with another order of {', '.join(other)}; "
            "finish it with that version, or begin anew with --overwrite"
        )
    changed = [name for name, digest in here.items() if there.get(name, digest) != digest]
    if changed:
        raise UserError(
            f"the run cannot go on, what it reads has changed since its checkpoint: {', '.join(changed)}; "
            "put it back as it was, or begin anew with --overwrite"
        )


def _hash_backbone(backbone: Backbone) -> dict[str, str]:
    """Hashes of the files of this machine that a backbone's name and its weights stand for."""
    hashes = {}
    for key, place in {"name": resolve(backbone.name), "weights": backbone.weights}.items():
        path, _ = split((place or "").removeprefix(LOCAL))
        if place and is_path(place) and path.exists():
            hashes[f"model.backbone.{key}"] = _hash_model(path)
            if parts := _parts(path):
                hashes[f"model.backbone.{key}{PARTS}"] = _hash_files(path if path.is_dir() else path.parent, parts)
    return hashes


def _parts(path: Path) -> list[Path]:
    """Torch's checkpoints in a directory; the files that an index names."""
    if path.is_dir():
        return [file for ending in ("bin", "pt", "pth") for file in path.rglob(f"*.{ending}")]
    return list(set(read_index(path).values())) if is_index(path) else []


def _hash_model(path: Path) -> str:
    """The sha256 of a file, or of the configuration and the safetensors files in a directory."""
    return _hash_files(path, [*path.rglob("config.json"), *path.rglob("*.safetensors")] if path.is_dir() else [path])


def _hash_files(place: Path, files: Iterable[Path]) -> str:
    """The sha256 of files, with their names seen from ``place``."""
    digest = hashlib.sha256()
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(place)} {size} ".encode())
        with file.open("rb") as opened:
            for piece in range(PIECES):
                opened.seek(max(0, size - PIECE) * piece // (PIECES - 1))
                digest.update(opened.read(PIECE))
    return digest.hexdigest()

"""What a run begins from: the models of its arms, and the content of the files that it reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scaleup.backbones.weights import SkipInit
from scaleup.checkpoint.model_directory import local
from scaleup.config.schema import Arm, Recipe
from scaleup.data.loader import classes_of, open_datasets
from scaleup.data.shards import Shards, index_bytes, list_sha256
from scaleup.data.token_records import CachedSet, in_cache
from scaleup.errors import UserError
from scaleup.model.adapter import Adapt
from scaleup.model.arm import Heads
from scaleup.model.build import fresh, load, load_on_meta
from scaleup.model.tubevit import TubeViT


def build_models(recipe: Recipe, arms: dict[str, Arm]) -> dict[str, TubeViT]:
    """A model for each arm; frozen tensors are shared, what trains is each arm's own."""
    heads = heads_of(recipe)
    return _with_arms(starting_model(recipe, heads), arms, heads, recipe.seed)


def heads_of(recipe: Recipe) -> Heads:
    """Heads and their classes; with a cache nothing of the videos is needed but the index of their shards."""
    cache = recipe.trunk.cache
    return classes_of(recipe.data if cache is None else in_cache(recipe.data, cache))


def starting_model(recipe: Recipe, heads: Heads) -> TubeViT:
    """The model that all arms begin from. With a cache its frozen blocks stay in their file, where they have one."""
    if recipe.model.load is None:
        return fresh(recipe.model, heads, recipe.seed)
    if recipe.trunk.cache is not None:
        with suppress(UserError):  # no file to stay in; what else is wrong is said below
            return load(recipe.model.load, placement="disk")
    return load(recipe.model.load, placement=recipe.trunk.placement)


def models_on_meta(recipe: Recipe, arms: dict[str, Arm]) -> dict[str, TubeViT]:
    """The same models on the meta device: no weight is read, drawn or copied."""
    heads = heads_of(recipe)
    with torch.device("meta"), SkipInit():
        if recipe.model.load is not None:
            template = load_on_meta(recipe.model.load)
        else:
            backbone = replace(recipe.model.backbone, weights="meta")
            template = fresh(replace(recipe.model, backbone=backbone), heads, recipe.seed)
        return _with_arms(template, arms, heads, recipe.seed)


def _with_arms(template: TubeViT, arms: dict[str, Arm], heads: Heads, seed: int) -> dict[str, TubeViT]:
    for name, arm in arms.items():
        if arm.frozen_depth > template.depth:
            raise UserError(
                f"arm {name!r} has frozen_depth {arm.frozen_depth}; the model has {template.depth} blocks, "
                f"allowed are 0 to {template.depth}"
            )
    return {
        name: template.with_arm(
            arm.frozen_depth, arm.gate, heads, seed, Adapt(arm.adapt, arm.lora_rank, arm.lora_alpha)
        )
        for name, arm in arms.items()
    }


def sizes(model: TubeViT) -> dict[str, int]:
    """How many blocks are frozen, and how many parameters are and are not."""
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    return {"frozen_depth": model.frozen_depth, "frozen_parameters": counts[False], "trained_parameters": counts[True]}


PIECES, PIECE = 16, 1 << 16  # of a file of weights: what was trained anew differs in each


def hash_inputs(recipe: Recipe) -> dict[str, str]:
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


def list_inputs(recipe: Recipe) -> dict[str, dict[str, Any]]:
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


def flatten_keys(value: Any, at: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by key path."""
    if not isinstance(value, dict) or not value:
        return {at: value}
    return {
        key: leaf for name, each in value.items() for key, leaf in flatten_keys(each, f"{at}.{name}".strip(".")).items()
    }

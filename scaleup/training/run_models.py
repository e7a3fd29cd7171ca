"""The models of a run, before any step of it: one for each arm, and how large they are."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch

from scaleup.backbones.meta_init import Undrawn
from scaleup.config.schema import Arm, Recipe
from scaleup.data.token_records import in_cache
from scaleup.data.training_sets import classes_of
from scaleup.errors import UserError
from scaleup.model.adapter import Adapt
from scaleup.model.arm import Heads
from scaleup.model.build import fresh, load, outline
from scaleup.model.tubevit import TubeViT


def models(recipe: Recipe, arms: dict[str, Arm]) -> dict[str, TubeViT]:
    """A model for each arm; frozen tensors are shared, what trains is each arm's own."""
    heads = heads_of(recipe)
    return _with_arms(began_from(recipe, heads), arms, heads, recipe.seed)


def heads_of(recipe: Recipe) -> Heads:
    """Heads and their classes; with a cache nothing of the videos is needed but the index of their shards."""
    cache = recipe.trunk.cache
    return classes_of(recipe.data if cache is None else in_cache(recipe.data, cache))


def began_from(recipe: Recipe, heads: Heads) -> TubeViT:
    """The model that all arms begin from. With a cache its frozen blocks stay in their file, where they have one."""
    if recipe.model.load is None:
        return fresh(recipe.model, heads, recipe.seed)
    if recipe.trunk.cache is not None:
        with suppress(UserError):  # no file to stay in; what else is wrong is said below
            return load(recipe.model.load, placement="disk")
    return load(recipe.model.load, placement=recipe.trunk.placement)


def outlines(recipe: Recipe, arms: dict[str, Arm]) -> dict[str, TubeViT]:
    """The same models on the meta device: no weight is read, drawn or copied."""
    heads = heads_of(recipe)
    with torch.device("meta"), Undrawn():
        if recipe.model.load is not None:
            template = outline(recipe.model.load)
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

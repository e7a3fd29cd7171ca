"""The inputs of a run: the models of its arms, and what its training sets are."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scaleup.backbones.weights import SkipInit
from scaleup.checkpoint.model_directory import HeadLoss, Pool
from scaleup.common.errors import UserError
from scaleup.config.schema import Arm, Data, Head, Loss, Recipe
from scaleup.data.labels import NUMBER, POWERS, class_counts, mean_and_deviation
from scaleup.data.loader import classes_of, open_datasets
from scaleup.data.repeats import Repeats, draw_repeats
from scaleup.data.shards import Shards
from scaleup.data.token_records import CachedSet, in_cache
from scaleup.model.adapter import Adapt
from scaleup.model.arm import Heads
from scaleup.model.build import fresh, load, load_on_meta
from scaleup.model.tubevit import TubeViT


def build_models(recipe: Recipe, arms: dict[str, Arm]) -> dict[str, TubeViT]:
    """A model for each arm. The arms share frozen tensors; each has its own trained ones."""
    return _with_arms(starting_model(recipe, heads_of(recipe)), arms, recipe)


def heads_of(recipe: Recipe) -> Heads:
    """The heads and their classes. With a token cache, the videos need not exist, only the index of their shards.

    Raises:
        UserError: a dataset does not open, or has labels that a head with its loss cannot learn.
    """
    return classes_of(data_of(recipe), recipe.heads)


def refuse_uneven(recipe: Recipe, ranks: int) -> None:
    """Refuse a batch that does not divide into micro-batches of the same size for each rank.

    Raises:
        UserError: it does not.
    """
    parts = ranks * recipe.train.accumulate
    if recipe.data.batch % parts:
        raise UserError(
            f"data.batch {recipe.data.batch} cannot be divided evenly by {ranks} ranks times train.accumulate "
            f"{recipe.train.accumulate}; allowed are multiples of {parts}"
        )


NARROW = 1e-5  # a deviation below this share of the mean is not seen in float32


def losses_of(recipe: Recipe) -> dict[str, HeadLoss]:
    """The losses that are not softmax, by head; those of numbers with mean and standard deviation of all labels that
    the head learns from.

    Raises:
        UserError: a dataset does not open, or all labels of a head are the same number, or the same to float32.
    """
    losses = {}
    for head, sets in _learnt(recipe).items() if recipe.heads else ():
        kind = loss_of(recipe, head)
        losses[head] = HeadLoss(kind)
        if kind in ("l2", "l1"):
            mean, deviation = mean_and_deviation([shards.labels[label] for label, shards in sets])
            if not deviation:
                raise UserError(f"head {head!r} has nothing to learn: its label is {mean:g} in every sample")
            if deviation < NARROW * abs(mean):
                raise UserError(
                    f"head {head!r} has nothing to learn in float32: its label differs by {deviation:.3g} around "
                    f"{mean:.9g}; subtract {mean:.9g} from it in every sample"
                )
            losses[head] = HeadLoss(kind, _rounded(mean, deviation), _rounded(deviation, deviation))
    return {head: loss for head, loss in losses.items() if loss.kind != "softmax"}


def class_weights(recipe: Recipe) -> dict[str, Tensor]:
    """Weights (C,) of the classes of the heads with ``balance``, from all samples that a head learns from.

    softmax: a sample weighs 1/n (full) or 1/sqrt(n), where n is the number of samples of its class, times a factor that
    makes the mean weight of all samples 1. sigmoid: a sample that has a class weighs r (full) or sqrt(r) in that class,
    where r is the number of samples without it over those with it. A class without samples weighs 0, or 1 (sigmoid).
    """
    weights, balanced = {}, {head: each for head, each in recipe.heads.items() if each.balance != "none"}
    for head, sets in _learnt(recipe).items() if balanced else ():
        if (settings := balanced.get(head)) is not None:
            power = POWERS[settings.balance]
            columns = [class_counts(shards.labels[label], len(shards.classes[label])) for label, shards in sets]
            total, counts = sum(len(shards) for _, shards in sets), np.sum(columns, axis=0)
            weights[head] = torch.from_numpy(_weights(counts, total, power, settings.loss)).float()
    return weights


def _weights(counts: np.ndarray, total: int, power: float, loss: str) -> np.ndarray:
    present = np.maximum(counts, 1)
    if loss == "sigmoid":
        return np.where(counts, (np.maximum(total - counts, 1) / present) ** power, 1)
    inverse = np.where(counts, present**-power, 0)
    return inverse * total / (inverse * counts).sum()


def _rounded(number: float, deviation: float) -> float:
    """To a small share of the deviation, so that it does not depend on how often a cache has a sample."""
    return float(round(number, 4 - math.floor(math.log10(deviation))))


def loss_of(recipe: Recipe, head: str) -> Loss:
    return recipe.heads.get(head, Head()).loss


def _learnt(recipe: Recipe) -> dict[str, list[tuple[str, Shards]]]:
    """For each head the labels that it learns, with their shards."""
    data, learnt = data_of(recipe), dict[str, list[tuple[str, Shards]]]()
    for name, shards in open_datasets(data).items():
        for head, label in data.train[name].heads.items():
            learnt.setdefault(head, []).append((label, shards))
    return learnt


def data_of(recipe: Recipe) -> Data:
    """The recipe's data, with the training sets that the run reads; with a token cache, those of the cache."""
    cache = recipe.trunk.cache
    return recipe.data if cache is None else in_cache(recipe.data, cache)


def starting_model(recipe: Recipe, heads: Heads) -> TubeViT:
    """The model from which all arms start. With a token cache, its frozen blocks stay in their file, if possible."""
    if recipe.model.load is None:
        return fresh(recipe.model, heads, recipe.seed)
    if recipe.trunk.cache is not None:
        with suppress(UserError):  # the blocks have no file; other errors are raised below
            return load(recipe.model.load, placement="disk")
    return load(recipe.model.load, placement=recipe.trunk.placement)


def models_on_meta(recipe: Recipe, arms: dict[str, Arm]) -> dict[str, TubeViT]:
    """The same models on the meta device: no weights are read, drawn or copied."""
    heads = heads_of(recipe)
    with torch.device("meta"), SkipInit():
        if recipe.model.load is not None:
            template = load_on_meta(recipe.model.load)
        else:
            backbone = replace(recipe.model.backbone, weights="meta")
            template = fresh(replace(recipe.model, backbone=backbone), heads, recipe.seed)
        return _with_arms(template, arms, recipe)


def _with_arms(template: TubeViT, arms: dict[str, Arm], recipe: Recipe) -> dict[str, TubeViT]:
    heads, losses, models = heads_of(recipe), losses_of(recipe), dict[str, TubeViT]()
    for name, arm in arms.items():
        if arm.frozen_depth > template.depth:
            raise UserError(
                f"arm {name!r} has frozen_depth {arm.frozen_depth}; the model has {template.depth} blocks, "
                f"allowed are 0 to {template.depth}"
            )
        how = arm.frozen_depth, arm.gate, heads, recipe.seed, Adapt(arm.adapt, arm.lora_rank, arm.lora_alpha)
        try:
            models[name] = template.with_arm(*how, pool_of(arm), losses)
        except UserError as error:
            raise UserError(f"arm {name!r}: {error}") from error
    return models


def pool_of(arm: Arm) -> Pool | None:
    """The entry in ``config.json``; None: the backbone's own pool."""
    return None if arm.pool == "own" else Pool(arm.pool, arm.pool_queries, arm.pool_heads, arm.pool_depth, arm.taps)


def sizes(model: TubeViT) -> dict[str, int]:
    """The number of frozen blocks, of frozen parameters and of trained parameters."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "frozen_depth": model.frozen_depth,
        "frozen_parameters": total - trained,
        "trained_parameters": trained,
    }


def list_inputs(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The name, modality, number of samples and sha256 of the sample list of each training set."""
    return {
        name: {
            "shards": recipe.data.train[name].shards.rstrip("/").rsplit("/", 1)[-1],
            "modality": opened.modality,
            "samples": len(opened.keys),
            "list_sha256": opened.list_sha256,
        }
        for name, opened in opened_sets(recipe).items()
    }


def opened_sets(recipe: Recipe) -> dict[str, Shards | CachedSet]:
    """The training sets that the run reads."""
    cache = recipe.trunk.cache
    sets = recipe.data.train.items()
    return {name: CachedSet(f"{cache}/{name}") if cache else Shards.open(dataset.shards) for name, dataset in sets}


def guesses(recipe: Recipe) -> dict[str, dict[str, float]]:
    """The accuracy of guessing, by training set and head: the share that the most frequent class has of what is drawn;
    0 for a number, and 1 for a head with balanced classes, whose accuracy may be below that share although it
    learns."""
    data, shares = data_of(recipe), dict[str, dict[str, float]]()
    for name, shards in open_datasets(data).items():
        repeats = draw_repeats(name, data.train[name], shards)
        shares[name] = {
            head: _guess(shards, label, recipe.heads.get(head, Head()), repeats)
            for head, label in data.train[name].heads.items()
        }
    return shares


def _guess(shards: Shards, label: str, head: Head, repeats: Repeats | None) -> float:
    if head.balance != "none":
        return 1.0
    if shards.kind(label) == NUMBER:
        return 0.0
    labels, classes = shards.labels[label], len(shards.classes[label])
    if repeats is None:
        return float(class_counts(labels, classes).max() / len(labels))
    return float(class_counts(labels, classes, repeats.of).max() / repeats.ends[-1])


def flatten_keys(nested: dict[str, Any], separator: str = ".") -> dict[str, Any]:
    """The values of nested mappings, by key path."""
    leaves: dict[str, Any] = {}
    for key, value in nested.items():
        inner = flatten_keys(value, separator) if isinstance(value, dict) else {}
        leaves |= {f"{key}{separator}{path}": leaf for path, leaf in inner.items()} or {key: value}
    return leaves

"""Mistakes of a recipe that are in a combination of values, or in directories that do not exist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scaleup.common.errors import nearest
from scaleup.config.schema import Arm, Augment, Data, Model, Recipe, Train, Trunk, expand, schedule, shards_of


def contradictions(recipe: Recipe, given: Any) -> Iterator[str]:
    """A sentence for each contradiction. ``given`` is the recipe as it was written, without defaults."""
    yield from _in_model(recipe.model, given)
    arms = _arms(recipe)
    every = [recipe.arm, *arms.values()]
    frozen = any(arm.frozen_depth for arm in every)
    yield from _in_trunk(recipe.trunk, recipe.model.load is not None, frozen)
    yield from _in_places(recipe)
    yield from _in_data(recipe.data)
    yield from _in_training(recipe, frozen)
    yield from _in_names(recipe)
    yield from _in_heads(recipe)
    yield from _unread(arms, every)
    for at, arm in arms.items():
        yield from _in_arm(at, arm, recipe)
        yield from _in_time(at, arm, recipe.train)


def _in_model(model: Model, given: Any) -> Iterator[str]:
    if model.load is not None:
        others = [key for key in given["model"] if key != "load"]
        yield from (f"model.{key}: cannot change a loaded model (model.load)" for key in others)
    if model.backbone.weights is None and model.inflate:
        yield "model.inflate: True needs the patches of an image model, but model.backbone.weights names no weights"
    if model.backbone.weights is None and (count := model.backbone.fresh_blocks):
        yield (
            f"model.backbone.fresh_blocks: {count} blocks can only be added to a model with weights, but "
            "model.backbone.weights names none; for random weights change the depth in model.backbone.kwargs"
        )


def _in_trunk(trunk: Trunk, loaded: bool, frozen: bool) -> Iterator[str]:
    if trunk.placement == "disk" and not loaded:
        yield "trunk.placement: disk needs a loaded model (model.load), whose blocks are read from its backbone's file"
    if trunk.placement == "disk" and trunk.precision == "int8":
        yield "trunk.precision: int8 blocks must stay in memory; with trunk.placement disk choose another precision"
    if trunk.placement != "device" and not frozen:
        yield f"trunk.placement: {trunk.placement} is for frozen blocks, but no arm has any (frozen_depth)"


def _in_places(recipe: Recipe) -> Iterator[str]:
    for at, place in shards_of(recipe.data).items():
        if _is_missing(place):
            yield f"{at}: {place!r} is not a directory of shards or its address"
    if recipe.trunk.cache is not None and _is_missing(recipe.trunk.cache):
        yield f"trunk.cache: {recipe.trunk.cache!r} is not a directory with a cache or its address"


def _is_missing(place: str) -> bool:
    return "://" not in place and not Path(place).is_dir()


def _in_data(data: Data) -> Iterator[str]:
    for name, dataset in data.train.items():
        if dataset.sampling_label is not None and dataset.sampling == "uniform":
            yield (
                f"data.train.{name}.sampling_label: '{dataset.sampling_label}' says which classes to balance, but "
                f"data.train.{name}.sampling is uniform; allowed with it are sqrt and full"
            )
        magnitude, layers = dataset.augment.randaugment_magnitude, dataset.augment.randaugment_layers
        if magnitude != Augment.randaugment_magnitude and not layers:
            at = f"data.train.{name}.augment.randaugment_"
            yield f"{at}magnitude: {magnitude} is for {at}layers, which is 0"


def _in_training(recipe: Recipe, frozen: bool) -> Iterator[str]:
    train = recipe.train
    for name in {name for name in train.log if train.log.count(name) > 1}:
        yield f"train.log: {train.log} names {name} twice"
    if train.warmup > train.steps:
        yield f"train.warmup: {train.warmup} is more than train.steps, {train.steps}"
    if train.valid_every and recipe.data.valid is None:
        yield f"train.valid_every: {train.valid_every} needs a validation set (data.valid)"
    for kind in [kind for kind in ("mixup", "cutmix") if recipe.trunk.cache and getattr(train, kind)]:
        yield f"train.{kind}: mixes pixels before the trunk, but a cache (trunk.cache) only has the trunk's output"
    if train.compile == "blocks" and train.kernels in ("library", "products", "fast"):
        yield f"train.compile: blocks computes otherwise than train.kernels {train.kernels}; choose auto or lean"
    if train.compile == "blocks" and train.zero_stage == 3:
        yield "train.compile: blocks needs whole weights, but train.zero_stage 3 divides them"
    if train.cuda_graphs == "trunk" and (recipe.trunk.cache or recipe.trunk.placement != "device"):
        other = "trunk.cache" if recipe.trunk.cache else f"trunk.placement {recipe.trunk.placement}"
        yield f"train.cuda_graphs: trunk records frozen blocks that stay on a GPU, but with {other} they do not"
    if train.cuda_graphs == "trunk" and not frozen:
        yield "train.cuda_graphs: trunk records frozen blocks, but no arm has any (frozen_depth)"
    if train.offload and train.zero_stage == 0:
        yield "train.offload: True needs ZeRO, but train.zero_stage is 0"


def _in_names(recipe: Recipe) -> Iterator[str]:
    for name in sorted({"tensorboard", "wandb", "checkpoints", "parts", "jobs"} & recipe.arms.keys()):
        yield f"arms.{name}: this name is reserved, because a run keeps its {name} there"
    for key, values in recipe.grid.items():
        repeated = [value for number, value in enumerate(values) if value in values[:number]]
        yield from (f"grid.{key}: {value!r} is listed twice" for value in dict.fromkeys(repeated))
    listed = _changed(recipe.arm, recipe.arms)
    for name, arm in _changed(recipe.arm, expand(recipe.grid)).items():
        if same := [other for other in listed if other == name or listed[other] == arm]:
            yield f"grid.{name}: is the same arm as arms.{same[0]}"


def _in_heads(recipe: Recipe) -> Iterator[str]:
    learnt = [head for dataset in recipe.data.train.values() for head in dataset.heads]
    for head in recipe.heads.keys() - set(learnt):
        known = nearest(head, learnt) or f"; heads: {', '.join(dict.fromkeys(learnt)) or 'none'}"
        yield f"heads.{head}: no training set has this head{known}"
    for head, settings in recipe.heads.items():
        if settings.loss in ("l2", "l1") and settings.balance != "none":
            yield f"heads.{head}.balance: a number (loss {settings.loss}) has no classes to balance"
        if settings.loss in ("l2", "l1") and settings.focal:
            yield f"heads.{head}.focal: a number (loss {settings.loss}) has no focal loss"


def _arms(recipe: Recipe) -> dict[str, Arm]:
    """All arms, by the path of their settings: arms.NAME, grid.NAME or arm."""
    named = {f"arms.{name}": arm for name, arm in _changed(recipe.arm, recipe.arms).items()}
    named |= {f"grid.{name}": arm for name, arm in _changed(recipe.arm, expand(recipe.grid)).items()}
    return named or {"arm": recipe.arm}


def _changed(arm: Arm, changes: Mapping[str, dict[str, Any]]) -> dict[str, Arm]:
    return {name: replace(arm, **settings) for name, settings in changes.items()}


READ_WITH = {  # settings of an arm -> those that read them
    **dict.fromkeys(("lora_rank", "lora_alpha"), ("adapt", ("lora", "dora"))),
    **dict.fromkeys(("pool_queries", "pool_heads", "pool_depth"), ("pool", ("attentive",))),
}


def _unread(arms: Mapping[str, Arm], every: Sequence[Arm]) -> Iterator[str]:
    """Settings that no arm reads."""
    for name, (key, choices) in READ_WITH.items():
        given = [f"{at}.{name}: {getattr(arm, name)}" for at, arm in arms.items() if vars(arm)[name] != vars(Arm)[name]]
        if given and not any(getattr(arm, key) in choices for arm in every):
            yield f"{given[0]} is for {key} {' and '.join(choices)}, which no arm has"


def _in_arm(at: str, arm: Arm, recipe: Recipe) -> Iterator[str]:
    if arm.gate and arm.frozen_depth == 0:
        yield f"{at}.gate: a gate needs frozen blocks below it, but frozen_depth is 0"
    if above := [depth for depth in arm.taps if depth >= arm.frozen_depth]:
        yield f"{at}.taps: {above[0]} is not below frozen_depth, {arm.frozen_depth}"
    if len(set(arm.taps)) < len(arm.taps):
        yield f"{at}.taps: {arm.taps} names a depth twice"
    if recipe.train.zero_stage == 3 and arm.adapt != "full":
        yield (
            f"{at}.adapt: {arm.adapt} leaves blocks frozen that arms share with the trunk, and train.zero_stage 3 "
            "would divide them; allowed with it is full"
        )
    if recipe.train.zero_stage == 3 and arm.frozen_depth == 0:
        yield (
            f"{at}.frozen_depth: 0 trains the tokenizer, whose weights are read outside of its forward pass, but "
            "train.zero_stage 3 divides them"
        )
    if arm.taps and arm.pool == "own":
        yield f"{at}.taps: the backbone's own pool reads no other depth; allowed are pool: mean and pool: attentive"
    if recipe.trunk.cache and arm.frozen_depth == 0:
        yield f"{at}.frozen_depth: 0 trains the tokenizer on pixels, but a cache (trunk.cache) has no pixels"


def _in_time(at: str, arm: Arm, train: Train) -> Iterator[str]:
    steps, warmup = schedule(arm, train)
    if steps > train.steps:
        yield f"{at}.steps: {steps} is more than train.steps, {train.steps}"
    if warmup > steps and (arm.steps, arm.warmup) != (None, None):
        yield f"{at}.warmup: {warmup} is more than {at}.steps, {steps}"
    if arm.patience and not train.valid_every:
        yield f"{at}.patience: {arm.patience} counts validations, but train.valid_every is 0"

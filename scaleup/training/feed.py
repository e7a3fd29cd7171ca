"""What the arms of a run are fed: what the trunk makes of batches of pixels, or has made of them once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scaleup.checkpoint.model_directory import public_name
from scaleup.common import tensors
from scaleup.common.distributed import World
from scaleup.common.errors import UserError
from scaleup.config.schema import Recipe, Train
from scaleup.data.batches import Batch
from scaleup.data.index import index_sha256
from scaleup.data.loader import train_loader
from scaleup.data.token_records import CachedSet, cached_loader, cached_sets
from scaleup.data.upload import upload
from scaleup.model.objective import Objective
from scaleup.model.tokenizer import Context
from scaleup.model.trunk import Inputs, taps_of
from scaleup.model.tubevit import TubeViT, arm_inputs, depths_of
from scaleup.training.run_inputs import flatten_keys


class Fed(NamedTuple):
    """This rank's part of the batch of one step: ``size`` samples of one dataset."""

    dataset: str
    size: int
    labels: dict[str, Tensor]  # by head, see scaleup.data.batches.Batch
    mix: Mix | None
    inputs: Callable[[slice], Inputs]  # of some rows; computed when it is called


class Live:
    """Decoded pixels through one trunk, the deepest of ``models``, which serves them all; from step ``start`` on.

    ``models`` may become fewer on the way, and the trunk then computes no more than they need.
    """

    def __init__(self, recipe: Recipe, models: Collection[TubeViT], world: World, start: int) -> None:
        self.recipe, self.world, self.start = recipe, world, start
        deepest = max(models, key=lambda model: model.frozen_depth)
        self.preprocess, self.trunk = deepest.preprocess, deepest.trunk
        self.models = models
        self.batches = train_loader(
            recipe.data,
            deepest.config.input,
            recipe.seed,
            recipe.train.steps,
            start=start,
            rank=world.rank,
            world=world.size,
            joined=world.join_lists,
            device=world.device,
        )

    def __iter__(self) -> Iterator[Fed]:
        # Not a generator, which would hold a batch as uint8 for all of its step.
        return map(self._fed, count(self.start), self.batches)

    def _fed(self, step: int, batch: Batch) -> Fed:
        pixels = self.preprocess(batch.pixels)  # (B, 3, T, H, W) or (B, 3, H, W)
        mix = draw_mix(self.recipe.train, pixels.shape, self.recipe.seed, step)
        if mix is not None:
            mix = mix._replace(order=upload(mix.order, self.world.device))
        mixed, size = (pixels if mix is None else mix.pixels(pixels)), len(pixels)
        return Fed(
            batch.dataset, size, batch.labels, mix, lambda rows: arm_inputs(self.trunk, mixed[rows], self.models)
        )


class Cached:
    """The same batches from the token cache ``trunk.cache``: no video is decoded and no frozen block is computed.

    Raises:
        UserError: the cache lacks a dataset or a depth, or was made by another trunk, tokenizer or transform.
    """

    def __init__(self, recipe: Recipe, models: Collection[TubeViT], world: World, start: int) -> None:
        assert recipe.trunk.cache is not None
        self.world, self.sets = world, cached_sets(recipe.data, recipe.trunk.cache)
        deepest = max(models, key=lambda model: model.frozen_depth)
        self.models = models
        for name, cached in self.sets.items():
            refuse_other(cached, made_of(recipe, deepest, name), depths_of(models), recipe.trunk.precision or "auto")
        for model in models:
            model.place(world.device, None)
        self.contexts = {name: _context(deepest, cached) for name, cached in self.sets.items()}
        self.made = next(iter(self.sets.values())).made
        steps = range(start, recipe.train.steps)
        how = world.rank, world.size, world.join_lists, world.device
        self.batches = cached_loader(recipe.data, self.sets, recipe.seed, steps, *how)

    def __iter__(self) -> Iterator[Fed]:
        return map(self._fed, self.batches)

    def _fed(self, batch: Batch) -> Fed:
        return Fed(batch.dataset, len(batch.keys), batch.labels, None, partial(self._inputs, batch))

    def _inputs(self, batch: Batch, rows: slice) -> Inputs:
        tokens_of = partial(self.sets[batch.dataset].tokens, batch.pixels[rows])
        z0 = tokens_of("z0") if any(model.arm.gate is not None for model in self.models) else None
        tokens = {depth: tokens_of(f"h{depth}") for depth in depths_of(self.models)}
        return dict(taps_of(z0, tokens, self.contexts[batch.dataset]))


@torch.no_grad()
def _context(model: TubeViT, cached: CachedSet) -> Context:
    """What blocks are told beside the tokens of a dataset."""
    frames = 1 if cached.modality == "image" else model.preprocess.frames
    return model.tokenizer.context((frames, *model.preprocess.size))


TOKENIZER = ("frames", "tubes", "interpolate", "positions")  # of config.json


def made_of(recipe: Recipe, model: TubeViT, dataset: str) -> dict[str, Any]:
    """What the taps of a dataset are made of; ``blocks`` are as many sha256 as ``model`` has frozen blocks.

    The trunk must still be as it was loaded, in float32.
    """
    config, tokenizer = model.config.to_json(), tensors.fingerprint(tensors.hashes(model.tokenizer.state_dict()))
    parts = {
        "shards": index_sha256(recipe.data.train[dataset].shards),
        "input": config["input"],
        "augment": asdict(recipe.data.train[dataset].augment),
        "backbone": {key: config["backbone"][key] for key in ("name", "kwargs", "sha256")},
        "tokenizer": {key: config[key] for key in TOKENIZER} | {"sha256": tokenizer},
        "blocks": [_block_sha256(model, index) for index in range(model.frozen_depth)],
    }
    return json.loads(json.dumps(parts))  # as an index gives it back


def refuse_other(cached: CachedSet, own: dict[str, Any], depths: Collection[int], precision: str) -> None:
    """Refuse a cache that is not what the trunk of this run would give.

    Args:
        own: what the taps of this run are made of, see :func:`made_of`.
        depths: those that the run needs.
        precision: of the trunk, as the recipe has it.

    Raises:
        UserError: a depth is not there, or what differs.
    """
    index, blocks = cached.made, len(own["blocks"])
    if lacking := sorted(set(depths) - set(index["depths"])):
        have = ", ".join(map(str, index["depths"]))
        raise UserError(f"the cache '{cached.path}' has no taps at frozen depth {lacking[0]}; it has those at {have}")
    cast = index["trunk"]["precision"]
    stored = _leaves(index["made_of"], cast, blocks)
    needed = _leaves(own, cast if precision == "auto" else precision, blocks)
    if differing := [key for key in stored | needed if stored.get(key) != needed.get(key)]:
        words = (f"{key} is {_short(stored.get(key))} there and {_short(needed.get(key))} here" for key in differing)
        raise UserError(
            f"the cache '{cached.path}' was made by another trunk, tokenizer or transform: {', '.join(words)}"
        )


def _leaves(parts: dict[str, Any], precision: str, blocks: int) -> dict[str, Any]:
    """What taps are made of by key path, with the first so many blocks by number."""
    numbered = {str(number): sha256 for number, sha256 in enumerate(parts["blocks"][:blocks])}
    return flatten_keys(parts | {"blocks": numbered, "trunk": {"precision": precision}})


def _short(value: Any) -> str:
    is_hash = isinstance(value, str) and len(value) == 64
    return f"sha256 {value[:12]}..." if is_hash else repr(value)


def _block_sha256(model: TubeViT, index: int) -> str:
    """Of a frozen block's float32 tensors, wherever they are."""
    state = model.blocks[index].state_dict()
    digests = tensors.hashes({name: tensor for name, tensor in state.items() if not tensor.is_meta})
    for name in state.keys() - digests.keys():
        public = public_name(f"trunk.blocks.{index}.{name}", model.block_prefix)
        digests[name] = model.base.get(public) or _in_file(model, index, name)
    return tensors.fingerprint(digests)


def _in_file(model: TubeViT, index: int, name: str) -> str:
    assert model.trunk is not None and model.trunk.file is not None
    return tensors.hashes({name: model.trunk.file.read(index, name).float()})[name]


WHOLE = slice(0, None)
Box = tuple[slice, slice]  # rows, columns


class Mix(NamedTuple):
    """Sample i is ``share`` of itself and ``1 - share`` of sample ``order[i]``: of every pixel (mixup), or of the area,
    where the other's pixels in ``box`` cover its own in all frames (cutmix)."""

    order: Tensor
    share: float
    box: Box | None = None

    def pixels(self, x: Tensor) -> Tensor:
        """Mixed (B, 3, [T,] H, W); ``x`` stays as it is."""
        if self.box is None:
            return torch.lerp(x[self.order], x, self.share)
        mixed, there = x.clone(), (..., *self.box)
        mixed[there] = x[there][self.order]
        return mixed

    def dominant(self, labels: Tensor) -> Tensor:
        """Labels (B, ...) of the samples that the greater part of each mixed one is of."""
        return labels if self.share >= 0.5 else labels[self.order]


def draw_mix(train: Train, shape: torch.Size, seed: int, step: int) -> Mix | None:
    """The mix of a batch of ``shape`` (B, 3, [T,] H, W), a function of (seed, step) alone; None where there is none.

    Where both mixup and cutmix are set, each has every other step on average, whole batches at a time. In mixup a
    sample outweighs the one that is mixed in (share >= 1/2); in cutmix the share is drawn, and then corrected to what
    is left of the sample where the box reaches over the border.
    """
    if train.mixup == train.cutmix == 0:
        return None
    random = np.random.default_rng((seed, step))
    cuts = train.mixup == 0 or (train.cutmix > 0 and random.random() < 0.5)
    alpha = train.cutmix if cuts else train.mixup
    share = random.beta(alpha, alpha)
    order = torch.from_numpy(random.permutation(shape[0]))
    if not cuts:
        return Mix(order, max(share, 1 - share))
    box = _box(shape[-2], shape[-1], 1 - share, random)
    return Mix(order, 1 - _length(box[0]) * _length(box[1]) / (shape[-2] * shape[-1]), box)


def _box(height: int, width: int, area: float, random: np.random.Generator) -> Box:
    """A box of the picture's proportions and of ``area`` as a share of its own, centred anywhere in it, cut off at its
    borders (CutMix, Section 3.1 and equation 2)."""
    return _span(height, math.sqrt(area), random), _span(width, math.sqrt(area), random)


def _span(size: int, share: float, random: np.random.Generator) -> slice:
    length, centre = round(size * share), int(random.integers(size))
    return slice(max(0, centre - length // 2), min(size, centre - length // 2 + length))


def _length(span: slice) -> int:
    return span.stop - span.start


def head_loss(logits: Tensor, labels: Tensor, mix: Mix | None, objective: Objective, rows: slice = WHOLE) -> Tensor:
    """Loss of logits (b, C) of some ``rows`` of a batch with its labels (B,) or (B, C), mixed as the pixels were."""
    loss = objective(logits, labels[rows])
    if mix is None:
        return loss
    other = objective(logits, labels[mix.order][rows])
    return mix.share * loss + (1 - mix.share) * other

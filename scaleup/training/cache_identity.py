"""What the content of a cache depends on: samples, transforms, tokenizer and frozen blocks; told apart by sha256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from torch import nn

from scaleup.checkpoint.config_json import completed
from scaleup.checkpoint.tensor_names import public_name
from scaleup.common import tensors
from scaleup.config.schema import Recipe
from scaleup.data.storage import storage
from scaleup.data.token_records import CachedSet
from scaleup.errors import UserError
from scaleup.model.tubevit import TubeViT
from scaleup.training.run_directory import flat

TOKENIZER = ("frames", "tubes", "interpolate", "positions")  # of config.json


def made_of(recipe: Recipe, model: TubeViT, dataset: str) -> dict[str, Any]:
    """What the taps of a dataset are made of; ``blocks`` are as many sha256 as ``model`` has frozen blocks.

    The trunk must still be as it was loaded, in float32.
    """
    config = model.config
    parts = {
        "shards": _index_sha256(recipe.data.train[dataset].shards),
        "input": config["input"],
        "augment": asdict(recipe.data.train[dataset].augment),
        "backbone": {key: config["backbone"][key] for key in ("name", "kwargs", "sha256")},
        "tokenizer": {key: config[key] for key in TOKENIZER} | {"sha256": _sha256(model.tokenizer)},
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
    made, path = cached.made, cached.path
    if lacking := sorted(set(depths) - set(made["depths"])):
        have = ", ".join(map(str, made["depths"]))
        raise UserError(f"the cache '{path}' has no taps at frozen depth {lacking[0]}; it has those at {have}")
    kept = made["trunk"]["precision"]
    there = _leaves(made["made_of"], kept, len(own["blocks"]))
    here = _leaves(own, kept if precision == "auto" else precision, len(own["blocks"]))
    differing = [key for key in there | here if there.get(key) != here.get(key)]
    if differing:
        said = [f"{key} is {_short(there.get(key))} there and {_short(here.get(key))} here" for key in differing]
        raise UserError(f"the cache '{path}' was made by another trunk, tokenizer or transform: {', '.join(said)}")


def _leaves(parts: dict[str, Any], precision: str, blocks: int) -> dict[str, Any]:
    """What taps are made of by key path, with the first so many blocks by number."""
    numbered = {str(number): sha256 for number, sha256 in enumerate(parts["blocks"][:blocks])}
    tokenizer = completed(parts["tokenizer"])  # of a cache that is older too
    return flat(parts | {"tokenizer": tokenizer, "blocks": numbered, "trunk": {"precision": precision}})


def _short(value: Any) -> str:
    is_hash = isinstance(value, str) and len(value) == 64
    return f"sha256 {value[:12]}..." if is_hash else repr(value)


def _index_sha256(shards: str) -> str:
    """Of the index, which has the sha256 of every tar."""
    try:
        return hashlib.sha256(storage(shards).whole("index.json")).hexdigest()
    except OSError as error:
        raise UserError(f"'{shards}' is no shard directory: it has no readable index.json ({error})") from None


def _sha256(module: nn.Module) -> str:
    return tensors.fingerprint(tensors.hashes(module.state_dict()))


def _block_sha256(model: TubeViT, index: int) -> str:
    """Of a frozen block's float32 tensors, wherever they are."""
    held = model.blocks[index].state_dict()
    digests = tensors.hashes({name: tensor for name, tensor in held.items() if not tensor.is_meta})
    for name in held.keys() - digests.keys():
        public = public_name(f"trunk.blocks.{index}.{name}", model.block_prefix)
        digests[name] = model.base.get(public) or _in_file(model, index, name)
    return tensors.fingerprint(digests)


def _in_file(model: TubeViT, index: int, name: str) -> str:
    assert model.trunk is not None and model.trunk.file is not None
    return tensors.hashes({name: model.trunk.file.read(index, name).float()})[name]

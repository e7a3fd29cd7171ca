"""A token cache before it is made: what its content depends on, and how large it will be."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scaleup.checkpoint.model_directory import public_name
from scaleup.common import tensors
from scaleup.common.text import format_bytes
from scaleup.config.schema import Recipe
from scaleup.data.pack import partial_name
from scaleup.data.shards import Shards, index_bytes
from scaleup.data.token_records import CachedSet, quantise, record
from scaleup.errors import UserError
from scaleup.model.tubevit import TubeViT
from scaleup.training.run_inputs import flatten_keys

TOKENIZER = ("frames", "tubes", "interpolate", "positions")  # of config.json


def made_of(recipe: Recipe, model: TubeViT, dataset: str) -> dict[str, Any]:
    """What the taps of a dataset are made of; ``blocks`` are as many sha256 as ``model`` has frozen blocks.

    The trunk must still be as it was loaded, in float32.
    """
    config = model.config.to_json()
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
    return flatten_keys(parts | {"blocks": numbered, "trunk": {"precision": precision}})


def _short(value: Any) -> str:
    is_hash = isinstance(value, str) and len(value) == 64
    return f"sha256 {value[:12]}..." if is_hash else repr(value)


def _index_sha256(shards: str) -> str:
    """Of the index, which has the sha256 of every tar."""
    return hashlib.sha256(index_bytes(shards)).hexdigest()


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


SHARD = 2**29  # bytes of a tar, about, which is what a kill loses at most
SPARE = 0.05  # of the free disk, which stays free
BLOCK, END = 512, 10240  # what members of a tar, their headers, and the whole of it are multiples of
ENTRY = 160  # bytes of a record in the index, about


def blank_record(model: TubeViT, modality: str, depths: list[int], precision: str) -> bytes:
    """A record of one view of one sample, z0 and h at every depth, all of them 0: as all records are laid out."""
    count = model.count_tokens(1 if modality == "image" else model.preprocess.frames)
    names = ["z0", *(f"h{depth}" for depth in depths)]
    blank = {name: torch.zeros(1, count, model.tokenizer.embed_dim) for name in names}
    kept = quantise(blank, precision)
    return record({name: tensor[0] for name, tensor in kept.items()})


def samples_of_a_tar(record: int, views: int) -> int:
    return max(1, SHARD // (record * views))


def cache_bytes(shards: Shards, record: int, views: int) -> int:
    """Bytes on the disk of a dataset whose records have ``record`` bytes: tars to the byte, the index roughly."""
    label = json.dumps({"labels": {name: int(numbers[0]) for name, numbers in shards.labels.items()}})
    sample = views * (2 * BLOCK + _up(record, BLOCK) + _up(len(label), BLOCK))
    each = samples_of_a_tar(record, views)
    counts = [each] * (len(shards) // each) + [len(shards) % each] * (len(shards) % each > 0)
    index = len(shards) * views * ENTRY + sum(len(key) + 3 for key in shards.keys)
    return sum(_up(count * sample + 2 * BLOCK, END) for count in counts) + index


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def refuse_too_large(size: int, out: Path, limit: int | None) -> None:
    """UserError where the limit or the free disk does not allow so many bytes at ``out``; what stands there half
    written counts as done."""
    if limit is not None and size > limit:
        raise UserError(f"the cache takes {format_bytes(size)}, more than --limit allows, {format_bytes(limit)}")
    there = next(parent for parent in out.resolve().parents if parent.exists())
    left = size - sum(tar.stat().st_size for tar in partial_name(out).glob("*/*.tar"))
    free = shutil.disk_usage(there).free
    if left > free * (1 - SPARE):
        raise UserError(
            f"the cache takes {format_bytes(size)}, and of the {format_bytes(free)} that are free on the disk "
            f"of '{out}' {SPARE:.0%} must stay free; choose fewer views, fewer depths, or precision int8"
        )

"""The datasets that a recipe names: their shards, what heads learn from them, and the classes of each head."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

from scaleup.config import schema
from scaleup.data.shards import Shards
from scaleup.errors import UserError, nearest


def open_datasets(data: schema.Data) -> dict[str, Shards]:
    """The shards of every training set, by name; UserError if one does not open or lacks a label its heads name."""
    if not data.train:
        raise UserError("data.train names no dataset")
    opened = {}
    for name, dataset in data.train.items():
        opened[name] = shards = Shards.open(dataset.shards)
        check_heads(shards, dataset.heads)
        if not len(shards) or not dataset.heads or dataset.weight <= 0:
            raise UserError(
                f"dataset '{name}' has {len(shards)} samples, {len(dataset.heads)} heads and weight {dataset.weight}; "
                "all three must be above 0"
            )
    return opened


def check_heads(shards: Shards, heads: Mapping[str, str]) -> None:
    """UserError if a head names a label that the shards do not have."""
    for head, label in heads.items():
        if label not in shards.classes:
            have = ", ".join(shards.classes)
            raise UserError(
                f"head '{head}' learns label '{label}', but '{shards.path}' has: {have}{nearest(label, shards.classes)}"
            )


def classes_of(data: schema.Data) -> dict[str, list[str]]:
    """Class names of every head; UserError if two datasets give one head different lists."""
    lists: dict[str, list[str]] = {}
    for name, shards in open_datasets(data).items():
        for head, label in data.train[name].heads.items():
            if lists.setdefault(head, shards.classes[label]) != shards.classes[label]:
                raise UserError(f"head '{head}' would get other classes from dataset '{name}' than from one before it")
            _warn_of_flips(name, data.train[name].augment.flip, head, shards.classes[label])
    return lists


def _warn_of_flips(name: str, flip: bool, head: str, classes: list[str]) -> None:
    """A mirrored push from left to right is one from right to left."""
    sided = [each for each in classes if re.search(r"\b(left|right|leftwards?|rightwards?)\b", each, re.IGNORECASE)]
    if flip and sided:
        print(
            f"dataset '{name}' is mirrored at random, but head '{head}' has classes such as '{sided[0]}'; "
            f"consider data.train.{name}.augment.flip=false",
            file=sys.stderr,
        )

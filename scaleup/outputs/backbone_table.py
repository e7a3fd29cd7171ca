"""Every plain ViT that the libraries register: how large it is, where its tokens are, which tubes fit. No weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import timm

from scaleup.backbones import open_clip
from scaleup.backbones.backbone import Backbone
from scaleup.backbones.build import build
from scaleup.errors import UserError, nearest
from scaleup.model.places import Folds, folds_to

# Channels that a kernel emits at each place: folded tubes, and unfolded ones of small models of width 192, 384 and 768.
CHANNELS = (64, 128, 256, 192, 384, 768)
FAMILIES = ("vision_transformer", "eva", "deit")  # modules of timm; what its others hold is not plain


@dataclass(frozen=True)
class Row:
    """One backbone; sizes in pixels."""

    name: str
    library: str
    embed_dim: int
    depth: int
    num_heads: int
    patch: list[int]
    size: list[int]
    tokens: int  # of a frame, without prefix tokens
    prefix: int
    parameters: int  # without a classifier
    license: str
    positions: str  # learned | rotary | learned + rotary | none
    folds: dict[str, Folds]  # channels of a tube's kernel -> how they become embed_dim


class Table(NamedTuple):
    """The plain ViTs, and of the others why they are none."""

    rows: list[Row]
    refused: dict[str, str]


def names(pattern: str = "*") -> list[str]:
    """Names of the libraries' ViTs, ``timm:...`` and ``open_clip:...``, that match a glob, with or without library.

    Raises:
        UserError: none does.
    """
    known = [f"timm:{name}" for family in FAMILIES for name in timm.list_models(module=family)] + open_clip.names()
    found = [name for name in known if any(fnmatch.fnmatchcase(part, pattern) for part in (name, name.split(":")[1]))]
    if not found:
        near = nearest(pattern.strip("*"), [*known, *(name.split(":")[1] for name in known)])
        raise UserError(f"no registered ViT matches {pattern!r}{near}")
    return found


def table(names: list[str], advance: Callable[..., None]) -> Table:
    """Build each of ``names`` on the meta device, and ask it; ``advance(note=name)`` is called after each."""
    rows, refused = [], {}
    for name in names:
        try:
            rows.append(row(build(name, {}, None, "meta")))
        except UserError as error:
            refused[name] = str(error)
        advance(note=name)
    return Table(rows, refused)


def row(backbone: Backbone) -> Row:
    """What is to be known of a backbone before it is chosen."""
    (height, width), patch = backbone.size, backbone.patch_size
    parts = (backbone.stem, *backbone.blocks, backbone.tail)
    kinds = [kind for kind, has in (("learned", backbone.absolute), ("rotary", backbone.rotary)) if has]
    return Row(
        name=backbone.name,
        library=backbone.name.split(":")[0],
        embed_dim=backbone.embed_dim,
        depth=backbone.depth,
        num_heads=backbone.num_heads,
        patch=list(patch),
        size=[height, width],
        tokens=(height // patch[0]) * (width // patch[1]),
        prefix=backbone.num_prefix_tokens,
        parameters=sum(parameter.numel() for part in parts for parameter in part.parameters()),
        license=backbone.license,
        positions=" + ".join(kinds) or "none",
        folds={str(channels): folds_to(channels, backbone.embed_dim) for channels in CHANNELS},
    )


def as_json(found: Table) -> list[dict[str, Any]]:
    """The rows as plain dicts; ``folds`` as ``{"64": {"places": 20, "dropped": 0}, ...}``."""
    plans = [{key: fold._asdict() for key, fold in row.folds.items()} for row in found.rows]
    return [asdict(row) | {"folds": plan} for row, plan in zip(found.rows, plans, strict=True)]

"""A table of every plain ViT that timm and open_clip register: sizes, tokens, and which tubes fit."""

from __future__ import annotations

import fnmatch
import importlib.metadata
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import timm

from scaleup.backbones import open_clip
from scaleup.backbones.backbone import Backbone
from scaleup.backbones.build import build
from scaleup.common.errors import UserError, nearest
from scaleup.common.text import columns
from scaleup.common.text import markdown as markdown_lines
from scaleup.model.tubes import Folds, folds_to

# Channels of kernels: of folded tubes, and of unfolded tubes of small models of width 192, 384 and 768.
CHANNELS = (64, 128, 256, 192, 384, 768)
FAMILIES = ("vision_transformer", "eva", "deit")  # modules of timm; the models in its other modules are not plain


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
    folds: dict[str, Folds]  # channels of a tube's kernel -> how they are extended to embed_dim


class Table(NamedTuple):
    """The plain ViTs, and for each other ViT the reason why it is refused."""

    rows: list[Row]
    refused: dict[str, str]


def names(pattern: str = "*") -> list[str]:
    """Names of the libraries' ViTs, ``timm:...`` and ``open_clip:...``, that match a glob, with or without library.

    Raises:
        UserError: none does.
    """
    every = [f"timm:{name}" for family in FAMILIES for name in timm.list_models(module=family)] + open_clip.names()
    matching = [n for n in every if any(fnmatch.fnmatchcase(part, pattern) for part in (n, n.split(":")[1]))]
    if not matching:
        near = nearest(pattern.strip("*"), [*every, *(name.split(":")[1] for name in every)])
        raise UserError(f"no registered ViT matches {pattern!r}{near}")
    return matching


def table(names: list[str], advance: Callable[..., None]) -> Table:
    """Build each of ``names`` on the meta device and describe it; ``advance(note=name)`` is called after each."""
    rows, refused = [], {}
    for name in names:
        try:
            rows.append(row(build(name, {}, None, "meta")))
        except UserError as error:
            refused[name] = str(error)
        advance(note=name)
    return Table(rows, refused)


def row(backbone: Backbone) -> Row:
    """The facts by which a backbone is chosen."""
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


def as_json(table: Table) -> list[dict[str, Any]]:
    """The rows as plain dicts; ``folds`` as ``{"64": {"places": 20, "dropped": 0}, ...}``."""
    return [asdict(row) | {"folds": {key: fold._asdict() for key, fold in row.folds.items()}} for row in table.rows]


PACKAGES = {"timm": "timm", "open_clip": "open_clip_torch"}
HEADER = ["name", "width", "depth", "heads", "patch", "size", "tokens", "prefix", "parameters", "licence", "positions"]
HEADER += [f"c{channels}" for channels in CHANNELS]
INTRODUCTION = """# Backbones

The {count} plain ViTs that {versions} register, as `tools/backbones.py --markdown` lists them.
`tools/transplant.py` takes each name, with a tag if there are several weights:
`timm:vit_base_patch16_224.mae`, `open_clip:ViT-H-14/laion2b_s32b_b79k`.
[families.md](families.md) lists the families that are tested, and the tests' results.

- **tokens**: of a frame of the model's own size, without **prefix** tokens (class token and registers).
- **parameters** are without a classifier; the **licence** is that of the library's first weights of the name.
- **c64** to **c768**: how tubes with kernels of so many channels are extended to the backbone's width. `x4`: folded
  four times, exactly; `x7-64`: folded seven times, the last 64 channels are dropped. Unfolded tubes of small models of
  width 192, 384 and 768 have that many channels.

"""


def cells(row: Row) -> list[str]:
    """The cells of a row, under HEADER."""
    numbers = [row.embed_dim, row.depth, row.num_heads, _sides(row.patch), _sides(row.size), row.tokens, row.prefix]
    words = [f"{row.parameters / 1e6:,.1f} M", row.license, row.positions]
    return [row.name, *map(str, numbers), *words, *map(_short, row.folds.values())]


def _sides(sides: list[int]) -> str:
    return str(sides[0]) if sides[0] == sides[1] else f"{sides[0]}x{sides[1]}"


def _short(fold: Folds) -> str:
    return f"x{fold.places}" + (f"-{fold.dropped}" if fold.dropped else "")


def text(table: Table) -> str:
    """The table for a terminal, and the names that are refused."""
    lines = columns([HEADER, *map(cells, table.rows)], to_left=range(len(HEADER)))
    return "\n".join([*lines, "", *_refused(table)]) + "\n"


def markdown(table: Table) -> str:
    """The page docs/backbones.md."""
    versions = " and ".join(f"{name} {importlib.metadata.version(package)}" for name, package in PACKAGES.items())
    lines = markdown_lines(HEADER, map(cells, table.rows))
    introduction = INTRODUCTION.format(versions=versions, count=len(table.rows))
    return introduction + "\n".join([*lines, "", "## Refused", "", *_refused(table)]) + "\n"


def _refused(table: Table) -> Iterator[str]:
    """The names that are refused, by reason."""
    names = defaultdict(list)
    for name, sentence in table.refused.items():
        names[sentence.removeprefix(f"{name!r} ")].append(name)
    for reason, refused in names.items():
        yield f"- {', '.join(refused)}: {'each ' if len(refused) > 1 else ''}{reason}"

"""The table of backbones in words: for a terminal, and as the page docs/backbones.md."""

from __future__ import annotations

import importlib.metadata
import io
from collections import defaultdict
from collections.abc import Iterator

import rich.box
import rich.console
import rich.table

from scaleup.model.places import Folds
from scaleup.outputs.backbone_table import CHANNELS, Row, Table

PACKAGES = {"timm": "timm", "open_clip": "open_clip_torch"}
HEADER = ["name", "width", "depth", "heads", "patch", "size", "tokens", "prefix", "parameters", "licence", "positions"]
HEADER += [f"c{channels}" for channels in CHANNELS]
INTRODUCTION = """# Backbones

The {count} plain ViTs that {versions} register, as `tools/backbones.py --markdown` lists them.
Each name can be given to `tools/transplant.py`, with a tag of its weights where it has several:
`timm:vit_base_patch16_224.mae`, `open_clip:ViT-H-14/laion2b_s32b_b79k`.

- **tokens**: of a frame at the model's own size, without **prefix** tokens (class token and registers).
- **parameters** are without a classifier; the **licence** is that of the library's first weights of the name.
- **c64** to **c768**: how tubes whose kernels emit so many channels become as wide as the backbone. `x4`: folded four
  times, exactly; `x7-64`: folded seven times, the last 64 channels dropped. Unfolded tubes of small models of width
  192, 384 and 768 emit as many.

"""


def cells(row: Row) -> list[str]:
    """A row in words, under HEADER."""
    numbers = [row.embed_dim, row.depth, row.num_heads, _sides(row.patch), _sides(row.size), row.tokens, row.prefix]
    words = [f"{row.parameters / 1e6:,.1f} M", row.license, row.positions]
    return [row.name, *map(str, numbers), *words, *map(_short, row.folds.values())]


def _sides(sides: list[int]) -> str:
    return str(sides[0]) if sides[0] == sides[1] else f"{sides[0]}x{sides[1]}"


def _short(fold: Folds) -> str:
    return f"x{fold.places}" + (f"-{fold.dropped}" if fold.dropped else "")


def text(found: Table) -> str:
    """The table for people, as wide as it is, and what is refused."""
    shown = rich.table.Table(*HEADER, box=rich.box.SIMPLE_HEAD)
    for row in found.rows:
        shown.add_row(*cells(row))
    console = rich.console.Console(width=1000, file=(written := io.StringIO()))
    console.print(shown)
    lines = [line.rstrip() for line in written.getvalue().splitlines()]
    return "\n".join([*lines, *_refused(found)]) + "\n"


def markdown(found: Table) -> str:
    """The page docs/backbones.md."""
    versions = " and ".join(f"{name} {importlib.metadata.version(package)}" for name, package in PACKAGES.items())
    lines = [f"| {' | '.join(line)} |" for line in (HEADER, ["---"] * len(HEADER), *map(cells, found.rows))]
    introduction = INTRODUCTION.format(versions=versions, count=len(found.rows))
    return introduction + "\n".join([*lines, "", "## Refused", "", *_refused(found)]) + "\n"


def _refused(found: Table) -> Iterator[str]:
    """The names that are refused, by reason."""
    names = defaultdict(list)
    for name, sentence in found.refused.items():
        names[sentence.removeprefix(f"{name!r} ")].append(name)
    yield from (f"- {', '.join(each)}: {'each ' if len(each) > 1 else ''}{reason}" for reason, each in names.items())

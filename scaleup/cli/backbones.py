"""List every plain ViT of timm and open_clip: size, positions, licence, and which tubes fit. No weights are read."""

from __future__ import annotations

import argparse
from typing import Any

from scaleup.cli import tool
from scaleup.common.timing import progress


def arguments() -> argparse.ArgumentParser:
    parser = tool.parser(__doc__, 'tools/backbones.py "*dinov3*"\n  tools/backbones.py --markdown > docs/backbones.md')
    parser.add_argument("pattern", nargs="?", default="*", help="a glob, such as 'timm:*huge*' (default: all)")
    parser.add_argument("--markdown", action="store_true", help="print the list as the page docs/backbones.md")
    return parser


def run(args: argparse.Namespace) -> Any:
    from scaleup.outputs import backbone_table

    names = backbone_table.names(args.pattern)
    with progress("building", len(names)) as advance:
        table = backbone_table.table(names, advance)
    if args.json:
        return backbone_table.as_json(table)
    return backbone_table.markdown(table) if args.markdown else backbone_table.text(table)


def show(page: str) -> None:
    print(page, end="")

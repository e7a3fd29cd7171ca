"""Compute the output of the frozen blocks once for every training sample, and store it on disk (a token cache).

Training with trunk.cache=DIR then decodes no video and computes no frozen block. If the command is interrupted, run it
again: it continues from there.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from scaleup.cli import tool
from scaleup.common.errors import UserError
from scaleup.common.text import parse_bytes
from scaleup.config import recipe, schema

if TYPE_CHECKING:
    from scaleup.training.token_cache import TokenCache


EXAMPLE = """tools/cache.py recipes/demo/control.yaml --views 4 --out runs/cache
  tools/sweep.py recipes/demo/control.yaml trunk.cache=runs/cache out=runs/cached"""


def run(args: argparse.Namespace) -> TokenCache:
    read = recipe.load(args.recipe, [*args.changes, "trunk.cache=null"])  # it may name the cache that is made here
    limit = None if args.limit is None else parse_bytes(args.limit, "--limit")
    depths = args.depths or frozen_depths(read)
    from scaleup.training.token_cache import make  # takes seconds; wrong arguments are refused before

    return make(read, depths, args.out, args.views, args.precision, limit, args.overwrite)


def frozen_depths(read: schema.Recipe) -> list[int]:
    """The depths at which the recipe's arms read the trunk."""
    depths = sorted({depth for arm in recipe.all_arms(read).values() for depth in (arm.frozen_depth, *arm.taps)} - {0})
    if not depths:
        raise UserError("no arm of the recipe freezes a block; set frozen_depth, or give --depths")
    return depths


def show(cache: TokenCache) -> None:
    for name, dataset in cache.datasets.items():
        failed = f", {len(dataset.failures)} left out" if dataset.failures else ""
        print(f"{cache.out}/{name}: {dataset.samples} samples x {cache.views} views{failed}")
    print(f"{cache.bytes:,} bytes, frozen depths {', '.join(map(str, cache.depths))}, {cache.seconds:.0f} s")
    moved = ", ".join(f"{name} {share:.2%}" for name, share in cache.drift.items())
    print(f"stored in {cache.precision}; this changes tokens by a share of their RMS: {moved}")


def arguments() -> argparse.ArgumentParser:
    parser = tool.parser(__doc__, EXAMPLE)
    add = parser.add_argument
    tool.add_recipe(parser)
    add("--out", required=True, metavar="DIR", help="output directory")
    add("--depths", type=tool.at_least(1), nargs="+", help="frozen depths (default: those of the arms)")
    add(
        "--views",
        type=tool.at_least(1),
        default=1,
        help="augmented views of each sample; epoch e reads view e mod VIEWS (default: 1)",
    )
    tokens = "precision of the stored tokens; int8 has a scale for each token (default: bfloat16)"
    add("--precision", choices=["float32", "bfloat16", "int8"], default="bfloat16", help=tokens)
    add("--limit", metavar="SIZE", help="size limit of the cache, such as 200G (default: free space, less 5 %%)")
    add("--overwrite", action="store_true", help="replace an existing output")
    return parser

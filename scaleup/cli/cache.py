"""Compute the frozen part of a recipe's model once for every training sample, and store it on disk.

Train from it with trunk.cache=DIR: no video is decoded and no frozen block is computed. What is finished when it is cut
off is kept: the same command goes on from there.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from scaleup import recipe
from scaleup.cli import tool
from scaleup.common.text import parse_bytes
from scaleup.config import schema
from scaleup.errors import UserError

if TYPE_CHECKING:
    from scaleup.training.token_cache import TokenCache


def run(args: argparse.Namespace) -> TokenCache:
    read = recipe.load(args.recipe, [*args.changes, "trunk.cache=null"])  # the one to be made, perhaps
    limit, chosen = parse_bytes(args.limit, "--limit") if args.limit else None, args.depths or depths(read)
    from scaleup.training.token_cache import make  # after what may be wrong: its imports take seconds

    return make(read, chosen, args.out, args.views, args.precision, limit, args.overwrite)


def depths(read: schema.Recipe) -> list[int]:
    """The frozen depths of the recipe's arms."""
    arms = recipe.sweep_arms(read) if read.arms or read.grid else {"model": read.arm}
    if not (found := sorted({arm.frozen_depth for arm in arms.values()} - {0})):
        raise UserError("no arm of the recipe freezes a block; set frozen_depth, or give --depths")
    return found


def show(cache: TokenCache) -> None:
    for name, dataset in cache.datasets.items():
        failed = f", {len(dataset.failures)} left out" if dataset.failures else ""
        print(f"{cache.out}/{name}: {dataset.samples} samples x {cache.views} views{failed}")
    print(f"{cache.bytes:,} bytes, frozen depths {', '.join(map(str, cache.depths))}, {cache.seconds:.0f} s")
    moved = ", ".join(f"{name} {share:.2%}" for name, share in cache.drift.items())
    print(f"kept in {cache.precision}, by which tokens move by a share of their RMS: {moved}")


def at_least_one(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


at_least_one.__name__ = "number of at least 1"


def arguments() -> argparse.ArgumentParser:
    made = tool.parser(
        __doc__,
        "tools/cache.py recipes/demo/control.yaml --views 4 --out runs/cache\n"
        "  tools/sweep.py recipes/demo/control.yaml trunk.cache=runs/cache out=runs/cached",
    )
    made.add_argument("recipe", help="YAML file that describes the run or the sweep")
    made.add_argument("changes", nargs="*", metavar="key=value", help="changes to the recipe")
    made.add_argument("--out", required=True, metavar="DIR", help="the directory to write")
    made.add_argument("--depths", type=at_least_one, nargs="+", help="frozen depths (default: those of the arms)")
    made.add_argument(
        "--views", type=at_least_one, default=1, help="of a sample; epoch e reads view e mod VIEWS (default: 1)"
    )
    made.add_argument(
        "--precision",
        choices=["float32", "bfloat16", "int8"],
        default="bfloat16",
        help="of the tokens; int8 has a scale for each (default: bfloat16)",
    )
    made.add_argument(
        "--limit", metavar="SIZE", help="the most it may take, e.g. 200G (default: what is free, less 5 %%)"
    )
    made.add_argument("--overwrite", action="store_true", help="replace what exists")
    return made

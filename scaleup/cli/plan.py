"""Calculate what a run will cost, without building a model: tokens, parameters, FLOPs, memory, cache and time."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from scaleup.cli import tool
from scaleup.common.errors import UserError
from scaleup.common.text import parse_bytes
from scaleup.config import recipe

if TYPE_CHECKING:
    from scaleup.sweeps.costs import Plan


def arguments() -> argparse.ArgumentParser:
    parser = tool.parser(__doc__, "tools/plan.py recipes/demo/small.yaml data.batch=128 --memory 24GiB --gflops 20000")
    add = parser.add_argument
    tool.add_recipe(parser)
    add("--memory", metavar="SIZE", help="memory of each device, such as 24GiB (default: this machine's)")
    add(
        "--gflops",
        type=tool.at_least(0.001, float),
        help="GFLOP per second of each device (default: measured on this machine)",
    )
    add("--ranks", type=tool.at_least(1), default=1, help="devices that train together (default: 1)")
    add(
        "--views", type=tool.at_least(1), default=1, help="augmented views of each sample in a token cache (default: 1)"
    )
    return parser


def run(args: argparse.Namespace) -> Plan:
    read = recipe.load(args.recipe, args.changes)
    if args.views > 1 and not all(arm.frozen_depth for arm in recipe.all_arms(read).values()):
        raise UserError("--views is of a token cache, and there is none where an arm freezes no block")
    available = None if args.memory is None else parse_bytes(args.memory, "--memory")
    from scaleup.sweeps import costs  # takes seconds; wrong arguments are refused before

    return costs.plan(read, None, args.ranks, available, args.gflops, args.views)


def show(plan: Plan) -> None:
    from scaleup.sweeps.plan_text import describe

    print(describe(plan), end="")

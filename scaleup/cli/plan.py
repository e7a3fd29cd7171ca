"""Plan what a run costs before anything is built: tokens, parameters, FLOPs, memory, cache and time."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from scaleup import recipe
from scaleup.cli import tool
from scaleup.common.text import parse_bytes

if TYPE_CHECKING:
    from scaleup.sweeps.costs import Plan


def arguments() -> argparse.ArgumentParser:
    made = tool.parser(__doc__, "tools/plan.py recipes/demo/small.yaml data.batch=128 --memory 24GiB --gflops 20000")
    made.add_argument("recipe", help="YAML file that describes a run or a sweep")
    made.add_argument("changes", nargs="*", metavar="key=value", help="changes to the recipe, e.g. arm.frozen_depth=9")
    made.add_argument("--memory", metavar="SIZE", help="of each device, e.g. 24GiB (default: this machine's)")
    made.add_argument("--gflops", type=float, help="10^9 operations a second of a device (default: measured here)")
    made.add_argument("--ranks", type=int, default=1, help="devices that train together (default: 1)")
    made.add_argument("--views", type=int, default=1, help="augmented views of a sample in a token cache (default: 1)")
    return made


def run(args: argparse.Namespace) -> Plan:
    read = recipe.load(args.recipe, args.changes)
    arms = recipe.sweep_arms(read) if read.arms or read.grid else {"model": read.arm}
    available = parse_bytes(args.memory, "--memory") if args.memory else None
    from scaleup.sweeps import costs  # after what may be wrong: its imports take seconds

    return costs.plan(read, arms, args.ranks, available, args.gflops, args.views)


def show(plan: Plan) -> None:
    from scaleup.sweeps import costs

    print(costs.describe(plan), end="")

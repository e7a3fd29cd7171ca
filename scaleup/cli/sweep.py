"""Train several arms of one model together. Every batch passes the frozen trunk once, for all arms."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from scaleup.cli import tool, train
from scaleup.cli.train import seconds, show
from scaleup.common.errors import UserError
from scaleup.common.text import parse_bytes
from scaleup.config import recipe

if TYPE_CHECKING:
    from scaleup.cli.train import Result
    from scaleup.sweeps.machines import FailedSweep

__all__ = ["arguments", "run", "show"]


def arguments() -> argparse.ArgumentParser:
    parser = train.arguments(__doc__, "tools/sweep.py recipes/demo/sweep.yaml 'grid.lr=[1e-3,3e-3]' out=runs/sweep")
    add = parser.add_argument
    memory = "memory to use on each device, such as 70G (default: all); if the arms need more, they train in parts"
    add("--memory", metavar="SIZE", help=memory)
    where = "share the arms out: among processes of this machine, or among SLURM jobs (both use submitit)"
    add("--where", choices=("local", "slurm"), help=where)
    add("--machines", type=tool.at_least(1), metavar="N", help="number of processes or jobs, with --where")
    slurm = "options of sbatch for each job, with '_' for '-', such as time=180 gpus_per_node=8 ntasks_per_node=8"
    add("--slurm", nargs="+", default=[], metavar="key=value", help=slurm)
    return parser


def run(args: argparse.Namespace) -> Result | FailedSweep:
    limit = seconds(args.stop_after)
    memory = None if args.memory is None else parse_bytes(args.memory, "--memory")
    read = recipe.load(args.recipe, args.changes)
    arms, slurm = recipe.sweep_arms(read), _checked(args)
    from scaleup.sweeps import costs, machines  # takes seconds; wrong arguments are refused before
    from scaleup.sweeps.parts import group_arms, sweep

    if args.plan:
        plan = costs.plan(read, arms, available=memory)
        if args.where:
            plan.machines = [list(group) for group in group_arms(read, arms, args.machines)]
        return plan
    if args.where:
        return machines.spread(read, arms, args.where, args.machines, slurm, args.overwrite, limit, memory)
    return sweep(read, arms, args.overwrite, limit, memory)


def _checked(args: argparse.Namespace) -> dict[str, str]:
    """The options for SLURM.

    Raises:
        UserError: the arguments contradict each other.
    """
    if args.where and args.machines is None:
        raise UserError(f"--where {args.where} needs --machines, a whole number of at least 1")
    if args.slurm and args.where != "slurm":
        raise UserError("--slurm is of SLURM jobs; it needs --where slurm")
    if not args.where and args.machines is not None:
        raise UserError("--machines needs --where, which is local or slurm")
    if wrong := [option for option in args.slurm if "=" not in option]:
        raise UserError(f"--slurm {wrong[0]!r} is not key=value")
    return dict(option.split("=", 1) for option in args.slurm)

"""What tools/train.py and tools/sweep.py share: arguments, the plan, and how results are shown."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any, NoReturn

from scaleup import recipe
from scaleup.cli import tool
from scaleup.common.machine import bytes_of
from scaleup.config.schema import Arm, Recipe
from scaleup.errors import UserError

UNITS = {"h": 3600, "m": 60, "s": 1}
Arms = dict[str, Arm]


def main(description: str, example: str, arms_of: Callable[[Recipe], Arms], swept: bool = False) -> NoReturn:
    """The whole tool: read the recipe, then train ``arms_of(recipe)`` or, with ``--plan``, say what that means.

    Args:
        swept: whether there may be more arms than fit into memory, and several machines for them.
    """
    parser = tool.parser(description, example)
    parser.add_argument("recipe", help="YAML file that describes the run")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="changes to the recipe, e.g. arm.lr=1e-4")
    parser.add_argument("--plan", action="store_true", help="show tokens, FLOPs, memory and time; train nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that stands in the output directory")
    parser.add_argument("--stop-after", metavar="TIME", help="save and end early after e.g. 2h50m; run again to go on")
    if swept:
        _sweep_options(parser)

    def run(args: argparse.Namespace) -> dict[str, Any]:
        limit = seconds(args.stop_after) if args.stop_after else None
        read = recipe.load(args.recipe, args.changes)
        arms = arms_of(read)
        if swept:
            return _sweep(read, arms, args, limit)
        from scaleup.sweeps import costs  # after what may be wrong: these imports take seconds
        from scaleup.training import run as training

        return costs.plan(read, arms) if args.plan else training.run(read, arms, args.overwrite, limit)

    tool.main(run, parser.parse_intermixed_args(), show)


def _sweep_options(parser: argparse.ArgumentParser) -> None:
    memory = "of each device that may be filled, e.g. 70G (default: all it has); arms that exceed it train in parts"
    parser.add_argument("--memory", metavar="SIZE", help=memory)
    where = "train on several machines at once: processes of this one, or jobs of SLURM (both by submitit)"
    parser.add_argument("--where", choices=("local", "slurm"), help=where)
    parser.add_argument("--machines", type=int, metavar="N", help="how many, with --where")
    slurm = "options of sbatch for each job, '_' for '-', e.g. time=180 gpus_per_node=8 ntasks_per_node=8"
    parser.add_argument("--slurm", nargs="+", default=[], metavar="key=value", help=slurm)


def _sweep(read: Recipe, arms: Arms, args: argparse.Namespace, limit: float | None) -> dict[str, Any]:
    memory = bytes_of(args.memory, "--memory") if args.memory else None
    slurm = _checked(args)
    from scaleup.sweeps import costs, machines  # as above
    from scaleup.sweeps.machines import groups
    from scaleup.sweeps.sweep import sweep

    if args.plan:
        apart = {"machines": [list(group) for group in groups(read, arms, args.machines)]} if args.where else {}
        return costs.plan(read, arms, available=memory) | apart
    if args.where:
        return machines.spread(read, arms, args.where, args.machines, slurm, args.overwrite, limit, memory)
    return sweep(read, arms, args.overwrite, limit, memory)


def _checked(args: argparse.Namespace) -> dict[str, str]:
    """The options of SLURM, where all of the arguments go together."""
    if args.where and (args.machines or 0) < 1:
        raise UserError(f"--where {args.where} needs --machines, a whole number of at least 1")
    if not args.where and (args.machines is not None or args.slurm):
        raise UserError(f"--{'slurm' if args.slurm else 'machines'} needs --where, which is local or slurm")
    if wrong := [option for option in args.slurm if "=" not in option]:
        raise UserError(f"--slurm {wrong[0]!r} is not key=value")
    return dict(option.split("=", 1) for option in args.slurm)


def seconds(text: str) -> float:
    """``2h50m``, ``90s`` or ``1h30m15s`` -> seconds."""
    if not re.fullmatch(r"(\d+h)?(\d+m)?(\d+s)?", text) or not text:
        raise UserError(
            f"--stop-after {text!r} is no time; allowed are hours, minutes and seconds such as 2h50m or 90s"
        )
    return float(sum(int(count) * UNITS[unit] for count, unit in re.findall(r"(\d+)([hms])", text)))


def show(result: dict[str, Any]) -> None:
    """Print a plan, or the result of a run, an arm a line."""
    if "flops" in result:
        from scaleup.sweeps import plan_text

        print(plan_text.text(result), end="")
        for number, group in enumerate(result.get("machines", []), 1):
            print(f"machine {number}: {', '.join(group)}")
        return
    if "stopped" in result:
        part = f" of part {result['part']}" if "part" in result else ""
        print(
            f"stopped after {result['stopped']} of {result['steps']} steps{part}; the same command goes on from there"
        )
        return
    if "failed" in result:
        for lost in result["failed"]:
            print(f"{lost['part']} ({', '.join(lost['arms'])}): {lost['error']}; log: {lost['log']}")
        print("what the others have trained stays; the same command goes on")
        return
    print(f"{result['steps']} steps -> {result['out']}")
    for name, arm in result["arms"].items():
        share = f"{arm['trained_parameters']:,} parameters trained, {arm['frozen_parameters']:,} frozen"
        print(f"{name}: frozen depth {arm['frozen_depth']}, {share}" + _outcome(arm))
    print(f"trunk, shared by all arms: {result['trunk_seconds']:.4f} s a step")
    for depth, moved in result["trunk"].get("drift", {}).items():
        print(f"trunk in {result['trunk']['precision']}: h after block {depth} moves by {moved:.2%} of its RMS")


def _outcome(arm: dict[str, Any]) -> str:
    if arm["diverged"] is not None:
        return f", diverged at step {arm['diverged']}: no model is written"
    alpha = "" if arm["alpha"] is None else f", alpha {arm['alpha']:.4f}"
    alpha += f" (largest {arm['alpha_largest']:.4f})" if "alpha_largest" in arm else ""
    early = f", ended early after {arm['steps']} steps" if arm["ended"] == "early" else ""
    best = "" if arm["best_step"] is None else f", accuracy {arm['valid_accuracy']:.2%} after step {arm['best_step']}"
    still = "".join(
        f", {head} still at chance ({found['accuracy']:.1%} where the most frequent class has {found['chance']:.1%})"
        for head, found in arm.get("at_chance", {}).items()
    )
    return f", {arm['arm_seconds']:.4f} s a step, loss {arm['loss']:.4f}{alpha}{early}{best}{still}"

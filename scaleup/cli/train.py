"""Train one model: a small model on images and videos together, or the late blocks of an adapted model."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from scaleup.cli import tool
from scaleup.common.errors import UserError
from scaleup.common.metrics import mean_of
from scaleup.config import recipe

if TYPE_CHECKING:
    from scaleup.sweeps.costs import Plan
    from scaleup.sweeps.machines import FailedSweep
    from scaleup.training.arm_trainer import ArmResult
    from scaleup.training.run_directory import RunResult, StoppedRun

    Result = Plan | RunResult | StoppedRun

UNITS = {"h": 3600, "m": 60, "s": 1}
EXAMPLE = "tools/train.py recipes/demo/small.yaml train.steps=300 out=runs/small"


def arguments(description: str | None = __doc__, example: str = EXAMPLE) -> argparse.ArgumentParser:
    """The parser; ``sweep`` uses it too, with more options."""
    parser = tool.parser(description, example)
    add = parser.add_argument
    tool.add_recipe(parser)
    add("--plan", action="store_true", help="print tokens, FLOPs, memory and time, and do not train")
    add("--overwrite", action="store_true", help="replace an existing run in the output directory")
    add("--stop-after", metavar="TIME", help="save and stop after a time such as 2h50m; the same command then goes on")
    return parser


def run(args: argparse.Namespace) -> Result:
    limit = seconds(args.stop_after)
    read = recipe.load(args.recipe, args.changes)
    from scaleup.sweeps import costs  # takes seconds; wrong arguments are refused before
    from scaleup.sweeps.out_of_memory import train

    if args.plan:
        return costs.plan(read, {"model": read.arm})
    return train(read, None, args.overwrite, limit)


def seconds(text: str | None) -> float | None:
    """``2h50m``, ``90s`` or ``1h30m15s`` -> seconds; None for no limit."""
    if text is None:
        return None
    if not re.fullmatch(r"(\d+h)?(\d+m)?(\d+s)?", text) or not text:
        raise UserError(
            f"--stop-after {text!r} is not a time; allowed are hours, minutes and seconds such as 2h50m or 90s"
        )
    return float(sum(int(count) * UNITS[unit] for count, unit in re.findall(r"(\d+)([hms])", text)))


def show(result: Result | FailedSweep) -> None:
    """Print a plan, or the result of a run with one line for each arm."""
    from scaleup.sweeps.costs import Plan
    from scaleup.sweeps.machines import FailedSweep
    from scaleup.sweeps.plan_text import describe
    from scaleup.training.run_directory import StoppedRun

    if isinstance(result, Plan):
        print(describe(result), end="")
    elif isinstance(result, StoppedRun):
        part = f" of part {result.part}" if result.part else ""
        print(f"stopped after {result.stopped} of {result.steps} steps{part}; the same command goes on from there")
    elif isinstance(result, FailedSweep):
        for failed in result.failed:
            print(f"{failed.part} ({', '.join(failed.arms)}): {failed.error}; log: {failed.log}")
        print("the results of the other machines are kept; the same command goes on")
    else:
        _show_complete(result)


def _show_complete(result: RunResult) -> None:
    print(f"{result.steps} steps -> {result.out}")
    for name, arm in result.arms.items():
        share = f"{arm.trained_parameters:,} parameters trained, {arm.frozen_parameters:,} frozen"
        print(f"{name}: frozen depth {arm.frozen_depth}, {share}" + _outcome(arm))
    print(f"trunk, shared by all arms: {result.trunk_seconds:.4f} s per step")
    tool.show_drift(result.trunk.get("precision", ""), result.trunk.get("drift", {}))


def _outcome(arm: ArmResult) -> str:
    if arm.diverged is not None:
        return f", diverged at step {arm.diverged}: no model was written"
    alpha = "" if arm.alpha is None else f", alpha {arm.alpha:.4f}"
    alpha += "" if arm.alpha_largest is None else f" (largest {arm.alpha_largest:.4f})"
    early = f", ended early after {arm.steps} steps" if arm.ended == "early" else ""
    measure = mean_of(arm.valid_measures)
    valid = f", {measure.title} {measure.words(arm.valid_accuracy)} after step {arm.best_step}"
    best = "" if arm.best_step is None else valid
    still = "".join(f", {head} still at chance ({share.briefly})" for head, share in arm.at_chance.items())
    return f", {arm.arm_seconds:.4f} s per step, loss {arm.loss:.4f}{alpha}{early}{best}{still}"

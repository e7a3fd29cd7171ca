"""What tools/train.py and tools/sweep.py share: arguments, the plan, and how results are shown."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from scaleup import cli, recipe
from scaleup.recipe import Arm, Recipe


def main(description: str, example: str, arms_of: Callable[[Recipe], dict[str, Arm]]) -> NoReturn:
    """The whole tool: read the recipe, then train ``arms_of(recipe)`` or, with ``--plan``, say what that means."""
    parser = cli.parser(description, example)
    parser.add_argument("recipe", help="YAML file that describes the run")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="changes to the recipe, e.g. arm.lr=1e-4")
    parser.add_argument("--plan", action="store_true", help="show tokens, parameters and steps; train nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that stands in the output directory")

    def run(args: argparse.Namespace) -> dict[str, Any]:
        read = recipe.load(args.recipe, args.changes)
        from scaleup.training import run as training  # after the recipe: its imports take seconds

        return training.plan(read, arms_of(read)) if args.plan else training.run(read, arms_of(read), args.overwrite)

    cli.main(run, parser.parse_intermixed_args(), show)


def show(result: dict[str, Any]) -> None:
    """Print a result of ``plan`` or ``run``, an arm a line."""
    trained = "out" in result
    print(f"{result['steps']} steps" + (f" -> {result['out']}" if trained else f", tokens {result['tokens']}"))
    for name, arm in result["arms"].items():
        share = f"{arm['trained_parameters']:,} parameters trained, {arm['frozen_parameters']:,} frozen"
        print(f"{name}: frozen depth {arm['frozen_depth']}, {share}" + (_outcome(arm) if trained else ""))
    if trained:
        print(f"trunk, shared by all arms: {result['trunk_seconds']:.4f} s a step")
        for depth, moved in result["trunk"].get("drift", {}).items():
            print(f"trunk in {result['trunk']['precision']}: h after block {depth} moves by {moved:.2%} of its RMS")


def _outcome(arm: dict[str, Any]) -> str:
    alpha = "" if arm["alpha"] is None else f", alpha {arm['alpha']:.4f}"
    return f", {arm['arm_seconds']:.4f} s a step, loss {arm['loss']:.4f}{alpha}"

"""Measure what classifiers can read from the output of the blocks of a frozen model.

Linear classifiers after each block show how deep to freeze (a depth profile). An attentive head after the last block
can be saved as an arm.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from scaleup.cli import evaluate, tool
from scaleup.common.errors import UserError
from scaleup.common.files import refuse_existing
from scaleup.common.timing import is_first_rank
from scaleup.config.schema import Trunk

if TYPE_CHECKING:
    from scaleup.evaluation.depth_profile import DepthProfile
    from scaleup.training.attentive_probe import AttentiveProbe
    from scaleup.training.run_directory import StoppedRun

EXAMPLE = """tools/probe.py runs/demo/adapted runs/demo/data/videos-train runs/demo/data/videos-test
  tools/probe.py runs/demo/adapted runs/demo/data/videos-train runs/demo/data/videos-test \\
    --read attentive --save runs/attentive"""
REFUSED = {  # by --read: options that do not go with it, and why
    "ridge": {
        "save": "it reads means of tokens, as no arm does, so there is no arm to save; allowed is --read attentive",
        "steps": "it is fitted in closed form; allowed is --read attentive",
    },
    "attentive": {
        "out": "it has one depth, and no profile to write; allowed are --save and --json",
        "base": "training reads the backbone's weights where the model says; export the model in full with --base, and "
        "probe that",
    },
}
WIDTH = 40  # characters of a bar that stands for 100 %


def arguments() -> argparse.ArgumentParser:
    parser = tool.parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("model", help="model directory or hub id")
    add("train", help="shard directory to fit or train the classifiers on")
    add("test", help="shard directory to test the classifiers on")
    add(
        "--read",
        choices=[*REFUSED],
        default="ridge",
        help="how tokens are read: ridge, linear classifiers on their means; or attentive, learned queries that are "
        "trained on all tokens of the last depth (default ridge)",
    )
    add("--label", nargs="+", metavar="LABEL", help="labels to classify (default: all labels of the shards)")
    add(
        "--depths",
        nargs="+",
        type=tool.at_least(0),
        metavar="N",
        help="blocks after which to measure; 0 is the input of block 1 (default: all)",
    )
    add("--steps", type=tool.at_least(1), metavar="N", help="of attentive: training steps (default 500)")
    add("--save", metavar="DIR", help="of attentive: keep the run; evaluate takes DIR, predict and export DIR/model")
    add("--views", default="1x1", help="temporal x spatial crops of a sample, which are averaged (default 1x1)")
    add("--out", type=Path, help="of ridge: directory for probe.json and probe.png")
    add("--overwrite", action="store_true", help="replace an existing output")
    add("--batch", type=tool.at_least(1), default=16, help="batch size (default 16)")
    add("--workers", type=tool.at_least(0), default=1, help="loader processes (default 1)")
    precisions, placements = tool.choices(Trunk, "precision"), tool.choices(Trunk, "placement")
    add("--precision", choices=precisions, default="float32", help="precision of the blocks (default float32)")
    add("--placement", choices=placements, default="device", help="where the blocks are kept (default device)")
    add("--base", help="the backbone's weights, if they have moved")
    return parser


def run(args: argparse.Namespace) -> DepthProfile | AttentiveProbe | StoppedRun:
    for option, reason in REFUSED[args.read].items():
        if getattr(args, option) is not None:
            raise UserError(f"--{option} does not go with --read {args.read}: {reason}")
    return run_ridge(args) if args.read == "ridge" else run_attentive(args)


def run_ridge(args: argparse.Namespace) -> DepthProfile:
    if args.out:
        refuse_existing(args.out, args.overwrite)
    from scaleup.evaluation import depth_profile
    from scaleup.model.build import load  # takes seconds; wrong arguments are refused before

    model, trunk = load(args.model, args.base, args.placement), Trunk(args.precision, args.placement)
    how = args.views, args.batch, args.workers, trunk
    result = depth_profile.probe(model, args.train, args.test, args.label, args.depths, *how)
    if args.out and is_first_rank():
        depth_profile.write(result, args.out, args.overwrite)
    return result


def run_attentive(args: argparse.Namespace) -> AttentiveProbe | StoppedRun:
    from scaleup.training.attentive_probe import STEPS, probe_attentive  # takes seconds

    what = args.model, args.train, args.test, args.label, args.depths, args.steps or STEPS
    how = args.views, args.batch, args.workers, Trunk(args.precision, args.placement)
    return probe_attentive(*what, *how, args.save, args.overwrite)


def show(result: DepthProfile | AttentiveProbe | StoppedRun) -> None:
    from scaleup.training.attentive_probe import AttentiveProbe
    from scaleup.training.run_directory import StoppedRun

    if isinstance(result, StoppedRun):
        then = "the same command goes on from there" if Path(result.out).exists() else "nothing was saved (--save)"
        print(f"stopped after {result.stopped} of {result.steps} steps; {then}")
    elif isinstance(result, AttentiveProbe):
        evaluate.show(result.test)
        arm = result.arm
        print(f"depth {arm.frozen_depth}: {arm.trained_parameters:,} parameters trained in {arm.steps} steps")
        if arm.directory is not None:
            print(f"saved -> {arm.directory}")
    else:
        show_profile(result)


def show_profile(profile: DepthProfile) -> None:
    for label, curve in profile.labels.items():
        print(f"{label} (chance {curve.chance:.1%})\ndepth   train    test")
        for row in curve.rows:
            bar = "█" * round(WIDTH * row.accuracy)
            print(f"{row.depth:5d}  {row.train_accuracy:6.1%}  {row.accuracy:6.1%}  {bar}")
        error = next(row.standard_error for row in curve.rows if row.depth == curve.suggested_depth)
        print(
            f"{label}: above depth {curve.suggested_depth} accuracy rises by no more than its standard error "
            f"({error:.1%}), so try to freeze up to this depth (a heuristic; a sweep gives the answer)\n"
        )
    for split, coverage in (("train", profile.train), ("test", profile.test)):
        print(f"{split}: {coverage.samples} samples, {len(coverage.failures)} failures, {coverage.views} views")
        print(f"list {coverage.list_sha256}")
    tool.show_drift(profile.trunk.precision, profile.trunk.drift)

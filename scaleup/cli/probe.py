"""Measure the accuracy of linear classifiers on the output of each block of a frozen model (a depth profile)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from scaleup.cli import tool
from scaleup.common.files import refuse_existing
from scaleup.common.timing import is_first_rank
from scaleup.config.schema import Trunk

if TYPE_CHECKING:
    from scaleup.evaluation.depth_profile import DepthProfile

EXAMPLE = "tools/probe.py runs/demo/adapted runs/demo/data/videos-train runs/demo/data/videos-test"
WIDTH = 40  # characters of a bar that stands for 100 %


def arguments() -> argparse.ArgumentParser:
    parser = tool.parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("model", help="model directory or hub id")
    add("train", help="shard directory to fit the classifiers on")
    add("test", help="shard directory to test the classifiers on")
    add("--head", nargs="+", metavar="LABEL", help="labels to classify (default: all labels of the shards)")
    add(
        "--depths",
        nargs="+",
        type=int,
        metavar="N",
        help="blocks after which to measure; 0 is the input of block 1 (default: all)",
    )
    add("--views", default="1x1", help="temporal x spatial crops whose features are averaged (default 1x1)")
    add("--out", type=Path, help="directory for probe.json and probe.png")
    add("--overwrite", action="store_true", help="replace an existing output")
    add("--batch", type=int, default=16, help="batch size (default 16)")
    add("--workers", type=int, default=1, help="loader processes (default 1)")
    precisions, placements = tool.choices(Trunk, "precision"), tool.choices(Trunk, "placement")
    add("--precision", choices=precisions, default="float32", help="precision of the blocks (default float32)")
    add("--placement", choices=placements, default="device", help="where the blocks are kept (default device)")
    add("--base", help="the backbone's weights, if they have moved")
    return parser


def run(args: argparse.Namespace) -> DepthProfile:
    if args.out:
        refuse_existing(args.out, args.overwrite)
    from scaleup.evaluation import depth_profile
    from scaleup.model.build import load  # takes seconds; wrong arguments are refused before

    model, trunk = load(args.model, args.base, args.placement), Trunk(args.precision, args.placement)
    how = args.views, args.batch, args.workers, trunk
    result = depth_profile.probe(model, args.train, args.test, args.head, args.depths, *how)
    if args.out and is_first_rank():
        depth_profile.write(result, args.out, args.overwrite)
    return result


def show(profile: DepthProfile) -> None:
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

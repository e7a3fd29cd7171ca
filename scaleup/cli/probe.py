"""Measure what linear classifiers read from a frozen model after each block, in one pass: a depth profile."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from scaleup.cli import tool
from scaleup.common.files import refuse_existing
from scaleup.common.timing import is_first_rank

if TYPE_CHECKING:
    from scaleup.evaluation.depth_profile import DepthProfile

WIDTH = 40  # characters of a bar that stands for 100 %


def arguments() -> argparse.ArgumentParser:
    made = tool.parser(
        __doc__, "tools/probe.py runs/demo/adapted runs/demo/data/videos-train runs/demo/data/videos-test"
    )
    made.add_argument("model", help="model directory or hub id")
    made.add_argument("train", help="shard directory that the classifiers are fitted on")
    made.add_argument("test", help="shard directory that they are scored on")
    made.add_argument("--head", nargs="+", metavar="LABEL", help="labels of the shards (default: all)")
    made.add_argument("--depths", nargs="+", type=int, metavar="N", help="0: what enters block 1 (default: all)")
    made.add_argument(
        "--views", default="1x1", help="temporal x spatial crops whose features are averaged (default 1x1)"
    )
    made.add_argument("--out", type=Path, help="directory for probe.json and probe.png")
    made.add_argument("--overwrite", action="store_true")
    made.add_argument("--batch", type=int, default=16, help="samples at a time (default 16)")
    made.add_argument("--workers", type=int, default=1, help="loader processes (default 1)")
    precisions = ("float32", "bfloat16", "float16", "int8", "auto")
    made.add_argument("--precision", choices=precisions, default="float32", help="of the blocks (default float32)")
    placements = ("device", "host", "disk")
    made.add_argument("--placement", choices=placements, default="device", help="of the blocks (default device)")
    made.add_argument("--base", help="the backbone's weights, if they are not where they were")
    return made


def run(args: argparse.Namespace) -> DepthProfile:
    if args.out:
        refuse_existing(args.out, args.overwrite)
    from scaleup.config.schema import Trunk
    from scaleup.evaluation import depth_profile
    from scaleup.model.build import load  # after the arguments: these imports take seconds

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
            f"({error:.1%}), so freezing more should stop paying there (a heuristic; a sweep decides)\n"
        )
    for split, coverage in (("train", profile.train), ("test", profile.test)):
        print(f"{split}: {coverage.samples} samples, {len(coverage.failures)} failures, {coverage.views} views")
        print(f"list {coverage.list_sha256}")
    for depth, moved in profile.trunk["drift"].items():
        print(f"trunk in {profile.trunk['precision']}: h after block {depth} moves by {moved:.2%} of its RMS")

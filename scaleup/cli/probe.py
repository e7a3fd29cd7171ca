"""Measure what linear classifiers read from a frozen model after each block, in one pass: a depth profile."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from scaleup.cli import tool
from scaleup.common.files import refuse_existing
from scaleup.common.timing import is_first_rank

if TYPE_CHECKING:
    from scaleup.evaluation.depth_curve import DepthProfile


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
    from scaleup.evaluation import depth_curve
    from scaleup.evaluation.depth_profile import probe
    from scaleup.model.build import load  # after the arguments: these imports take seconds

    model, kept = load(args.model, args.base, args.placement), Trunk(args.precision, args.placement)
    result = probe(model, args.train, args.test, args.head, args.depths, args.views, args.batch, args.workers, kept)
    if args.out and is_first_rank():
        depth_curve.write(result, args.out, args.overwrite)
    return result


def show(result: DepthProfile) -> None:
    from scaleup.evaluation import depth_curve

    print("\n".join(depth_curve.lines(result)))

#!/usr/bin/env python
"""The project's figures, as ratios measured in one run on one machine."""

import argparse
import signal
import sys
import traceback

from scaleup.cli import tool
from scaleup.errors import UserError


def arguments():
    made = tool.parser(__doc__, "tools/bench.py tokenizer\n  tools/bench.py step --backbone vit_b --full --json")
    figures = made.add_subparsers(dest="figure", required=True)
    tokenizer = figures.add_parser("tokenizer", help="our tubes against conv3d with the same kernels")
    tokenizer.add_argument("--widths", type=int, nargs="+", default=[192, 768, 1280])
    tokenizer.add_argument("--batches", type=int, nargs="+", default=[1, 2, 8])
    transplant = figures.add_parser("transplant", help="the whole command against building and saving the backbone")
    transplant.add_argument("--backbone", default="vit_h")
    step = figures.add_parser("step", help="what freezing saves, and the trunk's rate; or a step of one --backbone")
    step.add_argument("--backbone", help="one step of this backbone alone: seconds and memory, such as vit_h")
    step.add_argument("--frozen-depth", type=int, help="its frozen blocks (default: three quarters)")
    step.add_argument("--batch", type=int, default=2, help="clips of 32x224x224 (default 2)")
    step.add_argument("--full", action="store_true", help="with --backbone: take turns with full fine-tuning")
    step.add_argument("--quick", action="store_true", help="one turn of small models: can the figures be made?")
    trunk = figures.add_parser("trunk", help="the frozen part in each precision against float32")
    trunk.add_argument("--backbone", default="vit_b")
    trunk.add_argument("--frozen-depth", type=int, help="frozen blocks (default: three quarters)")
    stream = figures.add_parser("stream", help="a backbone larger than memory: transplant and one step from disk")
    stream.add_argument("directory", help="where random weights (bfloat16) and runs are written; used again")
    stream.add_argument("--backbone", default="timm:vit_7b_patch16_dinov3")
    stream.add_argument("--trained", type=int, default=1, help="late blocks that train (default 1)")
    stream.add_argument("--precision", default="bfloat16", help="of the frozen blocks (default bfloat16)")
    loader = figures.add_parser("loader", help="clips a second against a PyAV loop, webdataset and decord, where it is")
    loader.add_argument("--directory", help="where shards are made, or used again (default: a temporary one)")
    loader.add_argument("--clips", type=int, default=96, help="clips a turn (default 96)")
    loader.add_argument("--workers", type=int, default=2, help="processes of each side (default 2)")
    loader.add_argument("--samples", type=int, default=10_000, help="over which memory is watched (default 10000)")
    loader.add_argument("--copied", action="store_true", help="videos with x264's defaults (default: as re-encoded)")
    busy = figures.add_parser("busy", help="the demo's work alone, and beside processes that never rest")
    busy.add_argument("directory", help="of the demo, such as runs/demo")
    busy.add_argument("--others", type=int, default=2, help="processes that never rest (default 2)")
    cache = figures.add_parser("cache", help="steps from a token cache against the arm alone; its size and precision")
    cache.add_argument("--backbone", default="vit_b")
    cache.add_argument("--frozen-depth", type=int, default=9, help="frozen blocks (default 9)")
    cache.add_argument("--directory", help="where videos are made, or used again (default: a temporary one)")
    cache.add_argument("--batch", type=int, default=2, help="clips of 32x224x224 (default 2)")
    cache.add_argument("--clips", type=int, default=16, help="clips that are cached (default 16)")
    cache.add_argument("--steps", type=int, default=8, help="steps of a turn (default 8)")
    peers = figures.add_parser(
        "peers", help="TubeViT beside VideoMAE, TimeSformer, ViViT, V-JEPA 2 and frame-wise ViTs"
    )
    peers.add_argument("--docs", help="a page whose table is written anew, such as docs/peers.md")
    peers.add_argument("--plot", help="where a plot is written, such as docs/peers.png")
    curves = figures.add_parser("curves", help="a step against frames, frozen depth, arms, batch and ranks")
    curves.add_argument("--out", default="runs/curves", help="where a plot of each is written (default %(default)s)")
    for figure in (peers, curves):
        figure.add_argument("--steps", type=int, default=2, help="steps timed in each process (default 2)")
        figure.add_argument("--quick", action="store_true", help="tiny models, once: whether the figures can be had")
    for figure, repeats in (
        (tokenizer, 31),
        (transplant, 3),
        (step, 3),
        (trunk, 5),
        (stream, 3),
        (loader, 5),
        (busy, 3),
        (cache, 5),
        (peers, 3),
        (curves, 3),
    ):
        figure.add_argument("--repeats", type=int, default=repeats, help="turns of each side (default %(default)s)")
        figure.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
    return made


def run(args):
    import bench

    options = {key: value for key, value in vars(args).items() if key not in ("figure", "json", "local_rank")}
    signal.signal(signal.SIGTERM, terminate)
    try:
        return getattr(bench, args.figure)(**options)
    except (Exception, KeyboardInterrupt) as error:
        return partial(error)


class Terminated(KeyboardInterrupt):
    """By SIGTERM, as Ctrl-C is by SIGINT."""


def terminate(*_):
    raise Terminated


def partial(error):
    """What was measured before ``error``, as a result; where that is nothing, and nobody interrupted, the error."""
    from bench.turns import machine, so_far

    measured, signalled = so_far(), isinstance(error, KeyboardInterrupt)
    if not signalled and not measured["rows"]:
        raise error
    if not signalled and not isinstance(error, UserError):
        traceback.print_exception(error)
    code = 143 if isinstance(error, Terminated) else 130 if signalled else 2 if isinstance(error, UserError) else 1
    why = "interrupted" if signalled else str(error)
    return {"machine": machine(), "partial": why, **measured, "goals": [], "exit": code}


def show(result):
    print(" ".join(f"{key}={value}" for key, value in result["machine"].items()))
    if "partial" in result:
        print(f"not all was measured: {result['partial']}", file=sys.stderr)
        missing = ", ".join(result["missing"]) or "what comes after"
        print(f"medians of {len(result['rows'])} sides; not measured: {missing}")
    for row in [*result["rows"], *filter(None, [result.get("clips_per_second")])]:
        print(
            " ".join(
                f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items()
            )
        )
    for loss in result.get("losses", ()):
        print("loss: {name}: {column} {measured:.4g} against {peers:.4g} of {peer}: {cause}".format(**loss))
    for each in result["goals"]:
        verdict = "met" if each["met"] else "NOT met"
        limit = f"at most {each['at_most']:.3g}" if "at_most" in each else f"at least {each['at_least']:.3g}"
        print(f"{each['what']}: {each['measured']:.3g}, {limit}: {verdict}")


if __name__ == "__main__":
    tool.main(run, arguments().parse_args(), show)

#!/usr/bin/env python
"""The project's figures, as ratios measured in one run on one machine."""

import argparse
import signal
import sys
import traceback

from scaleup.cli import tool
from scaleup.errors import UserError

STEPS = "steps timed in each process (default 2)"
QUICK = "tiny models, once: whether the figures can be had"


def arguments():
    parser = tool.parser(__doc__, "tools/bench.py tokenizer\n  tools/bench.py step --backbone vit_b --full --json")
    figures = parser.add_subparsers(dest="figure", required=True)

    def figure(name, repeats, what):
        add = figures.add_parser(name, help=what).add_argument
        add("--repeats", type=int, default=repeats, help="turns of each side (default %(default)s)")
        add("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
        return add

    add = figure("tokenizer", 31, "our tubes against conv3d with the same kernels")
    add("--widths", type=int, nargs="+", default=[192, 768, 1280])
    add("--batches", type=int, nargs="+", default=[1, 2, 8])
    add = figure("transplant", 3, "the whole command against building and saving the backbone")
    add("--backbone", default="vit_h")
    add = figure("step", 3, "what freezing saves, and the trunk's rate; or a step of one --backbone")
    add("--backbone", help="one step of this backbone alone: seconds and memory, such as vit_h")
    add("--frozen-depth", type=int, help="its frozen blocks (default: three quarters)")
    add("--batch", type=int, default=2, help="clips of 32x224x224 (default 2)")
    add("--full", action="store_true", help="with --backbone: take turns with full fine-tuning")
    add("--quick", action="store_true", help="one turn of small models: can the figures be made?")
    add = figure("trunk", 5, "the frozen part in each precision against float32")
    add("--backbone", default="vit_b")
    add("--frozen-depth", type=int, help="frozen blocks (default: three quarters)")
    add = figure("stream", 3, "a backbone larger than memory: transplant and one step from disk")
    add("directory", help="where random weights (bfloat16) and runs are written; used again")
    add("--backbone", default="timm:vit_7b_patch16_dinov3")
    add("--trained", type=int, default=1, help="late blocks that train (default 1)")
    add("--precision", default="bfloat16", help="of the frozen blocks (default bfloat16)")
    add = figure("loader", 5, "clips a second against a PyAV loop, webdataset and decord, where it is")
    add("--directory", help="where shards are made, or used again (default: a temporary one)")
    add("--clips", type=int, default=96, help="clips a turn (default 96)")
    add("--workers", type=int, default=2, help="processes of each side (default 2)")
    add("--samples", type=int, default=10_000, help="over which memory is watched (default 10000)")
    add("--copied", action="store_true", help="videos with x264's defaults (default: as re-encoded)")
    add = figure("busy", 3, "the demo's work alone, and beside processes that never rest")
    add("directory", help="of the demo, such as runs/demo")
    add("--others", type=int, default=2, help="processes that never rest (default 2)")
    add = figure("cache", 5, "steps from a token cache against the arm alone; its size and precision")
    add("--backbone", default="vit_b")
    add("--frozen-depth", type=int, default=9, help="frozen blocks (default 9)")
    add("--directory", help="where videos are made, or used again (default: a temporary one)")
    add("--batch", type=int, default=2, help="clips of 32x224x224 (default 2)")
    add("--clips", type=int, default=16, help="clips that are cached (default 16)")
    add("--steps", type=int, default=8, help="steps of a turn (default 8)")
    add = figure("peers", 3, "TubeViT beside VideoMAE, TimeSformer, ViViT, V-JEPA 2 and frame-wise ViTs")
    add("--docs", help="a page whose table is written anew, such as docs/peers.md")
    add("--plot", help="where a plot is written, such as docs/peers.png")
    add("--steps", type=int, default=2, help=STEPS)
    add("--quick", action="store_true", help=QUICK)
    add = figure("curves", 3, "a step against frames, frozen depth, arms, batch and ranks")
    add("--out", default="runs/curves", help="where a plot of each is written (default %(default)s)")
    add("--steps", type=int, default=2, help=STEPS)
    add("--quick", action="store_true", help=QUICK)
    return parser


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
    from bench.measure import machine, measured, so_far

    results, signalled = so_far(), isinstance(error, KeyboardInterrupt)
    if not signalled and not results["rows"]:
        raise error
    if not signalled and not isinstance(error, UserError):
        traceback.print_exception(error)
    code = 143 if isinstance(error, Terminated) else 130 if signalled else 2 if isinstance(error, UserError) else 1
    return measured(machine(), **results, partial="interrupted" if signalled else str(error), exit=code)


def show(result):
    print(" ".join(f"{key}={value}" for key, value in result["machine"].items()))
    if "partial" in result:
        print(f"not all was measured: {result['partial']}", file=sys.stderr)
        missing = ", ".join(result["missing"]) or "what comes after"
        print(f"medians of {len(result['rows'])} sides; not measured: {missing}")
    for row in [*result["rows"], *filter(None, [result.get("clips_per_second")])]:
        figures = ((key, f"{value:.4g}" if isinstance(value, float) else value) for key, value in row.items())
        print(" ".join(f"{key}={value}" for key, value in figures))
    for loss in result.get("losses", ()):
        print("loss: {name}: {column} {measured:.4g} against {peers:.4g} of {peer}: {cause}".format(**loss))
    for goal in result["goals"]:
        verdict = "met" if goal["met"] else "NOT met"
        limit = f"at most {goal['at_most']:.3g}" if "at_most" in goal else f"at least {goal['at_least']:.3g}"
        print(f"{goal['what']}: {goal['measured']:.3g}, {limit}: {verdict}")


if __name__ == "__main__":
    tool.main(run, arguments().parse_args(), show)

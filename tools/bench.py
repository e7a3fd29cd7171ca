#!/usr/bin/env python
"""The project's figures, as ratios measured in one run on one machine."""

import argparse
import signal
import sys
import traceback

from scaleup.cli import tool
from scaleup.common.errors import UserError

STEPS = "steps timed in each process (default 2)"
QUICK = "measure tiny models once, to test the bench"


def arguments():
    parser = tool.parser(__doc__, "tools/bench.py tokenizer\n  tools/bench.py step --backbone vit_b --full --json")
    figures = parser.add_subparsers(dest="figure", required=True)

    def figure(name, repeats, help):
        add = figures.add_parser(name, help=help).add_argument
        add("--repeats", type=tool.at_least(1), default=repeats, help="measurements of each (default %(default)s)")
        add("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
        return add

    add = figure("tokenizer", 31, "our tubes compared with conv3d with the same kernels")
    add("--widths", type=tool.at_least(1), nargs="+", default=[192, 768, 1280], help="of tokens")
    add("--batches", type=tool.at_least(1), nargs="+", default=[1, 2, 8], help="clips of a pass")
    add = figure("transplant", 3, "the whole command compared with only building and saving the backbone")
    add("--backbone", default="vit_h", help="default: vit_h")
    add = figure("step", 3, "how much time freezing saves, and the trunk's speed; or a step of one --backbone")
    add("--backbone", help="measure only seconds and memory of one step of this backbone, such as vit_h")
    add("--frozen-depth", type=tool.at_least(0), help="its frozen blocks (default: three quarters)")
    add("--batch", type=tool.at_least(1), default=2, help="clips of 32x224x224 (default 2)")
    add("--full", action="store_true", help="with --backbone: compare with full fine-tuning")
    add("--quick", action="store_true", help=QUICK)
    add = figure("trunk", 5, "the trunk in each precision compared with float32")
    add("--backbone", default="vit_b", help="default: vit_b")
    add("--frozen-depth", type=tool.at_least(0), help="frozen blocks (default: three quarters)")
    add = figure("stream", 3, "a backbone larger than memory: transplant and one step from disk")
    add("directory", help="random weights (bfloat16) and runs are written here, and used again")
    add("--backbone", default="timm:vit_7b_patch16_dinov3", help="default: timm:vit_7b_patch16_dinov3")
    add("--trained", type=tool.at_least(1), default=1, help="late blocks that train (default 1)")
    add("--precision", default="bfloat16", help="of the frozen blocks (default bfloat16)")
    add = figure("loader", 5, "clips per second, compared with a PyAV loop, webdataset, and decord if it is installed")
    add("--directory", help="shards are written here, and used again (default: a temporary directory)")
    add("--clips", type=tool.at_least(1), default=96, help="clips of one measurement (default 96)")
    add("--workers", type=tool.at_least(0), default=2, help="processes of each loader (default 2)")
    add("--samples", type=tool.at_least(1), default=10_000, help="clips over which memory is measured (default 10000)")
    add("--copied", action="store_true", help="videos with x264's defaults (default: as re-encoded)")
    add = figure("scale", 3, "time and memory of an index and its batches, against the number of samples")
    add(
        "--samples",
        type=tool.at_least(1),
        nargs="+",
        default=[10**6, 10**7, 10**8],
        help="default: 1, 10 and 100 million",
    )
    add("--per-shard", type=tool.at_least(1), default=1000, help="samples of a tar (default 1000)")
    add("--directory", help="an index is written here and removed, at most 20 GB (default: a temporary directory)")
    add("--plot", help="file for a plot, such as docs/scale.png")
    add = figure("busy", 3, "the demo's work on an idle machine and on a busy one")
    add("directory", help="output of make demo, such as runs/demo")
    add("--others", type=tool.at_least(0), default=2, help="processes that keep the machine busy (default 2)")
    add = figure("cache", 5, "steps from a token cache compared with the arm's steps; size and precision of the cache")
    add("--backbone", default="vit_b", help="default: vit_b")
    add("--frozen-depth", type=tool.at_least(0), default=9, help="frozen blocks (default 9)")
    add("--directory", help="videos are written here, and used again (default: a temporary directory)")
    add("--batch", type=tool.at_least(1), default=2, help="clips of 32x224x224 (default 2)")
    add("--clips", type=tool.at_least(1), default=16, help="cached clips (default 16)")
    add("--steps", type=tool.at_least(1), default=8, help="training steps of one measurement (default 8)")
    add(
        "--heads",
        type=tool.at_least(0),
        default=0,
        help="arms with an attentive head, in place of a gated arm; freeze all blocks",
    )
    add = figure("peers", 3, "TubeViT compared with VideoMAE, TimeSformer, ViViT, V-JEPA 2 and frame-wise ViTs")
    add("--docs", help="a page whose table is replaced, such as docs/peers.md")
    add("--plot", help="file for a plot, such as docs/peers.png")
    add("--precision", choices=["float32", "bfloat16"], help="in which all models compute (default: the device's own)")
    add("--others", type=tool.at_least(0), default=0, help="processes that keep the machine busy (default 0)")
    add("--steps", type=tool.at_least(1), default=2, help=STEPS)
    add("--quick", action="store_true", help=QUICK)
    add = figure("gpu", 5, "a GPU's ceilings, and steps, inference, peers, placements and the loader as shares of them")
    add("--docs", help="the page that is written, docs/gpu.md")
    add("--from", dest="source", metavar="FILE", help="an earlier result (--json), from which --docs is written")
    add(
        "--minutes",
        type=tool.at_least(0, float),
        default=9,
        help="after which nothing new is begun (default %(default)s)",
    )
    add("--quick", action="store_true", help=QUICK)
    add = figure("curves", 3, "how the cost of a step grows with frames, frozen depth, arms, batch and ranks")
    add("--out", default="runs/curves", help="directory for the plots (default %(default)s)")
    add("--steps", type=tool.at_least(1), default=2, help=STEPS)
    add("--quick", action="store_true", help=QUICK)
    return parser


def run(args):
    import bench

    options = {key: value for key, value in vars(args).items() if key not in ("figure", "json", "local_rank")}
    signal.signal(signal.SIGTERM, terminate)
    try:
        return getattr(bench, args.figure)(**options)
    except (Exception, KeyboardInterrupt) as error:
        return partial_result(error)


class Terminated(KeyboardInterrupt):
    """The process got SIGTERM."""


def terminate(*_):
    raise Terminated


def partial_result(error):
    """The figures that were measured before ``error``. If there are none, ``error`` is raised, unless it is a
    signal."""
    from bench.measure import collect, machine, measured

    results, signalled = collect(), isinstance(error, KeyboardInterrupt)
    if not signalled and not results["rows"]:
        raise error
    if not signalled and not isinstance(error, UserError):
        traceback.print_exception(error)
    code = 143 if isinstance(error, Terminated) else 130 if signalled else 2 if isinstance(error, UserError) else 1
    return measured(machine(), **results, partial="interrupted" if signalled else str(error), exit=code)


def show(result):
    print(" ".join(f"{key}={value}" for key, value in result["machine"].items()))
    for each in result.get("missing", ()) if "partial" not in result else ():
        print(f"not measured: {each}", file=sys.stderr)
    if "partial" in result:
        print(f"not all was measured: {result['partial']}", file=sys.stderr)
        missing = ", ".join(result["missing"]) or "the rest"
        print(f"medians of {len(result['rows'])} measurements; not measured: {missing}")
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

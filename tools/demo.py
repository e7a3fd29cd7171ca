#!/usr/bin/env python
"""All steps on small data: shards, small joint model, transplant, sweep, evaluation, export, reload."""

from dataclasses import asdict
from pathlib import Path

from scaleup.cli import tool


def arguments():
    parser = tool.parser(__doc__, "tools/demo.py --out runs/demo --overwrite")
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/demo"), help="run directory (default: runs/demo)")
    add("changes", nargs="*", metavar="key=value", help="changes to all recipes, such as data.batch=32")
    add("--seed", type=tool.at_least(0), default=0, help="of data, models and order (default: 0)")
    add("--overwrite", action="store_true", help="replace an earlier demo in --out")
    return parser


def run(args):
    from demo import demo

    report = demo(args.out, args.seed, args.changes, args.overwrite)
    return asdict(report) | {"out": str(args.out)} if args.json else (report, args.out)


def show(result):
    from demo.report import table

    report, out = result
    print(table(report))
    print(f"\n{report.seconds:.0f} s; report, plot and README in {out}")


if __name__ == "__main__":
    tool.main(run, arguments().parse_intermixed_args(), show)

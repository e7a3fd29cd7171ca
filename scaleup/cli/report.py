"""Write one HTML page about runs, finished or not: curves, accuracy, cost, tubes, confusion matrices, recipe."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from scaleup.cli import tool

if TYPE_CHECKING:
    from scaleup.outputs.report_page import Page

EXAMPLE = """tools/report.py runs/sweep --out report.html --shards data/videos-val --probe runs/probe
  tools/report.py runs/sweep --out report.html --watch 30"""


def arguments() -> argparse.ArgumentParser:
    parser = tool.parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("runs", nargs="+", metavar="run", help="run directory")
    add("--out", required=True, help="the HTML file to write")
    add("--shards", help="shards for the confusion matrices of complete runs (with --watch at the end)")
    profile = "output of tools/probe.py to show with the sweep (default: probe/ in the model that it started from)"
    add("--probe", metavar="DIR", help=profile)
    add(
        "--watch",
        type=tool.at_least(1),
        metavar="SECONDS",
        help="write the page again every SECONDS, until all runs are complete",
    )
    return parser


def run(args: argparse.Namespace) -> Page:
    from scaleup.outputs import report_page  # takes seconds

    while args.watch is not None:
        states = report_page.write(args.runs, args.out, refresh=args.watch, probe=args.probe).runs.values()
        if all(state.startswith("complete") for state in states):
            break
        time.sleep(args.watch)
    return report_page.write(args.runs, args.out, args.shards, probe=args.probe)


def show(page: Page) -> None:
    for name, state in page.runs.items():
        print(f"{name}: {state}")
    print(f"{page.bytes:,} bytes -> {page.out}")

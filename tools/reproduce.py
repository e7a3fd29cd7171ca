#!/usr/bin/env python
"""The paper's tables at desk scale: rows with several seeds, each at its own learning rate, and which orderings hold.

What was made is kept: the same command goes on where it was cut off. With --write what OUT holds goes to docs/.
How long it takes is said first, after a rehearsal of every kind of run that is left; with --plan nothing else is done.
"""

from pathlib import Path

from scaleup.cli import tool


def arguments():
    parser = tool.parser(__doc__, "tools/reproduce.py table9 --seeds 0 1 2 --out runs/paper")
    add = parser.add_argument
    add("tables", nargs="+", metavar="TABLE", help="table6, table7a, ... or all")
    add("changes", nargs="*", metavar="key=value", help="changes to all recipes, e.g. train.steps=100")
    add("--out", type=Path, default=Path("runs/paper"), help="directory (default: %(default)s)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    add("--samples", type=int, default=4000, help="videos to train on (default: %(default)s)")
    add("--plan", action="store_true", help="say what is left and how long it takes, and stop")
    add("--write", action="store_true", help="write docs/reproduction.md and docs/reproduction/*.json")
    return parser


def run(args):
    import reproduce

    tables = [each for each in args.tables if "=" not in each]
    changes = [each for each in args.tables if "=" in each] + args.changes
    if args.plan:
        return {"plan": reproduce.plan(tables, args.out, args.seeds, changes, args.samples)}
    found = reproduce.reproduce(tables, args.out, args.seeds, changes, args.samples)
    if args.write:
        reproduce.publish(args.out)
    return {"out": str(args.out), "tables": found}


def show(result):
    import reproduce

    if "plan" in result:
        print(reproduce.said(result["plan"]))
    else:
        print((Path(result["out"]) / "reproduction.md").read_text())


if __name__ == "__main__":
    tool.main(run, arguments().parse_intermixed_args(), show)

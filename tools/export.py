#!/usr/bin/env python
"""Write a model as a delta (what differs from its public backbone) or in full, read it back, and compare."""

from pathlib import Path

from scaleup import cli


def arguments():
    made = cli.parser(__doc__, "tools/export.py runs/vit_h/model --to full --out exported/vit_h")
    made.add_argument("model", help="model directory or hub id")
    made.add_argument("--to", required=True, help="delta or full")
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--base", help="the backbone's weights, if they are not where they were")
    made.add_argument("--overwrite", action="store_true")
    return made


def run(args):
    from scaleup.export import export

    return export(args.model, args.to, args.out, args.base, args.overwrite)


def show(result):
    print(f"{result['to']} -> {result['out']}, {result['bytes']:,} bytes")
    print(
        f"read back: max abs diff {result['image_max_abs_diff']} on an image, {result['video_max_abs_diff']} on a video"
    )


if __name__ == "__main__":
    cli.main(run, arguments().parse_args(), show)

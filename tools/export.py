#!/usr/bin/env python
"""Write a model as a delta (what differs from its public backbone) or in full, read it back, and compare."""

from pathlib import Path

from scaleup import cli


def arguments():
    made = cli.parser(__doc__, "tools/export.py runs/vit_h/model --to full --out exported/vit_h")
    made.add_argument("model", help="model directory or hub id")
    made.add_argument("--to", required=True, help="delta or full")
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--merge", action="store_true", help="fold the model's adapter into the weights of its blocks")
    made.add_argument("--base", help="the backbone's weights, if they are not where they were")
    made.add_argument("--overwrite", action="store_true")
    return made


def run(args):
    from scaleup.export import export

    return export(args.model, args.to, args.out, args.base, args.overwrite, args.merge)


def show(result):
    print(f"{result['to']} -> {result['out']}, {result['bytes']:,} bytes")
    measure = "abs" if "image_max_abs_diff" in result else "rel"
    image, video = (result[f"{kind}_max_{measure}_diff"] for kind in ("image", "video"))
    print(f"read back: max {measure} diff {image} on an image, {video} on a video")


if __name__ == "__main__":
    cli.main(run, arguments().parse_args(), show)

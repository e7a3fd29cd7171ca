"""Videos or images to WebDataset shards with an index, or the embedded data to try everything with."""

import argparse
from typing import Any

from scaleup import cli
from scaleup.data.folder import class_folders, pack_folder
from scaleup.data.shapes import SPLITS, make_shapes
from scaleup.data.shards import Shards
from scaleup.errors import UserError


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.source == "shapes":
        videos, images = counts(args.videos), counts(args.images)
        with cli.progress("shapes", sum(videos.values()) + sum(images.values())) as advance:
            made = make_shapes(
                args.out, videos, images, args.seed, args.size, args.frames, args.overwrite, advance=advance
            )
        return {"shards": {name: described(shards) for name, shards in made.items()}}
    total = sum(len(paths) for paths in class_folders(args.source).values())
    with cli.progress("packing", total) as advance:
        packed = pack_folder(args.source, args.out, args.overwrite, advance)
    return {"shards": {packed.path.name: described(packed)}}


def described(shards: Shards) -> dict[str, Any]:
    return {
        "path": str(shards.path),
        "modality": shards.modality,
        "samples": len(shards),
        "classes": {label: len(names) for label, names in shards.classes.items()},
        "list_sha256": shards.list_sha256,
        "failures": shards.failures,
    }


def counts(text: str) -> dict[str, int]:
    """``"train=4000,val=500"`` -> {"train": 4000, "val": 500}."""
    pairs = [part.partition("=") for part in text.split(",") if part]
    for split, _, number in pairs:
        if split not in SPLITS or not number.isdecimal():
            raise UserError(f"'{text}' is not a list such as train=4000,val=500,test=1000; splits: {', '.join(SPLITS)}")
    return {split: int(number) for split, _, number in pairs}


def show(result: dict[str, Any]) -> None:
    for made in result["shards"].values():
        classes = ", ".join(f"{label} ({count} classes)" for label, count in made["classes"].items())
        print(f"{made['path']}: {made['samples']} {made['modality']}s, {classes}, list {made['list_sha256'][:12]}")
        if made["failures"]:
            print(f"  {len(made['failures'])} files left out (all of them in index.json):")
        for failure in made["failures"][:20]:
            print(f"  {failure['source']}: {failure['reason']}")


if __name__ == "__main__":
    parser = cli.parser(__doc__, "tools/make_shards.py shapes --out data/shapes --videos train=4000,val=500")
    parser.add_argument("source", help="a folder with one subfolder of files per class, or 'shapes': the embedded data")
    parser.add_argument("--out", required=True, help="the directory to write")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    shapes = parser.add_argument_group("with source 'shapes'")
    shapes.add_argument("--videos", default="train=4000,val=500,test=1000", help="how many (default: %(default)s)")
    shapes.add_argument("--images", default="train=4000,val=500,test=1000", help="how many (default: %(default)s)")
    shapes.add_argument("--seed", type=int, default=0)
    shapes.add_argument("--size", type=int, default=32, help="pixels of a side (default: %(default)s)")
    shapes.add_argument("--frames", type=int, default=16, help="of a video (default: %(default)s)")
    cli.main(run, parser.parse_args(), show)

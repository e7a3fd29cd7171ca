"""Pack videos or images into WebDataset shards with an index; or make the embedded data, to try everything.

SOURCE is a folder with one subfolder of files per class (ImageNet too); a list of a path and a label in each line;
a CSV of Kinetics; a JSON split of Something-Something v2; a trainlist or testlist of UCF101; the folder of HMDB51's
split files; a folder of tars, which are used in place; or the word 'shapes': the embedded data.
What is finished when it is cut off is kept: the same command goes on from there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scaleup.cli import tool
from scaleup.common.timing import progress
from scaleup.data.encode import PILLOW, Encoding
from scaleup.data.pack import pack
from scaleup.data.shapes import SPLITS, make_shapes
from scaleup.data.shards import Shards
from scaleup.data.sources import KINDS, kind_of, read_source
from scaleup.data.storage import count_by_reason
from scaleup.data.tars import index_tars, tars_of
from scaleup.errors import UserError


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.source == "shapes":
        return {"shards": {name: described(shards) for name, shards in shapes(args).items()}}
    in_place = (args.kind or kind_of(Path(args.source))) == "tars"
    made = tars(args) if in_place else packed(args)
    return {"shards": {made.name: described(made)}}


def shapes(args: argparse.Namespace) -> dict[str, Shards]:
    videos, images = counts(args.videos), counts(args.images)
    with progress("shapes", sum(videos.values()) + sum(images.values())) as advance:
        return make_shapes(
            wanted(args.out),
            videos,
            images,
            args.seed,
            args.size,
            args.frames,
            args.overwrite,
            None,
            advance,
            args.places,
        )


def tars(args: argparse.Namespace) -> Shards:
    if args.out and Path(args.out).resolve() != Path(args.source).resolve():
        raise UserError(f"tars are used in place, their index belongs in '{args.source}'; leave out --out {args.out}")
    with progress("tars", len(tars_of(Path(args.source)))) as advance:
        return index_tars(args.source, args.label, args.classes, args.overwrite, args.processes, advance)


def packed(args: argparse.Namespace) -> Shards:
    out = wanted(args.out)
    for given in (args.source, args.root or args.source):
        if Path(out).resolve() in (Path(given).resolve(), *Path(given).resolve().parents):
            raise UserError(f"--out {out} would take the place of '{given}', which is read; name another directory")
    encoding = Encoding(args.short, args.fps, args.image_format, args.quality, args.reencode)
    listing = read_source(args.source, args.kind, args.root, args.split, args.classes)
    with progress("packing", len(listing.items)) as advance:
        return pack(listing, out, encoding, args.seed, args.per_shard, args.overwrite, args.processes, advance)


def wanted(out: str | None) -> str:
    if not out:
        raise UserError("no directory to write is named; give one with --out")
    return out


def described(shards: Shards) -> dict[str, Any]:
    return {
        "path": str(shards.path),
        "modality": shards.modality,
        "samples": len(shards),
        "classes": {label: len(names) for label, names in shards.classes.items()},
        "list_sha256": shards.list_sha256,
        "failures": shards.failures,
        "notes": shards.notes,
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
        for line in count_by_reason(made["failures"])[:20]:
            print(f"  {line}")
        if made["notes"]:
            print(f"  {len(made['notes'])} things are odd about files that are used (all of them in index.json):")
        for note in made["notes"][:20]:
            print(f"  {note.source}: {note.note}")


def at_least(low: float, kind: type = int) -> Any:
    def number(text: str) -> Any:
        if not kind(text) >= low:
            raise ValueError
        return kind(text)

    number.__name__ = f"number of at least {low}"
    return number


def arguments() -> argparse.ArgumentParser:
    made = tool.parser(__doc__, "tools/make_shards.py k400/val.csv --root k400/val --out data/k400-val --short 256")
    made.add_argument("source", help="what there is, see above")
    made.add_argument("--out", help="the directory to write")
    made.add_argument("--overwrite", action="store_true", help="replace what exists")
    made.add_argument("--seed", type=at_least(0), default=0, help="of the order (default: %(default)s)")
    listed = made.add_argument_group("what is listed")
    listed.add_argument("--kind", metavar="KIND", help=f"{', '.join([*KINDS, 'tars'])} (default: told by its form)")
    listed.add_argument("--root", help="where the files of a list are (default: beside it)")
    listed.add_argument("--split", help="rows of a Kinetics CSV with this split; train1 to test3 of HMDB51")
    listed.add_argument("--classes", metavar="FILE", help="class names in order (default: those that occur, sorted)")
    listed.add_argument("--label", help="of tars: the member (cls, txt) or the field of the .json with the label")
    how = made.add_argument_group("how it is written")
    how.add_argument("--short", type=at_least(2), metavar="PIXELS", help="shrink: re-encode with this short side")
    how.add_argument("--fps", type=at_least(0.01, float), help="re-encode videos with at most so many frames a second")
    how.add_argument(
        "--image-format", choices=[ending for ending in PILLOW if ending != "jpeg"], help="re-encode images"
    )
    how.add_argument("--quality", type=at_least(1), default=90, help="of jpg and webp (default: %(default)s)")
    how.add_argument("--reencode", action="store_true", help="re-encode in any case (default: copy)")
    how.add_argument("--per-shard", type=at_least(1), default=1000, help="samples of a tar (default: %(default)s)")
    how.add_argument("--processes", type=at_least(1), help="(default: one a core)")
    embedded = made.add_argument_group("with source 'shapes'")
    embedded.add_argument("--videos", default="train=4000,val=500,test=1000", help="how many (default: %(default)s)")
    embedded.add_argument("--images", default="train=4000,val=500,test=1000", help="how many (default: %(default)s)")
    embedded.add_argument("--size", type=int, default=32, help="pixels of a side (default: %(default)s)")
    embedded.add_argument("--frames", type=int, default=16, help="of a video (default: %(default)s)")
    embedded.add_argument(
        "--places", action="store_true", help="harder: a quarter of the frame each, label place_motion"
    )
    return made

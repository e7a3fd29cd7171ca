"""Pack videos or images into WebDataset shards with an index; or make the embedded data, to try everything.

SOURCE is a folder with one subfolder of files per class (ImageNet too); a list of a path and a label in each line;
a CSV of Kinetics; a JSON split of Something-Something v2; a trainlist or testlist of UCF101; the folder of HMDB51's
split files; a folder of tars, which are used in place; or the word 'shapes': the embedded data.
What is finished when it is cut off is kept: the same command goes on from there.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
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


def run(args: argparse.Namespace) -> dict[str, dict[str, Written]]:
    if args.source == "shapes":
        return {"shards": {name: Written.of(shards) for name, shards in shapes(args).items()}}
    in_place = (args.kind or kind_of(Path(args.source))) == "tars"
    shards = tars(args) if in_place else packed(args)
    return {"shards": {shards.name: Written.of(shards)}}


def shapes(args: argparse.Namespace) -> dict[str, Shards]:
    videos, images = counts(args.videos), counts(args.images)
    with progress("shapes", sum(videos.values()) + sum(images.values())) as advance:
        form = args.seed, args.size, args.frames, args.overwrite
        return make_shapes(out_of(args), videos, images, *form, advance=advance, places=args.places)


def tars(args: argparse.Namespace) -> Shards:
    if args.out and Path(args.out).resolve() != Path(args.source).resolve():
        raise UserError(f"tars are used in place, their index belongs in '{args.source}'; leave out --out {args.out}")
    with progress("tars", len(tars_of(Path(args.source)))) as advance:
        return index_tars(args.source, args.label, args.classes, args.overwrite, args.processes, advance)


def packed(args: argparse.Namespace) -> Shards:
    out = out_of(args)
    for source in (args.source, args.root or args.source):
        if Path(out).resolve() in (Path(source).resolve(), *Path(source).resolve().parents):
            raise UserError(f"--out {out} would take the place of '{source}', which is read; name another directory")
    encoding = Encoding(args.short, args.fps, args.image_format, args.quality, args.reencode)
    listing = read_source(args.source, args.kind, args.root, args.split, args.classes)
    with progress("packing", len(listing.items)) as advance:
        return pack(listing, out, encoding, args.seed, args.per_shard, args.overwrite, args.processes, advance)


def out_of(args: argparse.Namespace) -> str:
    if not args.out:
        raise UserError("no directory to write is named; give one with --out")
    return args.out


@dataclass
class Written:
    """A shard directory."""

    path: str
    modality: str  # video | image
    samples: int
    classes: dict[str, int]  # label -> how many
    list_sha256: str
    failures: list[Any]  # files that were left out, and why
    notes: list[Any]  # what is odd about files that are used

    @classmethod
    def of(cls, shards: Shards) -> Written:
        classes = {label: len(names) for label, names in shards.classes.items()}
        about = shards.list_sha256, shards.failures, shards.notes
        return cls(str(shards.path), shards.modality, len(shards), classes, *about)


def counts(text: str) -> dict[str, int]:
    """``"train=4000,val=500"`` -> {"train": 4000, "val": 500}."""
    pairs = [part.partition("=") for part in text.split(",") if part]
    for split, _, number in pairs:
        if split not in SPLITS or not number.isdecimal():
            raise UserError(f"'{text}' is not a list such as train=4000,val=500,test=1000; splits: {', '.join(SPLITS)}")
    return {split: int(number) for split, _, number in pairs}


def show(result: dict[str, dict[str, Written]]) -> None:
    for shards in result["shards"].values():
        classes = ", ".join(f"{label} ({count} classes)" for label, count in shards.classes.items())
        print(f"{shards.path}: {shards.samples} {shards.modality}s, {classes}, list {shards.list_sha256[:12]}")
        if shards.failures:
            print(f"  {len(shards.failures)} files left out (all of them in index.json):")
        for line in count_by_reason(shards.failures)[:20]:
            print(f"  {line}")
        if shards.notes:
            print(f"  {len(shards.notes)} things are odd about files that are used (all of them in index.json):")
        for note in shards.notes[:20]:
            print(f"  {note.source}: {note.note}")


def arguments() -> argparse.ArgumentParser:
    parser = tool.parser(__doc__, "tools/make_shards.py k400/val.csv --root k400/val --out data/k400-val --short 256")
    add = parser.add_argument
    add("source", help="what there is, see above")
    add("--out", help="the directory to write")
    add("--overwrite", action="store_true", help="replace what exists")
    add("--seed", type=tool.at_least(0), default=0, help="of the order (default: %(default)s)")
    add = parser.add_argument_group("what is listed").add_argument
    add("--kind", metavar="KIND", help=f"{', '.join([*KINDS, 'tars'])} (default: told by its form)")
    add("--root", help="where the files of a list are (default: beside it)")
    add("--split", help="rows of a Kinetics CSV with this split; train1 to test3 of HMDB51")
    add("--classes", metavar="FILE", help="class names in order (default: those that occur, sorted)")
    add("--label", help="of tars: the member (cls, txt) or the field of the .json with the label")
    add = parser.add_argument_group("how it is written").add_argument
    add("--short", type=tool.at_least(2), metavar="PIXELS", help="shrink: re-encode with this short side")
    add("--fps", type=tool.at_least(0.01, float), help="re-encode videos with at most so many frames a second")
    add("--image-format", choices=[ending for ending in PILLOW if ending != "jpeg"], help="re-encode images")
    add("--quality", type=tool.at_least(1), default=90, help="of jpg and webp (default: %(default)s)")
    add("--reencode", action="store_true", help="re-encode in any case (default: copy)")
    add("--per-shard", type=tool.at_least(1), default=1000, help="samples of a tar (default: %(default)s)")
    add("--processes", type=tool.at_least(1), help="(default: one a core)")
    add = parser.add_argument_group("with source 'shapes'").add_argument
    add("--videos", default="train=4000,val=500,test=1000", help="how many (default: %(default)s)")
    add("--images", default="train=4000,val=500,test=1000", help="how many (default: %(default)s)")
    add("--size", type=int, default=32, help="pixels of a side (default: %(default)s)")
    add("--frames", type=int, default=16, help="of a video (default: %(default)s)")
    add("--places", action="store_true", help="harder: a quarter of the frame each, label place_motion")
    return parser
